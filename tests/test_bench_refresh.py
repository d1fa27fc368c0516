"""`make bench-refresh` and `make bench-scale`, small: what they write, and how numbers become rows."""

import json
import math
import signal
import sys
import time

import pytest
import torch
from conftest import TEXTS, build_embedder

from search_r3.benchmarks import refresh as bench_refresh
from search_r3.benchmarks import scale as bench_scale
from search_r3.benchmarks.report import coverage, logged_steps, measured, row_of, scheduled_audits
from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.overrides import quote_free_text
from search_r3.cli.run_status import state_of
from search_r3.errors import UsageError
from search_r3.models.folder import save_embedder
from tests.command import LIMIT_S, run, start
from tests.forked_python import forked_python

KEYS = [
    "rule",
    "docs_per_step",
    "share_of_corpus",
    "seconds_per_step",
    "identical_rewards",
    "mean_abs_difference",
    "kendall_tau",
    "advantage_sign_agreement",
    "ndcg@10",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The benchmark on 40 documents: three steps of two rules after the first, an audit at the second."""
    place = tmp_path_factory.mktemp("bench")
    embedder = build_embedder(seed=4)
    with torch.no_grad():
        embedder.causal_lm.get_output_embeddings().weight[embedder.embed_token_id] *= (
            20.0  # or no rollout would write it
        )
    model = save_embedder(embedder, place / "model", {}, is_trained=True)
    rows = []
    for number in range(40):
        query, code = TEXTS[number % 5].split("\n", 1)
        rows.append({"query": f"{query} {number}", "positive": f"{code} # {number}"})
    file = place / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        f"model.path={model}", f"output_dir={place / 'out'}", "rules=[candidates,full]", "data=triples",
        f'data.files=["{file}"]', "data.validation_share=0.2", "stage.trainer.max_steps=4",
        "data.columns.hard_negatives=null",
        'settings.candidates=["refresh.rule.k=2","refresh.background=0.0"]', "refresh.audit_every_n_steps=2",
        "stage.datamodule.batch_size=4", "stage.module.rollouts.group_size=3",
        "stage.module.optimization.learning_rate=0.01", "stage.module.collapse_limits.window=100",
        f"stage.datamodule.cache_dir={place / 'cache'}",
    ]  # fmt: skip
    with forked_python() as python:
        done = run("benchmarks.refresh", *arguments, PYTHON_OF_THE_TESTS=str(python))
    assert done.returncode == 0, done.stdout + done.stderr
    return place, arguments, done


def test_every_rule_gets_a_row_of_its_run(finished):
    place, _, done = finished
    content = json.loads((place / "out" / "metrics.json").read_text())
    candidates, full = content["rows"]
    assert [list(row) for row in (candidates, full)] == [KEYS, KEYS]
    assert (candidates["rule"], full["rule"]) == ("candidates", "full")
    n_documents = content["setting"]["n_documents"]
    assert full["docs_per_step"] == n_documents
    assert full["share_of_corpus"] == full["identical_rewards"] == full["advantage_sign_agreement"] == 1.0
    assert full["mean_abs_difference"] <= 1e-6
    assert 4 <= candidates["docs_per_step"] < n_documents
    assert 0 <= candidates["identical_rewards"] <= 1
    assert all(row["seconds_per_step"] > 0 and 0 <= row["ndcg@10"] <= 1 for row in (candidates, full))
    assert content["setting"]["rollouts_per_step"] == 12
    assert [content["detail"][rule]["n_audits"] for rule in ("candidates", "full")] == [1, 1]
    # one audit in three steps, of what was not encoded at its step
    assert 0 < content["detail"]["candidates"]["audit_documents_per_step"] < n_documents / 3
    for row in (candidates, full):
        seconds = content["detail"][row["rule"]]["seconds"]
        assert sum(seconds.values()) == pytest.approx(row["seconds_per_step"])
        assert json.loads((place / "out" / row["rule"] / "status.json").read_text())["state"] == "finished"
    assert (place / "out" / "metrics.png").read_bytes()[:4] == b"\x89PNG"
    for words in ("agreement with a full re-encode", "seconds per step by part", "2/2 rules", "4/4 steps"):
        assert words in done.stdout + done.stderr


def test_a_finished_rule_is_not_run_again(finished):
    place, arguments, _ = finished
    table = place / "out" / "full" / "csv" / "metrics.csv"
    before, rows = table.stat().st_mtime_ns, json.loads((place / "out" / "metrics.json").read_text())["rows"]
    again = run("benchmarks.refresh", *arguments)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "is finished" in again.stdout
    assert table.stat().st_mtime_ns == before
    assert json.loads((place / "out" / "metrics.json").read_text())["rows"] == rows


def test_what_was_recorded_is_replayed_on_more_rows_by_every_rule(finished):
    place, _, _ = finished
    arguments = [
        f"drift_dir={place / 'out' / 'full' / 'drift'}", f"output_dir={place / 'scale'}", "n_documents=600",
        "n_steps=3", "audit_every_n_steps=1", "rule.certified.rule.miscoverage=0.2",
        "rule.drift.rule.n_sampled=30", "backend.ivf.n_lists=4",
    ]  # fmt: skip
    done = run("benchmarks.scale", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((place / "scale" / "metrics.json").read_text())
    rows = {row["rule"]: row for row in content["rows"]}
    assert list(rows) == ["frozen", "candidates", "graph", "drift", "certified", "full"]
    assert content["setting"]["n_documents"] == 600
    assert rows["full"]["docs_per_step"] == 600
    assert rows["full"]["identical_rewards"] == 1.0
    assert rows["frozen"]["docs_per_step"] <= 4  # the positives of four queries
    assert rows["certified"]["stated_coverage"] == pytest.approx(0.8)
    assert not (place / "scale" / "base.npy").exists()
    written_at = (place / "scale" / "full.json").stat().st_mtime_ns
    again = run("benchmarks.scale", *arguments)
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads((place / "scale" / "metrics.json").read_text())["rows"] == content["rows"]
    assert (place / "scale" / "full.json").stat().st_mtime_ns == written_at
    with ConfigSource() as source, pytest.raises(ValueError, match="made with other settings"):
        bench_scale._done(compose("bench_scale", ["seed=2"], source).config, "full", place / "scale")


def test_an_interrupted_benchmark_interrupts_the_run_of_its_rule_too(finished):
    place, arguments, _ = finished
    arguments = [*arguments, "rules=[frozen]", "stage.trainer.max_steps=100000"]
    process = start("benchmarks.refresh", *arguments, log=place / "interrupted.txt")
    status = place / "out" / "frozen" / "status.json"
    deadline = time.monotonic() + LIMIT_S
    while not (place / "out" / "frozen" / "data_card.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    code, output = process.ended(signal.SIGTERM)
    assert code == 130, output
    assert json.loads(status.read_text())["state"] == "interrupted"
    assert state_of(place / "out") == "interrupted"


@pytest.mark.parametrize(
    ("module", "argument", "words"),
    [
        (bench_refresh, "refresh=full", "the benchmark sets it"),
        (bench_refresh, "rules=[]", "at least one rule"),
        (bench_refresh, "rules=[full,full]", "each once"),
        (bench_refresh, "rules=[a/b]", "names a folder"),
        (bench_refresh, "stage.trainer.max_stesp=3", "Did you mean"),
        (bench_scale, "drift_dir=nowhere", "no recorded drift"),
        (bench_scale, "rules=[ful]", "Did you mean full"),
    ],
)
def test_what_cannot_be_compared_is_refused(nano_folder, monkeypatch, module, argument, words):
    given = [f"model.path={nano_folder}"] if module is bench_refresh else []
    monkeypatch.setattr(sys, "argv", ["bench", *given, argument])
    with pytest.raises(UsageError, match=words):
        composed_and_checked(module, [*given, argument])


def composed_and_checked(module, arguments):
    with ConfigSource() as source:
        name = "bench_" + module.__name__.rpartition(".")[2]
        module.check(compose(name, quote_free_text(arguments), source).config, False)


# ---- from a log to a row


def audit(identical, groups, tau=None, **more):
    values = {"identical_rewards": identical, "mean_abs_difference": 0.25, "groups_compared": groups}
    values |= {"advantage_sign_agreement": 0.75} | ({} if tau is None else {"kendall_tau": tau}) | more
    return {f"index/audit/{name}": value for name, value in values.items()} | {"index/audit/seconds": 2.0}


def test_a_row_is_the_mean_of_its_steps_and_audits():
    steps = [{"index/documents_encoded": n, "index/share_of_corpus": n / 100} for n in (10.0, 20.0, 60.0)]
    audits = [audit(1.0, 4, 0.5), audit(0.5, 1, 1.0), audit(0.9, 0)]
    row = row_of("x", steps, audits, 2.0)
    assert row == {
        "rule": "x", "docs_per_step": 30.0, "share_of_corpus": pytest.approx(0.3), "seconds_per_step": 2.0,
        "identical_rewards": pytest.approx(0.8), "mean_abs_difference": 0.25,
        "kendall_tau": pytest.approx((4 * 0.5 + 1.0) / 5), "advantage_sign_agreement": 0.75,
    }  # fmt: skip
    assert row_of("x", steps, [], 2.0)["identical_rewards"] is None


def test_coverage_is_that_of_the_last_audit_of_a_calibrated_rule():
    def told(band, **observed):
        return audit(1.0, 1, 1.0, stated_coverage=0.99, **observed) | {"index/band": band}

    def observed(coverage, low, high):
        return {
            "observed_coverage": coverage, "observed_coverage_low": low, "observed_coverage_high": high
        }  # fmt: skip

    steps = [
        told(math.inf),
        {"index/band": 0.1},
        told(0.1, **observed(0.97, 0.91, 0.99)),
        told(0.1, **observed(0.98, 0.95, 0.992)),
        {"index/band": 0.1},
    ]
    assert coverage(steps) == (0.99, 0.98, (0.95, 0.992))
    assert scheduled_audits(steps) == steps[2:4]
    assert coverage(steps[:2]) == (0.99, None, None)
    assert coverage([audit(1.0, 1)]) == (None, None, None)


def write_log(run, name, steps, seconds=1.0, last=""):
    (run / "csv").mkdir(parents=True, exist_ok=True)
    lines = ["step,train/seconds/sampling,train/seconds/refresh,train/seconds/search,train/seconds/scoring,"
             "train/seconds/audit,train/seconds/update,train/seconds/table,train/index/encode_seconds,"
             "train/index/documents_encoded,train/index/share_of_corpus,throughput/pairs_per_s,"
             "val/reasoning/ndcg@10"]  # fmt: skip
    for step in steps:
        rate = "" if step == 0 else 4 / (seconds + 10.0)  # 10 s of audit are in the whole step
        lines.append(
            f"{step},{seconds / 4},{seconds / 4},0.0,0.0,10.0,{seconds / 4},0.0,{seconds / 8},5,0.5,{rate},"
        )
    lines.append(f"{max(steps)},,,,,,,,,,,,{last}")
    (run / "csv" / name).write_text("\n".join(lines) + "\n")


def test_seconds_are_told_by_part_without_audits_and_the_rest_is_what_no_part_has(tmp_path):
    write_log(tmp_path, "metrics.csv", range(4), seconds=2.0, last=0.5)
    found = measured("x", tmp_path, batch_size=4)
    assert found.row["seconds_per_step"] == pytest.approx(2.0)
    assert found.row["ndcg@10"] == 0.5
    expected = {"sampling": 0.5, "update": 0.5, "encode": 0.25, "refresh": 0.25, "search": 0, "scoring": 0}
    assert found.seconds == pytest.approx(expected | {"table": 0, "rest": 0.5})
    assert found.other_share == pytest.approx(0.75 / 2)
    assert (found.n_steps, found.median_documents) == (4, 5)


def test_a_resumed_run_is_read_from_all_its_files_and_a_torn_one_is_refused(tmp_path):
    write_log(tmp_path, "metrics_before_resume_1.csv", range(3), last=0.25)
    write_log(tmp_path, "metrics.csv", [2, 3, 4], seconds=2.0)
    steps, ndcg = logged_steps(tmp_path)
    assert [step["step"] for step in steps] == [0, 1, 2, 3, 4]
    assert [step["seconds/sampling"] for step in steps] == [0.25, 0.25, 0.5, 0.5, 0.5]
    assert ndcg == 0.25
    (tmp_path / "csv" / "metrics_before_resume_1.csv").unlink()
    with pytest.raises(ValueError, match="3 steps"):
        logged_steps(tmp_path)
