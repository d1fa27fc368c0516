"""Sweeps: `python -m src.train --multirun`."""

import csv
import json

import pytest
import yaml

from tests.command import call, run
from tests.wandb_files import of_kind, offline_runs


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
    table = output.strip().splitlines()[-9:]

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


def test_the_offline_run_holds_the_configuration_and_what_the_csv_holds(sweep):
    _, _, folder = sweep

    (records,) = offline_runs(folder / "2")

    (run,) = of_kind(records, "run")
    assert run["project"] == "search-r3"
    assert run["run_group"] == "/".join(folder.parts[-2:])
    assert run["config"]["update"]["seed"] == 2
    rows = [each["item"] for each in of_kind(records, "history")]
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


@pytest.fixture
def half_done(tmp_path):
    """A sweep whose first job is finished and whose second one failed: a file that it reads is missing."""
    arguments = ["--multirun", "stage.module.gate=null,steps.txt", "output_dir=my sweep"]
    code, output = call("train", *arguments, cwd=tmp_path)
    assert code == 1
    assert states(tmp_path / "my sweep", 2) == ["finished", "failed"], output
    (tmp_path / "steps.txt").write_text("100")
    return tmp_path, arguments, output


def test_a_sweep_goes_on_with_the_jobs_that_are_not_finished(half_done):
    place, arguments, output = half_done
    assert "to go on with what is not finished: python -m src.train --config-dir" in output
    assert "steps.txt 'output_dir=my sweep' if_exists=resume\n" in output
    finished = (place / "my sweep" / "0" / "metrics.json").stat()

    code, refused = call("train", *arguments, cwd=place)
    assert code == 2
    assert "not empty" in refused
    assert "Go on with it: if_exists=resume" in refused

    further = ["--multirun", "stage.module.gate=null,steps.txt,null", "output_dir=my sweep"]
    code, output = call("train", *further, "if_exists=resume", cwd=place)
    assert code == 0, output
    assert states(place / "my sweep", 3) == ["finished"] * 3
    assert (place / "my sweep" / "0" / "metrics.json").stat() == finished
    assert "my sweep/0 is finished" in output
    assert "to go on with" not in output


def test_a_sweep_goes_on_with_the_jobs_that_it_had_only(half_done):
    place, _, _ = half_done

    for arguments, words in (
        (["stage.module.gate=steps.txt,null", "output_dir=my sweep"], "stage.module.gate: None -> steps.txt"),
        (["stage.module.gate=null", "output_dir=my sweep"], "job 1 is in there, and this sweep has 1 jobs"),
        (["stage.module.gate=null,steps.txt"], "needs output_dir=, the folder of the sweep"),
    ):
        code, output = call("train", "--multirun", *arguments, "if_exists=resume", cwd=place)
        assert code == 2
        assert words in output
    assert states(place / "my sweep", 2) == ["finished", "failed"]


def test_the_report_of_a_sweep_is_of_its_jobs_as_they_are_now(half_done):
    place, _, _ = half_done
    code, output = call("train", "resume=my sweep/1", cwd=place)
    assert code == 0, output

    shown = run("report", "my sweep", cwd=place).stdout

    assert [line.split()[2] for line in shown.splitlines() if line[:1].isdigit()] == ["finished"] * 2
