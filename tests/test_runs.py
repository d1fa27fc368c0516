"""Several runs of one experiment: mean, range, and an interval over runs and queries."""

import json

import numpy as np
import pytest

from search_r3.cli.evaluation_report import run_scores
from search_r3.errors import UsageError
from search_r3.evaluation.runs import over_runs, query_keys, rows_over_runs
from search_r3.evaluation.significance import bootstrap_interval
from search_r3.report import main


def test_mean_and_range_are_over_the_runs_whatever_the_number_of_their_queries():
    found = over_runs([{"a": 1.0, "b": 0.0}, {"c": 1.0}, {"d": 0.25, "e": 0.25, "f": 0.25}])
    assert (found.mean, found.lowest, found.highest, found.n_runs) == ((0.5 + 1.0 + 0.25) / 3, 0.25, 1.0, 3)
    assert 0.0 <= found.ci95[0] < found.mean < found.ci95[1] <= 1.0


def test_one_run_has_the_interval_over_its_queries():
    values = np.random.default_rng(0).random(200)
    found = over_runs([dict(enumerate(values))])
    assert found.ci95 == pytest.approx(bootstrap_interval(values), abs=0.004)  # two draws of 5,000 resamples


def test_the_interval_has_the_variance_of_runs_and_of_queries():
    """Run i on query j has r_i + q_j: the variance of a mean over new runs and queries is the sum of both."""
    random = np.random.default_rng(1)
    by_run, by_query = random.normal(0, 0.1, 8), random.normal(0, 0.5, 100)
    runs = [{query: by_run[run] + by_query[query] for query in range(100)} for run in range(8)]
    low, high = over_runs(runs).ci95
    expected = np.sqrt(by_run.var() / 8 + by_query.var() / 100)
    assert (high - low) / (2 * 1.96) == pytest.approx(expected, rel=0.06)
    # Other queries in every run: eight times as many. A run that is drawn twice has the same draw of queries
    # twice, so that their part is (2 - 1/8) times as large: the interval errs on the safe side.
    other = [{(run, query): value for query, value in scores.items()} for run, scores in enumerate(runs)]
    low, high = over_runs(other).ci95
    expected = np.sqrt(by_run.var() / 8 + (2 - 1 / 8) * by_query.var() / 800)
    assert (high - low) / (2 * 1.96) == pytest.approx(expected, rel=0.06)


def test_equal_ids_of_other_collections_are_other_queries():
    same = query_keys({"q": 1.0}, {"q": 0.5}), query_keys({"q": 0.0}, {"q": 0.5})
    other = query_keys({"q": 1.0}, {"q": 0.25})
    assert same[0]["q"] == same[1]["q"] != other["q"]


def test_differences_are_paired_by_query_within_each_run():
    runs = [
        {
            ("c", "bm25"): {"a": 0.1, "b": 0.9},
            ("c", "sft reasoning"): {"a": 0.2, "b": 0.8},
            ("c", "rl reasoning"): {"a": 0.2 + gain, "b": 0.8 + gain},
            ("c", "rl shuffled-reasoning"): {"a": 0.0, "b": 0.1},
        }
        for gain in (0.1, 0.2)
    ]
    bm25, sft, rl, shuffled = rows_over_runs(runs)
    assert "difference" not in rl
    assert {row["best"] for row in (bm25, sft, shuffled)} == {"rl reasoning"}
    # Every query gains the same in a run, so that the interval is of runs alone: from 0.1 to 0.2.
    assert sft["difference"]["mean"] == pytest.approx(0.15)
    assert sft["difference"]["ci95"] == pytest.approx((0.1, 0.2))
    assert bm25["difference"]["ci95"][0] < 0.1


def test_runs_without_anything_in_common_and_runs_without_queries_are_refused():
    with pytest.raises(ValueError, match="in common"):
        rows_over_runs([{("a", "direct"): {"q": 1.0}}, {("b", "direct"): {"q": 1.0}}])
    with pytest.raises(ValueError, match="at least one query"):
        over_runs([{"a": 1.0}, {}])


def written_run(folder, seed, gain):
    """A metrics.json with two rows, and the scores of their queries beside it, as an evaluation has them."""
    rows = []
    for mode, scores in {
        "bm25": {"a": 0.2, "b": 0.4},
        "reasoning": {"a": 0.2 + gain, "b": 0.4 + gain},
    }.items():
        place = folder / "tiny" / mode
        place.mkdir(parents=True)
        lines = [json.dumps({"query_id": name, "ndcg@10": value}) for name, value in scores.items()]
        (place / "per_query.jsonl").write_text("\n".join(lines) + "\n")
        metrics = {"ndcg@10": float(np.mean(list(scores.values())))}
        row = {"benchmark": "tiny", "mode": mode, "model": mode, "n_queries": 2, "n_docs": 3}
        rows.append(row | {"metrics": metrics, "ci95": {"ndcg@10": [0, 1]}, "folder": f"tiny/{mode}"})
    content = {"command": "made by a test", "commit": "0" * 40, "seed": seed, "rows": rows}
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def test_the_report_of_runs_prints_and_writes_range_and_difference(tmp_path, monkeypatch, capsys):
    folders = [written_run(tmp_path / f"run{seed}", seed, gain) for seed, gain in ((1, 0.1), (2, 0.3))]
    output = tmp_path / "made" / "runs.json"
    monkeypatch.setattr("sys.argv", ["report", "--runs", *map(str, folders), "--output", str(output)])

    assert main() == 0

    bm25, reasoning = json.loads(output.read_text())["rows"]
    assert (reasoning["lowest"], reasoning["highest"]) == pytest.approx((0.4, 0.6))
    assert bm25["difference"]["mean"] == pytest.approx(0.2)
    printed = capsys.readouterr().out
    assert "0.400 to 0.600" in printed
    assert "+0.200 (+0.100 to +0.300)" in printed
    (folders[0] / "tiny" / "bm25" / "per_query.jsonl").unlink()
    with pytest.raises(UsageError, match=r"tiny/bm25/per_query\.jsonl: no such file"):
        main()


def test_a_model_in_the_folder_of_its_run_has_one_name_in_all_runs(tmp_path):
    found = []
    for seed in (1, 2):
        file = written_run(tmp_path / f"run{seed}", seed, 0.1) / "metrics.json"
        bm25, reasoning = json.loads(file.read_text())["rows"]
        models = [
            "elsewhere/base/model",
            str(file.parent / "sft" / "model"),
            str(file.parent / "rl" / "model"),
        ]
        rows = [bm25, *(reasoning | {"model": model, "weights_sha256": model} for model in models)]
        found.append(list(run_scores(file, rows)))

    assert found[0] == found[1]
    assert found[0][2:] == [("tiny", "sft reasoning"), ("tiny", "rl reasoning")]


def test_a_mode_on_other_queries_than_the_best_one_is_listed_without_a_difference(caplog):
    direct, reasoning = {"q1": 0.5, "q2": 0.7}, {"q1": 1.0}
    run = {("hops", "direct"): direct, ("hops", "reasoning"): reasoning}
    rows = rows_over_runs([run, run])
    assert [row["mean"] for row in rows] == pytest.approx([0.6, 1.0])
    assert all("difference" not in row for row in rows)
    assert "direct" in caplog.text
    assert "other queries or documents in run 1" in caplog.text
