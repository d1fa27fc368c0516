"""The HTML page of runs and sweeps: its numbers are those of the files, its texts are texts."""

import base64
import csv
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_evaluation_page import evaluation  # noqa: F401

from search_r3.errors import UsageError
from search_r3.report import main
from tests.html_pages import page_of, read_page

HOSTILE = "</style></script><script>alert(1)</script>\"'><img src=x onerror=alert(2)> & \u202eabc\x00\x07 <b>"
"""What would end an element, an attribute or the style, load a file or turn the direction of what follows."""
ROOT = Path(__file__).resolve().parents[1]
SHOWN = HOSTILE.replace("\x00", "\ufffd").replace("\x07", "\ufffd")


# ---- a run


def columns_of(file: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every column of a metrics.csv."""
    found: dict[str, list[tuple[int, float]]] = {}
    with file.open(newline="") as stream:
        for line in csv.DictReader(stream):
            for name, text in line.items():
                if text and name not in ("step", "epoch"):
                    found.setdefault(name, []).append((int(line["step"]), float(text)))
    return found


def write_csv(folder: Path, n_steps: int, names: list[str], seed: int = 1) -> Path:
    """A metrics.csv of a random walk for every name."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(n_steps, len(names))).cumsum(0).round(4)
    file = folder / "csv" / "metrics.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(["epoch", "step", *names])]
    lines += [",".join(["0", str(step), *map(str, row)]) for step, row in enumerate(values.tolist())]
    file.write_text("\n".join(lines) + "\n")
    return file


def rollout(step: int, query: str, reward: float, text: str = "words", /, **others) -> str:
    row = {"step": step, "query_id": query, "query": f"asks for {query}", "reasoning": text, "reward": reward}
    row |= {"rank_before": 7, "rank_after": 3, "top": ["a"], "is_stale": [False]} | others
    return json.dumps(row) + "\n"


RL = [
    "train/loss", "train/reward", "train/reward_spread", "train/entropy", "train/kl", "train/learning_rate",
    "train/index/documents_encoded", "train/index/age_mean", "train/index/audit/identical_rewards",
    "train/index/audit/mean_difference", "val/direct/ndcg@10", "train/extra_of_mine",
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of 30 steps."""
    folder = tmp_path / "run"
    write_csv(folder, 30, RL)
    (folder / "config.yaml").write_text(
        "output_dir: run\nseed: 3\nstage:\n  name: rl\n  trainer: {max_steps: 30}\nmodel: {path: sft/model}\n"
    )
    times = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:30:00+00:00"}
    status = {"state": "finished", "error": None, "host": "a-machine"} | times
    (folder / "status.json").write_text(json.dumps(status))
    origin = {"command": "python -m src.train stage=rl", "commit": "c0ffee", "seed": 3, "python": "3.11.9"}
    origin |= {"packages": {"torch": "2.13.0"}, "choices": {"strategy": "gpu"}, "overrides": ["stage=rl"]}
    (folder / "provenance.json").write_text(json.dumps(origin))
    (folder / "data_card.json").write_text('{"name": "functions"}')
    row = {"benchmark": "b", "mode": "direct", "model": "m", "n_queries": 7, "n_docs": 90}
    row["metrics"] = {"ndcg@10": 0.51234, "mrr@10": 0.25}
    (folder / "metrics.json").write_text(json.dumps({**origin, "rows": [row]}))
    lines = [
        rollout(0, "x", 0.1, "early"),
        rollout(0, "x", 0.5),
        rollout(9, "x", 0.75, "late"),
        rollout(9, "y", 1),
    ]
    (folder / "completions.jsonl").write_text("".join(lines))
    return folder


def test_a_run_says_what_was_run_and_its_curves_have_the_numbers_of_the_csv(run, tmp_path):
    page = page_of(tmp_path, run)

    said = {each.text for each in page.every("dd")}
    told = {
        "python -m src.train stage=rl",
        "c0ffee",
        "a-machine",
        "30 min",
        "2026-01-01 00:00 UTC",
        "gpu",
        "3",
    }
    assert told | {"functions", "sft/model", "3.11.9", "29 (limit 30)", "2.13.0"} <= said
    logged = columns_of(run / "csv" / "metrics.csv")
    legends = " ".join(" ".join(each.text.split()) for each in page.every("figcaption"))
    for name in RL[:-1]:
        first, last = logged[name][0][1], logged[name][-1][1]
        assert f"{first:.4g} → {last:.4g}" in legends, name
    rows = {row["column"]: row for row in page.rows(-1)}
    assert rows.keys() == set(RL)
    for name, row in rows.items():
        values = [value for _, value in logged[name]]
        expected = [values[0], values[-1], min(values), max(values)]
        assert [float(row[key]) for key in ("first", "last", "lowest", "highest")] == pytest.approx(expected)
        assert row["values"] == "30"


def test_a_curve_is_drawn_where_its_values_are(run, tmp_path):
    page = page_of(tmp_path, run)

    logged = columns_of(run / "csv" / "metrics.csv")
    drawn = {each.attributes["aria-label"]: each for each in page.every("svg", "chart")}
    for title, name in (("Loss", "train/loss"), ("nDCG@10", "val/direct/ndcg@10")):
        (line,) = drawn[f"{title} by step"].every("polyline")
        points = np.array([pair.split(",") for pair in line.attributes["points"].split()], dtype=float)
        steps, values = np.array(logged[name]).T
        # the image has 1,000 units on both sides, downwards, and 6 % of the span free above and below or a 0
        assert points[:, 0] == pytest.approx(1000 * steps / 29, abs=0.06)
        slope, offset = np.polyfit(values, points[:, 1], 1)
        assert slope < 0
        assert slope * values + offset == pytest.approx(points[:, 1], abs=0.06)
        assert points[:, 1].min() >= 0
        assert points[:, 1].max() <= 1000


def test_validation_ledger_and_rollouts_are_those_of_the_files(run, tmp_path):
    page = page_of(tmp_path, run)

    (row,) = page.section("Results on validation").rows()
    assert row == {
        "collection": "b", "mode": "direct", "queries": "7", "documents": "90", "ndcg@10": "0.5123",
        "mrr@10": "0.2500",
    }  # fmt: skip
    logged = {name: dict(points) for name, points in columns_of(run / "csv" / "metrics.csv").items()}
    ledger = page.section("Staleness ledger").rows()
    assert [int(each["step"]) for each in ledger] == list(range(30))
    for each in ledger:
        for heading, name in (("identical rewards", "audit/identical_rewards"), ("mean age", "age_mean")):
            assert float(each[heading]) == pytest.approx(
                logged[f"train/index/{name}"][int(each["step"])], rel=1e-3
            )
    (query,) = page.section("Rollouts before and after").every("article")  # y was written about once
    early, late = (each.text for each in query.every("div", "sides").__next__().parts)
    assert early.startswith("step 0: mean reward 0.300, 2 rollouts0.500words")
    assert late.startswith("step 9: mean reward 0.750, 1 rollouts0.750laterank 7 → 3")


def test_the_page_needs_nothing_from_elsewhere_and_allows_nothing_else(run, tmp_path):
    page = page_of(tmp_path, run)

    for node in page.every():
        assert node.name not in ("img", "link", "iframe", "object", "embed", "form", "base")
        assert not [name for name in node.attributes if name.startswith("on") or name == "style"], node
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (node.attributes.get(name) or "#").startswith("#")
    (policy,) = (
        each.attributes["content"]
        for each in page.every("meta")
        if each.attributes.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for name, rule in (("style", "style-src"), ("script", "script-src")):
        (node,) = page.every(name)
        digest = base64.b64encode(hashlib.sha256(node.text.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    (style,) = page.every("style")
    assert "url(" not in style.text
    assert "@import" not in style.text


def test_text_of_others_is_text_wherever_it_stands(run, tmp_path):
    folder = run.rename(tmp_path / "run <b> & ' x")
    origin = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps(origin | {"command": HOSTILE, "python": HOSTILE}))
    lines = [rollout(step, HOSTILE, 0.5, HOSTILE + "\ud800", query=HOSTILE) for step in (0, 9)]
    (folder / "completions.jsonl").write_text("".join(lines))
    file = folder / "csv" / "metrics.csv"
    file.write_text(file.read_text().replace("train/extra_of_mine", "val/<i>x/ndcg@10"))
    results = json.loads((folder / "metrics.json").read_text())
    results["rows"][0] |= {"benchmark": HOSTILE, "mode": HOSTILE}
    (folder / "metrics.json").write_text(json.dumps(results))
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"state": "failed", "error": HOSTILE}))

    page = page_of(tmp_path, folder)

    assert len(list(page.every("script"))) == len(list(page.every("style"))) == 1
    assert not list(page.every("b")) + list(page.every("img")) + list(page.every("i"))
    assert page.text.count(SHOWN) >= 8
    assert f"{SHOWN}\ufffd" in page.section("Rollouts before and after").text
    assert HOSTILE.count("<script>") == 1
    assert "run <b> & ' x" in page.headings[0]


@pytest.mark.parametrize(
    "left_out", ["csv", "completions.jsonl", "metrics.json", "provenance.json", "data_card.json"]
)
def test_what_is_missing_is_left_out_without_a_heading(run, tmp_path, left_out):
    path = run / left_out
    shutil.rmtree(path) if path.is_dir() else path.unlink()

    page = page_of(tmp_path, run)

    for each in page.every("section"):
        heading, *others = each.parts
        assert heading.name in ("h2", "h3", "h4")
        assert any(list(part.every()) for part in others), heading.text  # more than a note
    gone = {
        "csv": "Loss",
        "completions.jsonl": "Rollouts before and after",
        "metrics.json": "Results on validation",
    }
    assert gone.get(left_out) not in page.headings
    assert len(page.headings) >= 3


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("interrupted", "This run was interrupted: what follows ends with step 29. To go on: "),
        ("failed", "This run failed: what follows ends with step 29. To go on: "),
        ("pruned", "This trial was pruned: what follows ends with step 29."),
        ("running", "This run was interrupted: "),  # it says so, and nobody holds its lock
    ],
)
def test_a_run_that_did_not_come_to_its_end_says_so(run, tmp_path, state, words):
    (run / "status.json").write_text(json.dumps({"state": state, "error": "it broke"}))

    (notice,) = page_of(tmp_path, run).every("div", "notice")

    assert notice.text.startswith(words)
    assert ("resume=" in notice.text) == words.endswith(("go on: ", "interrupted: "))
    assert ("it broke" in notice.text) == (state in ("failed", "pruned"))


def test_rollouts_of_no_query_twice_are_the_first_and_the_last(run, tmp_path):
    lines = [rollout(step, f"q{step}", step / 10, f"text {step}") for step in range(10)]
    (run / "completions.jsonl").write_text("".join(lines) + rollout(11, "cut", 1.0)[:-9])

    part = page_of(tmp_path, run).section("Rollouts before and after")

    assert "No query was recorded at two steps" in part.text
    assert [each.text.split(":")[0] for each in part.every("h4")] == ["step 0", "step 9"]


def test_a_long_run_is_thinned_and_its_peaks_stay(run, tmp_path):
    file = write_csv(run, 30_000, RL[:4])
    text = file.read_text().splitlines()
    peak = text[12_345].split(",")
    text[12_345] = ",".join([*peak[:2], "1e6", *peak[3:]])  # of the loss, at step 12,344
    file.write_text("\n".join(text) + "\n")
    lines = (rollout(step, f"q{step % 700}", 0.5, "word " * 2000) for step in range(1400))
    (run / "completions.jsonl").write_text("".join(lines))  # 14 MB

    page = page_of(tmp_path, run)

    assert (tmp_path / "page" / "page.html").stat().st_size < 600_000
    logged = columns_of(file)
    lines = {each.attributes["aria-label"]: each for each in page.every("svg", "chart")}
    for title, name in (("Loss by step", "train/loss"), ("Reward by step", "train/reward")):
        (line,) = lines[title].every("polyline")
        points = [tuple(map(float, pair.split(","))) for pair in line.attributes["points"].split()]
        assert 500 <= len(points) <= 1000
        steps, values = zip(*logged[name], strict=True)
        for extreme, pick in ((max(values), min), (min(values), max)):
            x = 1000 * steps[values.index(extreme)] / 29_999
            assert (round(x, 1), pick(y for _, y in points)) in points
    shown = page.section("Rollouts before and after")
    assert [each.text[:8] for each in shown.every("h4")][:2] == ["step 0: ", "step 700"]
    assert "(10,000 characters)" not in shown.text  # no text is kept as a whole
    assert sum(each.text == "q0" for each in shown.every("p", "id")) == 1


def _with(old: str, new: str):
    return lambda text: text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("csv/metrics.csv", _with("\n0,7,", "\n0,7,broken"), "line 9: 'train/loss' must be a number"),
        ("csv/metrics.csv", _with("\n0,7,", "\n0,seven,"), "line 9: 'step' must be a whole number"),
        ("csv/metrics.csv", _with("\n0,7,", "\n0,7\n0,7,"), "line 9: has 2 fields, the heading has 14"),
        ("csv/metrics.csv", _with("step", "stop"), "line 1: the heading has no column step"),
        ("completions.jsonl", lambda text: text + "{broken}\n", "line 5: each line must be one JSON object"),
        ("completions.jsonl", lambda text: text + "[1]\n", "line 5: each line must be a JSON object"),
        ("completions.jsonl", _with("0.75", "NaN"), "line 3: reward must be a finite number"),
        ("completions.jsonl", _with('"query"', '"asked"'), "line 1: key 'query' is missing"),
        ("metrics.json", lambda text: text[:-20], "is damaged"),
        ("provenance.json", lambda text: "[]", "must hold an object"),
        ("status.json", _with("finished", "done"), "state must be one of"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_error_with_its_name_and_line(run, tmp_path, name, change, told):
    file = run / name
    file.write_text(change(file.read_text()))

    with pytest.raises(UsageError, match=rf"^{re.escape(str(file))}: {told}"):
        page_of(tmp_path, run)

    assert not (tmp_path / "page" / "page.html").exists()


# ---- sweeps, several, and the command


@pytest.fixture
def sweep(run, tmp_path) -> Path:
    """Four jobs over a rate and a reward, of which the last failed."""
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "multirun.yaml").write_text("x: 1\n")
    for number, (rate, reward) in enumerate(
        [(1e-4, "dcg"), (1e-4, "margin"), (1e-2, "dcg"), (1e-2, "margin")]
    ):
        job = shutil.copytree(run, folder / str(number))
        write_csv(job, 30, RL, seed=number)
        (job / "config.yaml").write_text(
            f"output_dir: {job}\nstage:\n  name: rl\n  rate: {rate}\nreward: {{x: 1}}\n"
        )
        origin = json.loads((job / "provenance.json").read_text())
        origin["overrides"] = [f"stage.rate={rate}", f"reward={reward}", "seed=3", f"output_dir={job}"]
        (job / "provenance.json").write_text(json.dumps(origin | {"choices": {"reward": reward}}))
        results = json.loads((job / "metrics.json").read_text())
        results["rows"][0]["metrics"]["ndcg@10"] = number / 10
        (job / "metrics.json").write_text(json.dumps(results))
    (job / "status.json").write_text(json.dumps({"state": "failed", "error": "ValueError: <rate>"}))
    (job / "metrics.json").unlink()
    (job / "csv" / "metrics.csv").unlink()
    return folder


def test_a_sweep_is_a_table_and_a_line_for_each_job_that_came_to_something(sweep, tmp_path):
    page = page_of(tmp_path, sweep)

    jobs = page.section("Jobs").rows()
    assert [(each["stage.rate"], each["reward"]) for each in jobs[:2]] == [
        ("0.0001", "dcg"),
        ("0.0001", "margin"),
    ]
    assert [each["direct ndcg@10"] for each in jobs] == ["0.0000", "0.1000", "0.2000", ""]
    assert (jobs[3]["state"], jobs[3]["error"]) == ("failed", "ValueError: <rate>")
    assert "seed" not in jobs[0]  # it is that of all
    lines = list(page.section("Settings and results").every("polyline"))
    by_job = {each.text.split(",")[0]: each for each in lines}
    assert by_job.keys() == {"job 0", "job 1", "job 2"}
    ends = {job: line.attributes["points"].split()[-1] for job, line in by_job.items()}
    assert ends == {"job 0": "1000.0,1000.0", "job 1": "1000.0,500.0", "job 2": "1000.0,0.0"}
    assert "level4" not in by_job["job 0"].classes
    assert by_job["job 2"].text == "job 2, stage.rate=0.01, reward=dcg, direct ndcg@10 0.2000"


def test_runs_and_evaluations_stand_on_one_page_with_a_list_of_its_parts(
    run,
    evaluation,  # noqa: F811
    tmp_path,
):
    other = shutil.copytree(run, tmp_path / "other")

    page = page_of(tmp_path, run, other, evaluation)

    (nav,) = page.every("nav")
    places = [each.attributes["href"].removeprefix("#") for each in nav.every("a")]
    assert places == [each.attributes["id"] for each in page.every("h2")]
    assert [each.text for each in nav.every("a")] == [
        str(run),
        str(other),
        "The runs side by side",
        "Evaluation",
    ]
    assert sum(heading == "Loss" for heading in page.headings) == 2


def test_the_page_lies_in_the_folder_or_where_it_is_asked_for(run, tmp_path, capsys):
    assert main([str(run), "--html"]) == 0
    assert capsys.readouterr().out.endswith(f"page: {run / 'report.html'}\n")
    assert read_page(run / "report.html").headings[0].startswith(f"Run {run}")
    assert main([str(run)]) == 0
    assert "page:" not in capsys.readouterr().out

    with pytest.raises(UsageError, match=r"--html .*: is a folder; name the file"):
        main(["--html", str(tmp_path), str(run)])
    with pytest.raises(UsageError, match=r"--html .*: no folder is left to report; put --html behind all"):
        main(["--html", str(run)])
    with pytest.raises(UsageError, match="name what to report"):
        main([])
    with pytest.raises(UsageError, match=r"nowhere: no such file or folder$"):
        main([str(tmp_path / "nowhere")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"writes it\. The folder is no training run and no sweep either"):
        main([str(tmp_path / "empty")])
    with pytest.raises(UsageError, match="--output writes the rows of evaluations, and none was given"):
        main([str(run), "--output", str(tmp_path / "x.json")])
    with pytest.raises(UsageError, match="--html shows runs and evaluations each"):
        main([str(run), "--runs", "--html"])


@pytest.mark.parametrize("flag", ["--html", "--output"])
def test_a_file_of_another_kind_is_not_written_over(run, tmp_path, flag):
    """`--html a/metrics.json b/metrics.json` reads the first one as the page."""
    file = tmp_path / "corpus.jsonl"
    file.write_text("kept")
    with pytest.raises(UsageError, match=rf"^{flag} .*corpus\.jsonl: a file that ends in \.\w+ is needed"):
        main([flag, str(file), str(run)])
    assert file.read_text() == "kept"


def test_make_report_names_runs_and_the_others_of_make_end_by_writing_a_page(run, tmp_path):
    def recipe(target: str, *variables: str) -> str:
        done = subprocess.run(
            ["make", "--no-print-directory", "--dry-run", "--always-make", target, "VENV=no", *variables],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.replace("\\\n", " ")

    asked = recipe("report", f"RUN={run}", "HTML=page.html")
    assert f'set -- "{run}"' in asked
    assert re.search(r'no/bin/python -m src.report "\$@" --html "page.html"', asked)
    for target, place, variables in (
        ("train", "quickstart", ()),
        ("hops", "hops", ()),
        ("science", "science", ("SCIENCE_DIR=x",)),
    ):
        lines = recipe(target, *variables).splitlines()
        (command,) = (line for line in lines if "src.report" in line)
        assert f"--html outputs/{place}/report.html" in command
        assert (
            f"outputs/{place}/sft outputs/{place}/rl outputs/{place}/eval/sft outputs/{place}/eval/rl"
            in command
        )
        assert f"report    outputs/{place}/report.html" in lines[-1]
