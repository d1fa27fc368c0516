"""What a run leaves on record: its folder, its metrics, earlier records, the commit, a table of its jobs."""

import json
import subprocess
from pathlib import Path

import pytest

from search_r3.cli.page.run_page import run_parts
from search_r3.cli.provenance import commit, provenance, write_metrics
from search_r3.cli.run_folder import new_folder
from search_r3.cli.run_log import log_written
from search_r3.cli.run_report import print_run
from search_r3.cli.sweep_table import aligned, sweep_table
from search_r3.files import keep_earlier, write_json

ROOT = Path(__file__).resolve().parents[1]


def test_runs_of_one_second_get_folders_of_their_own(tmp_path):
    from datetime import datetime

    moment = datetime(2026, 1, 2, 3, 4, 5)
    folders = [new_folder("sft", tmp_path, moment) for _ in range(3)]

    assert [folder.relative_to(tmp_path).as_posix() for folder in folders] == [
        "2026-01-02/03-04-05_sft",
        "2026-01-02/03-04-05_sft_2",
        "2026-01-02/03-04-05_sft_3",
    ]


def test_metrics_json_has_the_documented_keys_and_no_nan(tmp_path):
    row = {
        "benchmark": "b",
        "mode": "direct",
        "model": "m",
        "n_queries": 1,
        "n_docs": 2,
        "metrics": {"ndcg@10": 0.5},
    }
    path = tmp_path / "metrics.json"

    write_metrics(path, [row], provenance("python -m src.train", seed=3))

    written = json.loads(path.read_text())
    assert list(written) == ["command", "commit", "seed", "python", "packages", "rows"]
    assert written["seed"] == 3
    assert written["packages"]["torch"].startswith("2.")
    with pytest.raises(ValueError, match="misses metrics"):
        write_metrics(path, [{key: row[key] for key in row if key != "metrics"}], provenance())
    with pytest.raises(ValueError):
        write_metrics(path, [row | {"metrics": {"ndcg@10": float("nan")}}], provenance())
    assert json.loads(path.read_text()) == written  # a refused write leaves the earlier file


def test_a_record_is_kept_before_it_is_replaced_and_once_only(tmp_path):
    record = tmp_path / "config.yaml"
    assert keep_earlier(record, "new") is None
    for number, (earlier, later) in enumerate([("a", "b"), ("b", "c"), ("c", "a")], start=1):
        record.write_text(earlier)
        assert keep_earlier(record, earlier) is None  # it stays as it is
        kept = keep_earlier(record, later)
        assert kept == tmp_path / f"config_before_{number}.yaml"
        assert kept.read_text() == earlier
        assert keep_earlier(record, later) is None  # kept already, as after a kill


def test_only_what_is_there_is_said_to_be_written(tmp_path, caplog):
    (tmp_path / "a").touch()

    with caplog.at_level("INFO", "search_r3"):
        log_written(tmp_path / "a", tmp_path / "b", tmp_path)

    assert [record.getMessage() for record in caplog.records] == [
        f"wrote {tmp_path / 'a'}",
        f"wrote {tmp_path}",
    ]


def test_the_commit_is_that_of_the_checkout():
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if head.returncode != 0:
        pytest.skip("not a git checkout")

    assert commit().removesuffix("-dirty") == head.stdout.strip()


def test_tables_leave_empty_columns_out():
    assert aligned([["job", "state", "error"], ["0", "finished", ""], ["10", "failed", ""]]).splitlines() == [
        "job  state",
        "---  --------",
        "0    finished",
        "10   failed",
    ]


@pytest.mark.parametrize(
    ("finished", "told"),
    [
        ("2026-01-02T04:34:05+00:00", ("after 90 min", "  5400", "1 h 30 min")),
        ("2026-01-02T04:34:05", ()),
        ("soon", ()),
    ],
)
def test_a_run_is_reported_whatever_its_times_are(tmp_path, capsys, finished, told):
    folder = tmp_path / "0"
    folder.mkdir()
    status = {"state": "finished", "started": "2026-01-02T03:04:05+00:00", "finished": finished}
    write_json(folder / "status.json", status)
    print_run(folder)
    reports = capsys.readouterr().out, sweep_table(tmp_path, [["a=1"]])[0], run_parts(folder)

    assert all("finished" in report for report in reports[:2])
    assert "a=1" in reports[1]
    for report, words in zip(reports, told, strict=False):
        assert words in report
