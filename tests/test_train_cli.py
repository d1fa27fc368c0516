"""`python -m src.train` as it is typed: what it leaves, how it fails, how it goes on."""

import csv
import json
import re
import shlex
import shutil
import signal
import socket
import sys
import time

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from search_r3.cli.last_resort import run_command
from search_r3.cli.run_status import state_of
from search_r3.models.folder import load_embedder
from search_r3.train import main
from tests.command import LIMIT_S, call, start, tiny
from tests.tiny_stage import write_configs

STEPS = 8
LIMIT = f"stage.trainer.max_steps={STEPS}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One undisturbed run into a folder of its own choosing."""
    place = tmp_path_factory.mktemp("finished")
    code, output = call("train", LIMIT, cwd=place)
    assert code == 0, output
    (folder,) = (place / "outputs").glob("*/*")
    return folder, output


def logged_steps(folder):
    files = [*sorted((folder / "csv").glob("metrics_before_*.csv")), folder / "csv" / "metrics.csv"]
    rows = [row for file in files for row in csv.DictReader(file.open()) if row["train/loss"]]
    return [int(row["step"]) for row in rows]


def test_a_run_leaves_what_the_design_promises(finished):
    folder, output = finished

    assert re.fullmatch(r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d_tiny", "/".join(folder.parts[-2:]))
    for name in (
        "config.yaml",
        "train.log",
        "metrics.json",
        "status.json",
        "csv/metrics.csv",
        "checkpoints/last.ckpt",
    ):
        assert (folder / name).is_file(), name
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "finished"
    assert status["error"] is None
    assert status["started"] <= status["finished"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "stage=tiny" in metrics["command"]
    assert metrics["seed"] == 1
    (row,) = metrics["rows"]
    assert (row["benchmark"], row["mode"]) == ("tiny-validation", "direct")
    assert (row["n_queries"], row["n_docs"]) == (1, 4)  # what was measured, not what was read
    table = list(csv.DictReader((folder / "csv" / "metrics.csv").open()))
    at_best = [float(line["val/direct/ndcg@10"]) for line in table if line["val/direct/ndcg@10"]]
    assert row["metrics"]["ndcg@10"] == pytest.approx(max(at_best))
    by_id = {"count": STEPS, "share": 1 / 8}  # the tiny stage masks 1 of 8 in every step
    assert metrics["training"]["false_negatives"]["masked_by_id"] == by_id
    assert f"by id {STEPS} (12.500%)" in (folder / "train.log").read_text()
    assert logged_steps(folder) == list(range(STEPS))
    assert "/model" in output
    assert f"{STEPS}/{STEPS} steps" in output


def test_the_model_folder_holds_the_weights_of_the_best_checkpoint(finished):
    folder, _ = finished
    embedder = load_embedder(folder / "model")

    (embedding,) = embedder.embed_queries(["adds one"])
    card = (folder / "model" / "README.md").read_text()

    assert torch.linalg.vector_norm(embedding).item() == pytest.approx(1.0, abs=1e-5)
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == 6  # validated at 3 and 6 of 8 steps, and the tiny stage only gets better
    saved = load_file(folder / "model" / "model.safetensors")
    key = next(name for name in saved if name.endswith("embed_tokens.weight"))
    assert torch.equal(best["state_dict"][f"model.{key}"], saved[key])
    (row,) = json.loads((folder / "metrics.json").read_text())["rows"]
    assert f"| direct | {row['metrics']['ndcg@10']:.4f} |" in card
    assert "\n| loss | " in card
    assert "- optimizer steps: 6\n" in card
    assert "Licence of the training data: made by a test" in card


def test_a_finished_run_says_so_and_does_not_start_again(finished):
    folder, _ = finished
    started = (folder / "status.json").read_text()

    code, output = call("train", LIMIT, f"output_dir={folder}", "if_exists=resume", cwd=folder.parent)
    refused, why = call("train", LIMIT, f"output_dir={folder}", cwd=folder.parent)
    ended, end = call("train", f"resume={folder}", cwd=folder.parent)

    assert code == 0
    assert f"to retrain: rm -r {folder}" in output
    assert refused == 2
    assert "if_exists=resume" in why
    assert ended == 2
    assert "finished; raise a limit" in end
    assert (folder / "status.json").read_text() == started


def test_a_run_folder_that_lost_its_configuration_is_refused_and_left_alone(finished, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(finished[0] / "status.json", folder)

    code, output = call("train", LIMIT, f"output_dir={folder}", "if_exists=resume", cwd=tmp_path)

    assert code == 2
    assert f"output_dir={folder}: the config.yaml of the run in there is missing" in output
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "status.json"]


@pytest.mark.parametrize("go_on", ["resume={}", "output_dir={} if_exists=resume"])
def test_a_config_that_lost_its_end_is_refused(finished, tmp_path, go_on):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    lines = (folder / "config.yaml").read_text().splitlines(keepends=True)
    end = next(number for number, line in enumerate(lines) if line.startswith("strategy:"))
    (folder / "config.yaml").write_text("".join(lines[:end]))

    more = "stage.trainer.max_steps=10"
    code, output = call("train", *go_on.format(folder).split(), more, cwd=tmp_path)

    assert code == 2, output
    assert output.startswith(f"error: {folder / 'config.yaml'}: is damaged or was edited")


def test_resuming_with_a_changed_key_is_refused_and_names_it(finished):
    folder, _ = finished

    code, output = call("train", f"resume={folder}", "stage.module.learning_rate=0.5", cwd=folder.parent)

    assert code == 2
    assert "stage.module.learning_rate: 0.1 -> 0.5" in output
    code, output = call("train", f"resume={folder}", "data=pydocs", cwd=folder.parent)
    assert code == 2
    assert "data: tiny -> pydocs" in output


def refusal(arguments, monkeypatch, capsys):
    """What `python -m src.train` prints and exits with, in this process, which has imported torch already."""
    monkeypatch.setattr(sys, "argv", ["src.train", *arguments])
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        run_command(main)
    signal.signal(signal.SIGTERM, handler)
    return end.value.code, capsys.readouterr().err


def test_fewer_steps_than_were_taken_are_refused_and_leave_all_records(
    finished, tmp_path, monkeypatch, capsys
):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    tiny = ["--config-dir", str(write_configs(tmp_path / "configs")), "stage=tiny", "data=tiny", "model=tiny"]
    for way in ([f"resume={folder}", "trust=[tests]"], [*tiny, f"output_dir={folder}", "if_exists=resume"]):
        code, output = refusal([*way, "stage.trainer.max_steps=5"], monkeypatch, capsys)
        assert code == 2
        assert f"stage.trainer.max_steps=5: the run in {folder} is at step {STEPS}" in output
        assert f"at least {STEPS}" in output

    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_longer_run_adds_to_the_records_and_says_what_changed(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    records = {name: (folder / name).read_text() for name in ("config.yaml", "metrics.json", "train.log")}

    code, output = call("train", f"resume={folder}", "stage.trainer.max_steps=10", cwd=tmp_path)

    assert code == 0, output
    assert f"changed since the earlier call: stage.trainer.max_steps: {STEPS} -> 10" in output
    assert OmegaConf.load(folder / "config.yaml").stage.trainer.max_steps == 10
    assert (folder / "config_before_1.yaml").read_text() == records["config.yaml"]
    assert (folder / "metrics_before_1.json").read_text() == records["metrics.json"]
    command = json.loads((folder / "provenance_before_1.json").read_text())["command"]
    assert command == json.loads(records["metrics.json"])["command"]
    assert (folder / "train.log").read_text().startswith(records["train.log"])
    assert logged_steps(folder) == list(range(10))
    for line in output.splitlines():
        if line.startswith(("wrote ", "kept ")):
            assert (tmp_path / line.partition(" ")[2]).exists(), line


def step_of(path):
    """Of a checkpoint, which is replaced whole; None where there is none yet."""
    return torch.load(path, weights_only=True)["global_step"] if path.is_file() else None


def wait_for_step(path, step, process):
    """Until the checkpoint is of this step, at which the gate holds the run."""
    deadline = time.monotonic() + LIMIT_S
    while step_of(path) != step:
        assert process.is_alive, process.output
        assert time.monotonic() < deadline, f"{path} did not come to step {step}"
        time.sleep(0.05)


def opened_to(gate, step):
    """The gate lets a run take so many steps."""
    part = gate.with_suffix(".part")
    part.write_text(str(step))
    part.replace(gate)


def test_a_run_goes_on_after_a_kill_and_after_ctrl_c_and_ends_as_if_undisturbed(finished, tmp_path):
    folder = tmp_path / "my runs" / "a=1, [b] ${x}"  # Hydra and OmegaConf would take this path apart
    last, gate = folder / "checkpoints" / "last.ckpt", tmp_path / "gate"
    arguments = [LIMIT, f"output_dir={folder}", "if_exists=resume", f"stage.module.gate={gate}"]
    arguments += ["stage.callbacks.checkpoint.save_every_n_steps=1"]

    log = tmp_path / "output.txt"
    opened_to(gate, 1)
    process = start("train", *tiny(arguments, tmp_path), log=log, cwd=tmp_path)
    wait_for_step(last, 1, process)
    busy, why = call("train", *arguments, cwd=tmp_path)
    process.ended(signal.SIGKILL)
    assert busy == 2
    assert f"process {process.pid} on {socket.gethostname()} works in it" in why
    assert state_of(folder) == "interrupted"

    opened_to(gate, 4)
    process = start("train", *tiny(arguments, tmp_path), log=log, cwd=tmp_path)
    wait_for_step(last, 4, process)
    code, output = process.ended(signal.SIGINT)
    assert code == 130, output
    assert "Traceback" not in output
    configs, last_line = tmp_path / "configs", output.rstrip().splitlines()[-1]
    to_type = ["python", "-m", "src.train", "--config-dir", str(configs), f"resume={folder}"]
    assert last_line == f"interrupted; to go on: {shlex.join(to_type)}"
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["error"]) == ("interrupted", None)  # and not a KeyboardInterrupt

    opened_to(gate, STEPS)
    code, output = call("train", *shlex.split(last_line)[-3:], cwd=tmp_path)
    assert code == 0, output
    assert "resuming from" in output
    assert state_of(folder) == "finished"
    training = [json.loads((each / "metrics.json").read_text())["training"] for each in (finished[0], folder)]
    assert training[1] == training[0]
    undisturbed = load_file(finished[0] / "model" / "model.safetensors")
    resumed = load_file(folder / "model" / "model.safetensors")
    for name in undisturbed:
        torch.testing.assert_close(resumed[name], undisturbed[name])
    stored = OmegaConf.load(folder / "config.yaml")
    assert stored.output_dir == str(folder)
    assert stored.stage.callbacks.checkpoint.folder == f"{folder}/checkpoints"
    known = ("configs", ".cache", gate.name, log.name)
    assert [path.name for path in tmp_path.iterdir() if path.name not in known] == ["my runs"]


def test_a_run_killed_while_its_model_is_written_writes_the_same_one(finished, tmp_path):
    whole, folder = finished[0], tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "model")
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"state": "running"}))

    code, output = call("train", f"resume={folder}", cwd=tmp_path)

    assert code == 0, output
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (folder / "model" / name).read_bytes() == (whole / "model" / name).read_bytes(), name
    facts = [json.loads((each / "model" / "search_r3.json").read_text()) for each in (folder, whole)]
    origins = [each.pop("provenance") for each in facts]
    for each in facts:
        del each["checksums"]["search_r3.json"]  # that of the provenance too
    assert facts[0] == facts[1]
    for name in ("losses", "validation", "step"):
        assert origins[0][name] == origins[1][name], name
        assert origins[1][name], name


def test_a_run_shorter_than_the_interval_of_the_log_has_a_line_of_its_last_step(tmp_path):
    short = ["stage.trainer.max_steps=2", "stage.trainer.log_every_n_steps=5", "output_dir=run"]
    code, output = call("train", *short, cwd=tmp_path)
    assert code == 0, output
    assert logged_steps(tmp_path / "run") == [1]


def test_a_folder_named_as_the_home_folder_is_written_where_it_lies(tmp_path):
    home, place = tmp_path / "home", tmp_path / "place"
    home.mkdir()
    place.mkdir()

    code, output = call("train", LIMIT, "output_dir=./~", cwd=place, HOME=str(home))

    assert code == 0, output
    assert (place / "~" / "checkpoints" / "last.ckpt").is_file()
    assert list(home.rglob("*.ckpt")) == []


def test_two_ranks_share_one_run_folder_and_one_record(tmp_path):
    code, output = call("train", "strategy=ddp_cpu", "save_dtype=bfloat16", cwd=tmp_path)

    assert code == 0, output
    (folder,) = (tmp_path / "outputs").glob("*/*")  # the second rank made none of its own
    assert state_of(folder) == "finished"
    assert (folder / "train.rank1.log").is_file()
    written = [line for line in output.splitlines() if line.startswith("wrote ")]
    assert len(written) == len(set(written)) == 4  # model, metrics.json, metrics.csv, curves.png: by one rank
    saved = load_file(folder / "model" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}
    masked = json.loads((folder / "metrics.json").read_text())["training"]["false_negatives"]
    assert masked["masked_by_id"] == {"count": 2 * 6, "share": 1 / 8}  # both ranks, six steps


def test_under_an_external_launcher_the_ranks_must_be_told_their_folder(tmp_path):
    code, output = call("train", cwd=tmp_path, WORLD_SIZE="2", RANK="0", LOCAL_RANK="0")

    assert code == 2
    assert "output_dir=" in output
