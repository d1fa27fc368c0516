"""The comparison of how threads wait is made of real processes, in turn, and says what it measured."""

import json

from search_r3.benchmarks.waiting import POLICIES, beside, compare, main, tokens_per_second


def test_each_policy_is_timed_in_each_round_beside_as_many_processes(monkeypatch):
    timed = []

    def measured(policy, n_threads, seconds):
        timed.append(policy)
        return 100.0 * len(timed)

    monkeypatch.setattr("search_r3.benchmarks.waiting.measured", measured)  # the order is what is tested
    (row,) = compare([1], n_threads=2, rounds=2, seconds=0.1)

    assert timed == [*POLICIES, *POLICIES]
    assert row["busy_processes"] == 1
    assert row["passive_over_active"] == {"median": 0.625, "lowest": 0.5, "highest": 0.75}  # 100/200, 300/400


def test_busy_processes_end_with_the_timing():
    import multiprocessing

    with beside(2):
        assert len(multiprocessing.active_children()) >= 2
        count = len(multiprocessing.active_children())
    assert len(multiprocessing.active_children()) == count - 2


def test_forward_and_backward_of_the_shipped_base_are_timed():
    assert tokens_per_second(0.01) > 0


def test_a_comparison_is_written(tmp_path, capsys):
    file = tmp_path / "made" / "waiting.json"
    main(["--busy", "0", "--rounds", "1", "--seconds", "0.05", "--threads", "1", "--output", str(file)])

    content = json.loads(file.read_text())
    assert content["rows"][0]["threads"] == 1
    assert content["rows"][0]["passive_tokens_per_s"]["median"] > 0
    assert "ratio" in capsys.readouterr().out
