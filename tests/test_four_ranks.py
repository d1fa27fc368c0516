"""Four CPU processes of torchrun, on one machine or on two, train each stage as one process does."""

import json
import re
import socket
from pathlib import Path

import pytest
import torch
from rl_runs import likely_folder
from safetensors.torch import load_file
from test_rl_resume import write_triples

from tests.closeness import assert_close_in_ulps
from tests.command import run
from tests.torchrun import torchrun

ONE_NODE = [["--nproc-per-node", "4"]]
OF_STAGE = {
    "sft": [],
    "rl": [
        "stage.datamodule.encode_batch=6",
        "stage.module.rollouts.group_size=3",
    ],
}


def two_nodes():
    """What is typed on each of two machines; here both are this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = [
        "--nnodes",
        "2",
        "--nproc-per-node",
        "2",
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        str(port),
    ]
    return [[*common, "--node-rank", str(node)] for node in range(2)]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return arguments_in(tmp_path_factory.mktemp("given"))


def arguments_in(place):
    """What a run is told, whatever its stage; model and rows are written into a folder."""
    rows, model = write_triples(place / "rows.jsonl"), likely_folder(place)
    return [
        "data=triples",
        f'data.files=["{rows}"]',
        "data.columns.hard_negatives=null",
        "data.validation_share=0.2",
        f"model.path={model}",
        "strategy.precision=32-true",
        "stage.trainer.val_check_interval=1",
        "stage.trainer.limit_val_batches=1",
        "stage.callbacks.checkpoint.save_every_n_steps=1",
        "stage.datamodule.batch_size=5",  # no multiple of four
        "stage.datamodule.validation_queries=3",
        "stage.datamodule.validation_documents=8",
        # Far above the rounding of a gradient, by whose size Adam would divide.
        "stage.module.optimization.eps=1.0e-3",
        "stage.module.optimization.learning_rate=1.0e-3",
        "stage.module.optimization.warmup=0",
    ]


@pytest.mark.parametrize("stage", OF_STAGE)
def test_a_stage_trains_resumes_and_gives_one_ranks_result(given, tmp_path, stage):
    arguments = [f"stage={stage}", *given, *OF_STAGE[stage]]
    if stage == "rl":
        arguments.append(f"stage.datamodule.cache_dir={tmp_path / 'cache'}")
    steps = "stage.trainer.max_steps={}".format
    two, four = ["strategy.devices=2", "strategy.num_nodes=2"], ["strategy.devices=4"]
    first, ranks = (two_nodes(), two) if stage == "rl" else (ONE_NODE, four)
    several, alone = tmp_path / "several", tmp_path / "alone"

    codes, output = torchrun(
        tmp_path, first, [*arguments, "strategy=ddp_cpu", *ranks, steps(1), f"output_dir={several}"]
    )
    assert set(codes) == {0}, output
    codes, output = torchrun(tmp_path, first, [f"resume={several}", steps(2)])
    assert set(codes) == {0}, output
    assert output.count("resuming from") == 1, output
    done = run("train", *arguments, "strategy=cpu", steps(2), f"output_dir={alone}", is_merged=True)
    assert done.returncode == 0, done.stdout

    checkpoints = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (several, alone)
    ]
    assert [each["global_step"] for each in checkpoints] == [2, 2]
    start, ours, theirs = (
        load_file(folder / "model.safetensors")
        for folder in (Path(model_of(given)), several / "model", alone / "model")
    )
    moved = 0.0
    for name, weight in theirs.items():
        moved = max(moved, float((weight.float() - start[name].float()).abs().max()))
        assert_close_in_ulps(ours[name].float(), weight.float(), 64)
    assert moved > 1e-4
    rows = [json.loads((run / "metrics.json").read_text())["rows"] for run in (several, alone)]
    assert [row["metrics"] for row in rows[0]] == [
        {name: pytest.approx(value, rel=1e-5) for name, value in row["metrics"].items()} for row in rows[1]
    ]
    assert rows[0]
    if stage == "rl":
        return
    # the same command, typed again, ends at once and in every process
    codes, output = torchrun(
        tmp_path, first,
        [*arguments, "strategy=ddp_cpu", *ranks, steps(2), f"output_dir={several}", "if_exists=resume"],
    )  # fmt: skip
    assert set(codes) == {0}, output
    assert output.count("is finished; to retrain") == 1


def model_of(given):
    return next(each for each in given if each.startswith("model.path=")).removeprefix("model.path=")


def test_a_strategy_for_another_number_of_processes_is_refused(given, tmp_path):
    codes, output = torchrun(
        tmp_path, [["--nproc-per-node", "2"]],
        ["stage=sft", *given, "strategy=cpu", "stage.trainer.max_steps=1", f"output_dir={tmp_path / 'run'}"],
    )  # fmt: skip
    assert codes == [1]
    # of whichever rank is first: torchrun ends the other one
    assert re.search(
        r"^error: (rank 1: )?torchrun started 2 processes, 2 of them on this machine, and the strategy wants "
        r"1: give strategy=ddp_cpu strategy\.devices=2 strategy\.num_nodes=1",
        output,
        re.MULTILINE,
    ), output
    assert not (tmp_path / "run").exists()
