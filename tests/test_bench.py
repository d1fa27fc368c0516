"""`make bench`: what a comparison computes, which cases there are, what is kept, and what the tables say."""

import itertools
import json
import select
import subprocess
import sys

import numpy as np
import pytest
import torch

from search_r3.bench import _possible, check
from search_r3.benchmarks.peers import alone, cases, child, machine, rank, refresh, table
from search_r3.benchmarks.peers.cases import Case, CaseError, Keeper, aim_of, kept_cases, measured, planned
from search_r3.benchmarks.peers.comparison import (
    Comparison,
    Cost,
    Equal,
    alternated,
    fastest,
    gradient_difference,
    gradient_of,
    ratios_of,
)
from search_r3.benchmarks.peers.comparison import measured as row_of
from search_r3.benchmarks.peers.names import ROWS
from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.errors import UsageError

LIMITS = {"flops_per_s": 100.0, "bytes_per_s": 10.0}


class Clock:
    """Calls that take as many seconds as they say, on a clock of their own."""

    def __init__(self, monkeypatch) -> None:
        self.now, self.calls = 0.0, []
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def side(self, name, *seconds):
        """A call that takes the next of `seconds`, over and over."""
        times = itertools.cycle(seconds)

        def call():
            self.calls.append(name)
            self.now += next(times)

        return call


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def comparison(ours, theirs, equal=None, **facts):
    equal = [Equal("embeddings", 0.0, 1e-5)] if equal is None else equal
    return Comparison(
        unit="texts per second", amount=10, peer="a peer", ours=ours, theirs=theirs, equal=equal, **facts
    )


def test_sides_take_turns_at_the_first_place(clock):
    ours, theirs = alternated(clock.side("ours", 1), clock.side("theirs", 3), rounds=3, max_seconds=100)

    assert clock.calls == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert (ours, theirs) == ([1, 1, 1], [3, 3, 3])


def test_no_round_begins_behind_the_limit_but_two_are_run(clock):
    ours, _ = alternated(clock.side("o", 10), clock.side("t", 10), 9, 15)

    assert len(ours) == 2


def test_a_ratio_is_of_one_round_and_above_1_where_ours_takes_less():
    # 2 / 1 = 2, 9 / 3 = 3, 4 / 4 = 1: the median is 2, though the ratio of medians is 4 / 3
    assert ratios_of([1, 3, 4], [2, 9, 4]) == {"ratio": 2.0, "spread": [1.0, 3.0], "rounds": 3}


def test_the_peer_is_compared_by_its_best_setting_behind_a_warm_up(clock):
    slow_at_first = clock.side("a", 9, 1)

    name, way = fastest({"a": slow_at_first, "b": clock.side("b", 2)})

    assert (name, way) == ("a", slow_at_first)


def test_the_row_of_a_comparison(clock):
    cost = Cost(flops=50.0, bytes=2.0)  # 0.5 s of products, 0.2 s of copying at LIMITS
    found = row_of(comparison(clock.side("o", 1), {"s": clock.side("t", 2)}, cost=cost), 3, 100, LIMITS)

    assert found["ours"]["median"] == 10.0  # 10 texts in 1 s
    assert found["peer"]["median"] == 5.0
    assert (found["ratio"], found["spread"], found["rounds"]) == (2.0, [2.0, 2.0], 3)
    assert found["share_of_limit"]["ours"]["median"] == 0.5
    assert found["share_of_limit"]["peer"]["median"] == 0.25
    assert found["equal"] == [{"what": "embeddings", "difference": 0.0, "limit": 1e-5}]
    json.dumps(found)


def test_a_latency_is_in_milliseconds_by_what_was_asked(clock):
    way = {"s": clock.side("t", 4)}
    found = row_of(comparison(clock.side("o", 2), way, is_latency=True), 2, 100, LIMITS)

    assert (found["ours"]["median"], found["peer"]["median"], found["ratio"]) == (200.0, 400.0, 2.0)
    assert found["share_of_limit"] is None


@pytest.mark.parametrize(
    ("equal", "words"),
    [
        ([Equal("loss", 0.0, 1.0), Equal("gradient", 2.0, 1.0)], "gradient by 2"),
        ([Equal("loss", float("nan"), 1.0)], "loss by nan"),
        ([], "nothing compared"),
    ],
)
def test_what_is_not_equal_is_not_timed(equal, words):
    def run():
        raise AssertionError("it was run")

    with pytest.raises(ValueError, match=words):
        row_of(comparison(run, {"s": run}, equal), 2, 100, LIMITS)


def test_gradients_differ_by_a_share_of_the_length_of_theirs():
    ours = {"a": torch.tensor([3.0, 0.0]), "b": torch.ones(1)}
    theirs = {"a": torch.zeros(2), "b": torch.ones(1)}
    assert gradient_difference(ours, theirs) == 3.0
    assert gradient_difference(theirs, ours) == pytest.approx(3 / 10**0.5)


def test_a_gradient_that_only_one_side_has_is_refused():
    model = torch.nn.Linear(2, 1)
    model(torch.ones(2)).backward()
    own = gradient_of(model)
    assert set(own) == {"weight", "bias"}
    with pytest.raises(ValueError, match=r"only one side has a gradient of \['bias'\]"):
        gradient_difference(own, {"weight": own["weight"]})
    with pytest.raises(ValueError, match="only one side"):
        gradient_difference({}, {})


def test_every_row_has_its_cases_the_most_valuable_first():
    cases = planned(list(ROWS)[::-1], ["nano", "smollm2_135m"], [1, 2], [0, 1])

    assert len(set(cases)) == len(cases) == len({case.name for case in cases})
    assert list(dict.fromkeys(case.row for case in cases)) == list(ROWS)
    encode = [case for case in cases if case.row == "encode"]
    assert len(encode) == 8  # two models, threads and loads each
    assert [case for case in cases if case.row == "rank"] == [
        Case("rank", "", threads, busy) for threads in (1, 2) for busy in (0, 1)
    ]
    assert {case.model for case in cases if case.row in ("refresh", "evaluation")} == {"nano"}
    assert {(case.threads, case.busy) for case in cases if case.row == "memory"} == {(2, 0)}
    assert aim_of(next(case for case in cases if case.row == "grpo")) == 4.0


def test_a_case_is_kept_until_its_settings_change(tmp_path):
    case, other = Case("encode", "nano", 1, 0), Case("encode", "nano", 2, 0)
    keeper = Keeper(tmp_path, {"settings": {"rounds": 5}})
    assert keeper.read(case) is None

    keeper.write(case, {"ratio": 2.0})

    assert keeper.read(case) == {"ratio": 2.0}
    assert keeper.read(other) is None
    longer = Keeper(tmp_path, {"settings": {"rounds": 6}})
    assert longer.read(case) is None
    assert longer.read(case, timed_as_long=False) == {"ratio": 2.0}
    other_size = Keeper(tmp_path, {"settings": {"rounds": 5, "sizes": {"pairs": 9}}})
    assert other_size.read(case, timed_as_long=False) is None


def test_kept_cases_stand_in_the_order_of_the_table(tmp_path):
    rank, encode = Case("rank", "", 1, 0), Case("encode", "nano", 2, 0)
    keeper = Keeper(tmp_path, {"settings": {}})
    for case in (rank, encode, Case("a row of before", "nano", 1, 0)):
        keeper.write(case, {"ratio": 2.0})

    assert kept_cases(tmp_path) == [encode, rank]


TINY = {
    "rounds": 2, "max_seconds": 1.0, "precision": "fp32", "smollm2": "none", "scifact": "none",
    "cache_dir": "none", "seed": 1,
    "sizes": {"rank_rows": 500, "rank_queries": 3, "group_size": 2},
}  # fmt: skip


@pytest.fixture
def small_limits(monkeypatch):
    monkeypatch.setattr(child, "limits", lambda dtype: machine.limits(dtype, side=64, n_bytes=2**16))


def test_a_case_in_this_process_and_in_one_of_its_own(tmp_path, small_limits):
    case = Case("rank", "", 1, 1)

    for found in (child.run(case, TINY, tmp_path), measured(case, TINY, tmp_path)):
        assert found["ratio"] > 0
        assert {each["difference"] for each in found["equal"]} == {0.0}
        assert found["limits"]["flops_per_s"] > 0
        assert found["share_of_limit"]["ours"]["median"] > 0


def test_a_case_that_fails_says_why_and_where_all_of_it_stands(tmp_path):
    with pytest.raises(CaseError, match=r"KeyError.*rank.*log") as refusal:
        measured(Case("rank", "", 1, 0), {**TINY, "sizes": {}}, tmp_path)

    assert "rank_rows" in str(refusal.value)


def test_a_case_is_no_rank_of_the_call_that_measures_it(monkeypatch):
    monkeypatch.setenv("SEARCH_R3_RUN_FOLDER", "outputs/bench")

    found = cases._environment(3)

    assert "SEARCH_R3_RUN_FOLDER" not in found
    assert found["OMP_NUM_THREADS"] == found["RAYON_NUM_THREADS"] == "3"


def test_an_interrupted_case_ends_what_it_has_started():
    started = subprocess.Popen(
        ["sh", "-c", "sleep 600 & echo begun; wait"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert started.stdout.readline() == "begun\n"

    with pytest.raises(KeyboardInterrupt), cases._ended_with(started):
        raise KeyboardInterrupt

    assert started.returncode is not None
    assert select.select([started.stdout], [], [], 20)[0], "the sleeper still holds the pipe"
    assert started.stdout.read() == ""


def test_ranks_are_those_of_sorting():
    asked = rank.Asked.random(300, 4, 3, width=16)
    scores = (asked.queries @ torch.from_numpy(asked.rows).T).numpy()  # [B, G, N]
    own = np.array([scores[row, :, place] for row, place in enumerate(asked.positives.tolist())])
    by_hand = (-np.sort(-scores, axis=-1) > own[..., None]).sum(-1) + 1

    assert by_hand.max() > 1
    assert np.array_equal(rank.by_ours(asked), by_hand)
    assert np.array_equal(rank.by_numpy(asked), by_hand)


def steps(seconds, identical=None, encoded=10.0):
    found = [{"seconds/refresh": each, "index/documents_encoded": encoded} for each in seconds]
    if identical is not None:
        found[-1] |= {"index/audit/seconds": 1.0, "index/audit/identical_rewards": identical}
    return found


def test_the_refresh_of_a_step_against_a_full_one_leaves_the_first_step_out():
    row = refresh.compared(steps([99.0, 1.0, 2.0, 4.0], identical=1.0), steps([99.0, 80.0, 100.0, 120.0]))

    assert row["ratio"] == 50.0  # 100 / 2
    assert row["spread"] == [25.0, 100.0]
    assert (row["ours"]["median"], row["peer"]["median"], row["rounds"]) == (2.0, 100.0, 3)


def test_refreshes_whose_rewards_differ_are_not_compared():
    with pytest.raises(ValueError, match=r"0\.980 of the rewards are identical"):
        refresh.compared(steps([1.0, 1.0], identical=0.98), steps([1.0, 1.0]))


def test_the_start_of_every_command_is_timed(monkeypatch):
    monkeypatch.setattr(alone, "STARTS", {"--version": ("platform",)})

    (row,) = alone.starts(2)

    assert (row["what"], row["rounds"]) == ("--version", 2)
    assert 0 < row["ours"]["lowest"] <= row["ours"]["median"]


def found_cases():
    whole = {
        "unit": "documents per second", "peer_name": "a peer 1.0", "peer_setting": "batches of 32",
        "ours": {"median": 1234.5, "lowest": 1.0, "highest": 2.0}, "peer": {"median": 0.4321},
        "ratio": 1.5, "spread": [1.25, 1.75], "rounds": 3, "share_of_limit": None,
        "equal": [{"what": "embeddings", "difference": 1.2e-7, "limit": 1e-5}],
    }  # fmt: skip
    start = {"what": "--help", "unit": "seconds", "ours": {"median": 0.25}, "rounds": 2, "equal": []}
    memory = {
        Case("memory", "nano", 2, 0, f"sft {side}"): {"mib": mib}
        for side, mib in (("ours", 100.0), ("peer", 250.0))
    }
    return {Case("encode", "nano", 1, 0): whole, Case("startup", "", 2, 0): {"rows": [start]}} | memory


def test_the_rows_of_a_benchmark_and_its_table():
    rows = table.rows_of(found_cases())

    assert [row["name"] for row in rows] == ["encode", "startup --help", "memory sft"]
    assert {"name", "ours", "peer", "ratio", "spread", "equal"} <= rows[0].keys()
    assert rows[2]["ratio"] == 2.5
    lines = table.markdown(rows).splitlines()
    assert lines[2].split(" | ")[4:8] == ["1,234", "0.432", "a peer 1.0 (batches of 32)", "1.50 (1.25-1.75)"]
    assert "embeddings 1e-07" in lines[2]
    assert "0.25" in lines[3]
    assert "2.50 (2.50-2.50)" in lines[4]


def test_half_of_a_peak_is_no_row():
    half = {case: result for case, result in found_cases().items() if case.part != "sft ours"}

    assert [row["name"] for row in table.rows_of(half)] == ["encode", "startup --help"]


def test_the_picture_is_written(tmp_path):
    assert table.picture(table.rows_of(found_cases()), tmp_path / "p.png").stat().st_size > 1000
    assert table.picture([], tmp_path / "none.png").is_file()


def config(*overrides):
    with ConfigSource() as source:
        return compose("bench", list(overrides), source).config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rows=[encod]", "Did you mean encode"),
        ("rows=[]", "rows must name at least one"),
        ("models=[nano,nano]", "each once"),
        ("models=[qwen]", "models: qwen does not exist"),
        ("threads=[1,1]", "threads must name at least one, and each once"),
        ("precision=fp16", "fp32 or bf16"),
    ],
)
def test_what_cannot_be_compared_is_refused(override, words):
    with pytest.raises(UsageError, match=words):
        check(config(override), False)


def test_a_peer_that_is_not_installed_is_refused_with_the_target_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)

    with pytest.raises(UsageError, match="trl: not installed here; `make bench`"):
        check(config("rows=[grpo]"), False)


def test_what_has_no_model_or_collection_is_left_out_and_said(tmp_path):
    plain = {
        "rows": ["encode", "evaluation"], "models": ["nano", "smollm2_135m"],
        "smollm2": str(tmp_path / "none"), "beir_dir": None,
    }  # fmt: skip

    rows, models, left_out = _possible(plain)

    assert (rows, models) == (["encode"], ["nano"])
    assert len(left_out) == 2
    assert "make base" in left_out[0]
    assert "BEIR_DIR" in left_out[1]
    (tmp_path / "scifact").mkdir()
    assert _possible({**plain, "beir_dir": str(tmp_path)})[0] == ["encode", "evaluation"]
