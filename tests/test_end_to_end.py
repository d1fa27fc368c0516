"""What a user types: pretrain, SFT on their own triples, LoRA on the folder, evaluation of what came out."""

import csv
import json
import re

import pytest
from conftest import TEXTS
from test_benchmark import write_collection

from tests.command import run

SMALL = [
    "model=nano_scratch",
    "model.create.vocab_size=400",
    "model.create.hidden_size=32",
    "model.create.intermediate_size=64",
    "stage.trainer.log_every_n_steps=1",
]


def train(*arguments):
    done = run("train", *arguments)
    assert done.returncode == 0, done.stderr + done.stdout
    return done


@pytest.fixture(scope="module")
def triples(tmp_path_factory):
    """A user's file: names of their own for the columns, reasoning on some rows, hard negatives on all."""
    folder = tmp_path_factory.mktemp("my data")
    rows = []
    for number in range(40):
        query, code = TEXTS[number % 5].split("\n", 1)
        row = {
            "question": f"{query} {number}",
            "code": f"{code} # {number}",
            "wrong": [f"def wrong_{number}(): pass"],
        }
        if number % 2:
            row["thought"] = code.split("(")[0]
        rows.append(row)
    file = folder / "rows, 1.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def data_arguments(triples):
    columns = "{query: question, positive: code, hard_negatives: wrong, reasoning: thought}"
    return [
        "data=triples",
        f'data.files=["{triples}"]',
        f"data.columns={columns}",
        "data.validation_share=0.2",
    ]


@pytest.fixture(scope="module")
def sft_run(data_arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sft"
    done = train(
        "stage=sft",
        *data_arguments,
        *SMALL,
        f"output_dir={folder}",
        "stage.trainer.max_steps=6",
        "stage.trainer.val_check_interval=3",
        "stage.datamodule.batch_size=8",
        "stage.datamodule.hard_negatives=1",
    )
    assert re.search(r"6/6 steps, .*/.* left", done.stdout + done.stderr)
    return folder


def test_sft_on_a_users_triples_leaves_a_model_folder_and_a_record(sft_run):
    assert (sft_run / "model" / "search_r3.json").is_file()
    assert (sft_run / "model" / "model.safetensors").is_file()
    assert json.loads((sft_run / "status.json").read_text())["state"] == "finished"
    table = (sft_run / "csv" / "metrics.csv").read_text()
    for column in ("train/sft", "train/info_nce_direct", "train/info_nce_reasoned", "val/reasoning/ndcg@10"):
        assert column in table.splitlines()[0]
    assert json.loads((sft_run / "metrics.json").read_text())["rows"]


def test_lora_smoke_on_the_saved_folder_has_kl_and_keeps_its_adapter(sft_run, data_arguments, tmp_path):
    train(
        "experiment=sft_lora_smoke",
        *data_arguments,
        f"model.path={sft_run / 'model'}",
        f"output_dir={tmp_path / 'lora'}",
        "stage.datamodule.batch_size=8",
        "stage.module.chunk_rows=4",
    )
    assert (tmp_path / "lora" / "model" / "adapter" / "adapter_model.safetensors").is_file()
    lines = (tmp_path / "lora" / "csv" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("train/kl")
    values = [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]
    assert values[0] == pytest.approx(0.0, abs=1e-5)
    assert values[-1] > 0


def test_pretraining_makes_a_folder_that_sft_starts_from(data_arguments, tmp_path):
    train(
        "stage=pretrain",
        *data_arguments,
        *SMALL,
        f"output_dir={tmp_path / 'base'}",
        "stage.trainer.max_steps=3",
        "stage.datamodule.batch_size=2",
        "stage.datamodule.sequence_length=32",
    )
    train(
        "stage=sft",
        *data_arguments,
        f"model.path={tmp_path / 'base' / 'model'}",
        f"output_dir={tmp_path / 'sft'}",
        "stage.trainer.max_steps=3",
        "stage.trainer.val_check_interval=3",
        "stage.trainer.log_every_n_steps=1",
        "stage.datamodule.batch_size=8",
    )
    header, *rows = (tmp_path / "sft" / "csv" / "metrics.csv").read_text().splitlines()
    column = header.split(",").index("train/kl")
    values = [float(row.split(",")[column]) for row in rows if row.split(",")[column]]
    assert values[0] == pytest.approx(0.0, abs=1e-5)
    assert max(values) > 1e-5


def test_rl_on_the_sft_folder_leaves_a_model_a_table_and_a_ledger(sft_run, data_arguments, tmp_path):
    arguments = [
        "stage=rl",
        *data_arguments,
        f"model.path={sft_run / 'model'}",
        f"output_dir={tmp_path / 'rl'}",
        f"stage.datamodule.cache_dir={tmp_path / 'cache'}",
        "stage.datamodule.batch_size=4",
        "stage.module.rollouts.group_size=3",
        "stage.module.completions.every_n_steps=2",
        "refresh.audit_every_n_steps=2",
        "logger=wandb",
    ]
    train(*arguments, "stage.trainer.max_steps=4", "stage.trainer.val_check_interval=4")
    assert (tmp_path / "rl" / "model" / "search_r3.json").is_file()
    modes = [row["mode"] for row in json.loads((tmp_path / "rl" / "metrics.json").read_text())["rows"]]
    assert {"direct", "reasoning"} <= set(modes)
    lines = list(csv.DictReader((tmp_path / "rl" / "csv" / "metrics.csv").open(newline="")))
    for column in ("reward", "reward_spread", "index/share_of_corpus"):
        assert [line["step"] for line in lines if line[f"train/{column}"]] == ["0", "1", "2", "3"]
    for column in ("identical_rewards", "seconds"):
        assert [line["step"] for line in lines if line[f"train/index/audit/{column}"]] == ["2"]
    rows = [json.loads(line) for line in (tmp_path / "rl" / "completions.jsonl").open()]
    assert {row["step"] for row in rows} == {0, 2}
    tables = (tmp_path / "rl" / "wandb").rglob("completions*.table.json")
    shown = [json.loads(path.read_text()) for path in tables]
    assert all(table["columns"] == list(rows[0]) for table in shown)
    cells = sorted([line[:7] for table in shown for line in table["data"]], key=str)
    assert cells == sorted([list(row.values())[:7] for row in rows], key=str)


def test_the_trained_folder_is_evaluated_as_saved(sft_run, tmp_path):
    write_collection(tmp_path / "beir" / "tiny")
    done = run(
        "evaluate",
        f"model.path={sft_run / 'model'}",
        "benchmarks=[tiny]",
        f"beir_dir={tmp_path / 'beir'}",
        f"output_dir={tmp_path / 'out'}",
        f"cache_dir={tmp_path / 'cache'}",
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["rows"]
    assert rows[1]["weights_sha256"] == rows[2]["weights_sha256"] is not None


def test_mined_hard_negatives_reach_the_batches(data_arguments, tmp_path):
    train(
        "experiment=sft_hard_negatives",
        *data_arguments,
        *SMALL,
        f"output_dir={tmp_path / 'run'}",
        "stage.trainer.max_steps=2",
        "stage.trainer.val_check_interval=2",
        "stage.datamodule.batch_size=8",
    )
    report = re.search(r"MiningReport\(.*n_mined=(\d+)", (tmp_path / "run" / "train.log").read_text())
    assert int(report[1]) > 0


def test_a_bad_row_is_named_before_a_model_is_made(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"query": "a", "positive": "b", "hard_negatives": ["c"]}\n{"query": "a"}\n')
    done = run(
        "train", "stage=sft", "data=triples", f'data.files=["{file}"]', f"output_dir={tmp_path / 'run'}"
    )
    assert done.returncode == 1
    assert f"{file}" in done.stderr
    assert "2" in done.stderr
    assert "M parameters" not in done.stderr + done.stdout
