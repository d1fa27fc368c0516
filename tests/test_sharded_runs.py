"""`strategy=fsdp` as it is typed, in some processes of torchrun on the CPU: train, save, resume."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_four_ranks import OF_STAGE, arguments_in, model_of

from tests.closeness import assert_close_in_ulps
from tests.command import run
from tests.torchrun import torchrun

LORA = ["model.tuning._target_=search_r3.models.tuning.LoraTuning"]
CASES = {
    "sft": (3, ["stage=sft", *OF_STAGE["sft"]]),  # no number of rows is a multiple of three
    "rl": (2, ["stage=rl", *OF_STAGE["rl"]]),
    "rl, LoRA": (4, ["stage=rl", *OF_STAGE["rl"], *LORA]),
}
"""Processes, and what they are told."""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return arguments_in(tmp_path_factory.mktemp("given"))


@pytest.mark.parametrize("case", CASES)
def test_a_stage_trains_resumes_and_gives_one_ranks_result(given, tmp_path, case):
    n_ranks, told = CASES[case]
    arguments = [*given, *told]
    nodes = [["--nproc-per-node", str(n_ranks)]]
    sharded = ["strategy=fsdp", "strategy.accelerator=cpu", f"strategy.devices={n_ranks}"]
    if "stage=rl" in arguments:
        arguments.append(f"stage.datamodule.cache_dir={tmp_path / 'cache'}")
    steps = "stage.trainer.max_steps={}".format
    several, alone = tmp_path / "several", tmp_path / "alone"
    codes, output = torchrun(tmp_path, nodes, [*arguments, *sharded, steps(1), f"output_dir={several}"])
    assert set(codes) == {0}, output
    codes, output = torchrun(tmp_path, nodes, [f"resume={several}", steps(2)])  # no trust=[checkpoints]
    assert set(codes) == {0}, output
    assert output.count("resuming from") == 1, output
    done = run("train", *arguments, "strategy=cpu", steps(2), f"output_dir={alone}", is_merged=True)
    assert done.returncode == 0, done.stdout

    ours, theirs = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (several, alone)
    )
    assert ours["global_step"] == theirs["global_step"] == 2
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    assert any("lora_A" in name for name in ours["state_dict"]) == ("LoRA" in case)
    assert ours["frozen_sha256"] == theirs["frozen_sha256"]
    for number, state in theirs["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            assert_close_in_ulps(ours["optimizer_states"][0]["state"][number][name], value, 1024, name)
    start, ours, theirs = (
        load_file(folder / "model.safetensors")
        for folder in (Path(model_of(given)), several / "model", alone / "model")
    )
    assert ours.keys() == theirs.keys()
    moved = 0.0
    for name, weight in theirs.items():
        moved = max(moved, float((weight.float() - start[name].float()).abs().max()))
        assert_close_in_ulps(ours[name].float(), weight.float(), 64, name)
    assert moved > 1e-4
    rows = [json.loads((folder / "metrics.json").read_text())["rows"] for folder in (several, alone)]
    assert [row["metrics"] for row in rows[0]] == [
        {name: pytest.approx(value, rel=1e-5) for name, value in row["metrics"].items()} for row in rows[1]
    ]
