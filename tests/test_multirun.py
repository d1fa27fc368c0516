"""Sweeps: `python -m src.train --multirun`."""

import csv
import json

import pytest
import yaml
from wandb.proto.wandb_internal_pb2 import Record

from tests.command import call


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three jobs of which the second fails."""
    place = tmp_path_factory.mktemp("sweep")
    jobs = ["seed=1,2", "stage.module.fails_at_step=null,1", "stage.trainer.max_steps=3", "logger=wandb"]
    code, output = call("train", "--multirun", *jobs, cwd=place, WANDB_API_KEY="", HOME=str(place))
    (folder,) = (place / "outputs" / "multirun").glob("*/*")
    return code, output, folder


def states(folder, count):
    return [json.loads((folder / str(job) / "status.json").read_text())["state"] for job in range(count)]


def test_each_job_has_its_own_folder_config_log_metrics_and_status(sweep):
    _, output, folder = sweep

    assert states(folder, 4) == ["finished", "failed", "finished", "failed"], output
    for job, seed in enumerate((1, 1, 2, 2)):
        config = yaml.safe_load((folder / str(job) / "config.yaml").read_text())
        assert config["seed"] == seed
        assert (folder / str(job) / "train.log").stat().st_size > 0
    metrics = [json.loads((folder / job / "metrics.json").read_text()) for job in ("0", "2")]
    assert [each["seed"] for each in metrics] == [1, 2]
    assert metrics[0]["rows"] != metrics[1]["rows"]  # another seed is another model


def test_pitfall_21_a_failed_job_leaves_its_traceback_in_its_own_log_only(sweep):
    _, _, folder = sweep
    logs = [(folder / str(job) / "train.log").read_text() for job in range(4)]

    assert ["Traceback (most recent call last)" in log for log in logs] == [False, True, False, True]
    assert "RuntimeError: this job was told to fail" in logs[1]
    assert [log.count("resuming") for log in logs] == [0, 0, 0, 0]


def test_a_table_of_all_jobs_ends_the_sweep_and_a_failure_its_exit_code(sweep):
    code, output, folder = sweep
    table = output.strip().splitlines()[-8:]

    assert code == 1
    assert table[-1].endswith(folder.name)
    rows = [line.split() for line in table if line[:1].isdigit()]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    assert "seed=2" in rows[2]
    assert "failed" in rows[1]
    assert "direct" in rows[0]  # and its nDCG@10
    assert "told to fail" in " ".join(rows[1])
    logged = csv.DictReader((folder / "0" / "csv" / "metrics.csv").open())
    last_loss = [line["train/loss"] for line in logged if line["train/loss"]][-1]
    assert f"{float(last_loss):.4g}" in rows[0], "what it came to where it validates nothing"
    assert (folder / "summary.txt").read_text().splitlines()[0].startswith("job")


def test_pitfall_22_each_job_is_a_wandb_run_of_its_own_offline_and_without_an_account(sweep):
    _, output, folder = sweep

    for job in range(4):
        (record,) = (folder / str(job) / "wandb").glob("offline-run-*/run-*.wandb")
        assert record.stat().st_size > 0, output
    names = {path.name for path in folder.glob("*/wandb/offline-run-*/run-*.wandb")}
    assert len(names) == 4


def wandb_records(path):
    """Records of a `.wandb` file: 7 bytes, then LevelDB's log format with blocks of 32 KiB.

    A part of a record is checksum (4 bytes), length (2), kind (1 byte: 1 whole, 2 first, 3 middle, 4 last),
    content; under 7 bytes at a block's end are filling.
    https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    content, place, record = path.read_bytes(), 7, b""
    assert content.startswith(b":W&B")
    while place < len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield Record.FromString(record)
            record = b""


def test_the_offline_run_holds_the_configuration_and_what_the_csv_holds(sweep):
    _, _, folder = sweep
    (path,) = (folder / "2" / "wandb").glob("offline-run-*/run-*.wandb")

    records = list(wandb_records(path))

    (run,) = (each.run for each in records if each.HasField("run"))
    assert run.project == "search-r3"
    assert run.run_group == "/".join(folder.parts[-2:])
    assert json.loads({item.key: item.value_json for item in run.config.update}["seed"]) == 2
    history = [each.history.item for each in records if each.HasField("history")]
    rows = [{item.nested_key[0]: json.loads(item.value_json) for item in items} for items in history]
    table = list(csv.DictReader((folder / "2" / "csv" / "metrics.csv").open()))
    for name in ("train/loss", "val/direct/ndcg@10"):
        expected = [float(line[name]) for line in table if line[name]]
        assert [row[name] for row in rows if name in row] == pytest.approx(expected), name
        assert expected


def test_bad_data_is_one_error_before_a_model_is_made_and_fail_fast_skips_the_rest(tmp_path):
    jobs = ["data.is_broken=true,false", "sweep.fail_fast=true", "output_dir=my sweep"]
    code, output = call("train", "--multirun", *jobs, cwd=tmp_path)

    assert code == 1
    assert states(tmp_path / "my sweep", 2) == ["failed", "skipped"], output
    failed = tmp_path / "my sweep" / "0"
    lines = output.strip().splitlines()
    assert lines[1] == "error: ValueError: rows.jsonl:3: query is empty"
    assert lines[2] == "traceback: my sweep/0/train.log"
    assert "model:" not in output
    assert "Traceback (most recent call last)" not in output
    assert "Traceback (most recent call last)" in (failed / "train.log").read_text()
    assert (
        json.loads((failed / "status.json").read_text())["error"]
        == "ValueError: rows.jsonl:3: query is empty"
    )


def test_a_sweep_is_checked_whole_before_its_first_job(tmp_path):
    for arguments, words in (
        (["seed=1,2", "strategy=ddp_cpu"], "2 ranks per job"),
        (["seed=1,2", "data=tiny,tyni"], "data=tyni does not exist"),
        (["sede=1,2"], "Did you mean seed"),
    ):
        code, output = call("train", "--multirun", *arguments, cwd=tmp_path)
        assert code == 2
        assert words in output
        assert not (tmp_path / "outputs").exists()
