"""`make science-gpu` from start to end, on a CPU with a tiny model: what it gathers is all one needs."""

import json
import subprocess

import pytest
from plain_folders import byte_tokenizer, write_plain
from test_data_entailmentbank import write_bank

from tests.command import ENVIRONMENT, ROOT
from tests.forked_python import forked_python

PARTS = "data.parts.set_aside=6 data.parts.tuning=4 data.parts.rl_only=4"
ON_CPU = (
    f"strategy=cpu model.attention=eager {PARTS} stage.trainer.max_steps=2 stage.trainer.val_check_interval=2"
)
VALIDATION = "stage.datamodule.validation_queries=4 stage.datamodule.validation_documents=20"
SHORT = "model.lengths.query=24 model.lengths.document=24 model.lengths.reasoning=6"


def science_gpu(environment):
    with forked_python() as python:
        return subprocess.run(
            ["bash", "experiments/science/gpu.sh"],
            cwd=ROOT,
            env=ENVIRONMENT | {"GPU_PYTHON": str(python)} | environment,
            capture_output=True,
            text=True,
        )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "plain"
    write_plain(folder, byte_tokenizer())
    return folder


def test_every_stage_runs_and_the_small_folder_has_metrics_report_and_adapters(tmp_path, base):
    bank = write_bank(tmp_path / "bank", n_train=24)
    batch = "stage.datamodule.batch_size=2"

    done = science_gpu(
        {
            "SCIENCE_DIR": str(bank),
            "BASE": str(base),
            "SEEDS": "7 8",
            "OUT": str(tmp_path / "out"),
            "DEVICE": "cpu",
            "SFT": f"{ON_CPU} {VALIDATION} {batch} {SHORT}",
            "RL": f"{ON_CPU} {VALIDATION} {batch} refresh.budget=4",
            "EVALUATION": PARTS,
        }
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "small" / "seed8" / "metrics.json").is_file()
    small = tmp_path / "out" / "small" / "seed7"
    rows = json.loads((small / "metrics.json").read_text())["rows"]
    assert {row["mode"] for row in rows} >= {
        "bm25",
        "direct",
        "reasoning",
        "shuffled-reasoning",
        "base-reasoning",
    }
    for stage in ("sft", "rl"):
        assert (small / stage / "csv" / "metrics.csv").stat().st_size
        assert list((small / stage / "model").rglob("adapter_model.safetensors"))
    assert (small / "rl" / "completions.jsonl").is_file()
    assert not list(small.rglob("*.ckpt"))


def test_seeds_run_beside_each_other_and_one_that_fails_is_named(tmp_path, base):
    bank = write_bank(tmp_path / "bank", n_train=24)
    out = tmp_path / "out"

    done = science_gpu(
        {
            "SCIENCE_DIR": str(bank),
            "BASE": str(base),
            "SEEDS": "7 8",
            "OUT": str(out),
            "DEVICE": "cpu",
            "SFT": f"{ON_CPU} {VALIDATION} stage.datamodule.batch_size=0",
        }
    )

    assert done.returncode == 2
    assert "seeds that failed: 7 8; the same command goes on" in done.stderr
    for seed in (7, 8):
        assert f"seed {seed}: see {out}/seed{seed}.log" in done.stdout
        assert "error: stage.datamodule.batch_size=0: must be" in (out / f"seed{seed}.log").read_text()
    assert not (out / "small").exists()


def test_what_is_missing_is_named_before_anything_runs(tmp_path, base):
    bank = write_bank(tmp_path / "bank")

    for environment, told in (
        ({"SCIENCE_DIR": "", "BASE": str(base)}, "SCIENCE_DIR"),
        ({"SCIENCE_DIR": str(bank), "BASE": str(tmp_path)}, "holds no model; make base"),
    ):
        done = science_gpu(environment | {"OUT": str(tmp_path / "out")})
        assert done.returncode == 2
        assert told in done.stderr
    assert not (tmp_path / "out").exists()
