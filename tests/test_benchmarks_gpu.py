"""The table of a GPU, run small on the CPU: every row, arithmetic by hand, what a failing row leaves."""

import json
import math
import sys

import pytest
import torch
from torch import nn

from search_r3.benchmarks import gpu_parts as parts
from search_r3.benchmarks.gpu import main
from search_r3.errors import UsageError

TINY, QWEN = parts.SHAPES["tiny"], parts.SHAPES["qwen2_5_1_5b"]
SMALL = [
    "--shape", "tiny", "--device", "cpu", "--documents", "8", "--encode-budgets", "512", "--chunk", "2",
    "--queries", "3", "--few-queries", "2", "--group", "2", "--tokens", "4", "--grpo-queries", "2",
]  # fmt: skip


def numbers(row):
    for value in row.values():
        if isinstance(value, dict):
            yield from numbers(value)
        elif isinstance(value, (int, float)):
            yield value


def test_every_row_runs_on_a_cpu_and_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["python -m src.benchmarks.gpu", "--output", "gpu.json"])
    monkeypatch.chdir(tmp_path)

    assert main([*SMALL, "--output", "gpu.json"]) == 0

    text = (tmp_path / "gpu.json").read_text()
    content = json.loads(text)
    assert str(tmp_path) not in text
    assert content["device"] == "cpu"
    assert content["torch"] == torch.__version__
    kinds = [row["row"] for row in content["rows"]]
    assert kinds == ["limits", "encode", *["sft"] * 3, *["decode"] * 4, *["grpo"] * 3]
    assert all(math.isfinite(value) and value >= 0 for row in content["rows"] for value in numbers(row))
    assert all(row["tokens"] > 0 and row["seconds"] > 0 for row in content["rows"][1:])
    assert [row["tokens"] for row in content["rows"] if row["row"] == "decode"] == [16, 16, 24, 24]
    assert [row["graphs"] for row in content["rows"] if row["row"] == "decode"] == [False, True] * 2
    assert [row["forwards"] for row in content["rows"] if row["row"] == "grpo"] == [1, 2, 1]
    assert len(capsys.readouterr().out.splitlines()) == len(kinds) + 1  # a line of each, and the file


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_in_products_are_those_of_the_layers_linear_modules():
    # a layer: q and o 64 x 64, k and v 64 x 32, three matrices of 64 x 128
    assert TINY.n_weights == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) == 73_728
    assert TINY.n_head == 64 * 8448
    assert QWEN.n_weights == 1_310_195_712  # "1.31 B non-embedding parameters" on the model's card
    model = parts.Bench(TINY, torch.device("cpu")).model()
    linear = [each for each in model.get_decoder().modules() if isinstance(each, nn.Linear)]
    assert sum(each.weight.numel() for each in linear) == TINY.n_weights
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}


def test_bytes_of_decoding_are_weights_once_a_step_and_all_keys_so_far():
    assert TINY.keys_of_a_token == 2 * 2 * 2 * 16  # keys and values, layers, heads, width of a head
    # two steps over two rollouts of each prompt hold 4, then 5 tokens, and 6, then 7; 2 bytes a number
    by_hand = 2 * (2 * (73_728 + 540_672) + 128 * 2 * (4 + 5 + 6 + 7))
    assert TINY.decoding_bytes([3, 5], group_size=2, n_tokens=2) == by_hand == 2_468_864


def test_the_share_of_the_limit_counts_two_operations_per_weight_and_token():
    limits = parts.Limits(flops=1e9, bytes=1.0)
    assert parts.utilisation(2, TINY, 1000.0, limits) == pytest.approx(2 * 73_728 * 1000 / 1e9)
    assert parts.utilisation(2, TINY, 1000.0, None) is None


def test_memory_by_arithmetic_is_that_of_the_document():
    # docs/scaling.md: LoRA r 32 is 37 M weights, 512 rollouts of 600 tokens, 16,384 tokens of a forward
    found = parts.arithmetic(QWEN, 37_000_000, 512 * 600, 16_384, is_checkpointed=True)
    written = {"weights": 3.1, "adapter": 0.6, "keys_and_values": 8.8, "activations": 3.4, "logits": 2.5}
    assert {name: round(found[name], 1) for name in written} == written
    kept = parts.arithmetic(QWEN, 37_000_000, 512 * 600, 16_384, is_checkpointed=False)
    assert kept["activations"] is kept["learning"] is None


def test_documents_are_about_128_tokens_long_and_differ():
    embedder = parts.Bench(TINY, torch.device("cpu")).opened()
    lengths = [len(ids) for ids in embedder.encoder.documents(parts.made_up(embedder, 500, 128))]
    assert 118 < sum(lengths) / 500 < 145
    assert min(lengths) < 60
    assert max(lengths) > 300


def test_a_row_that_fails_leaves_its_error_and_the_others_run(tmp_path, capsys, monkeypatch):
    def fails(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB")

    monkeypatch.setattr(parts, "encode", fails)
    monkeypatch.chdir(tmp_path)

    assert main([*SMALL, "--rows", "encode", "decode", "--output", "gpu.json"]) == 1

    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["row"] for row in rows if "error" not in row] == ["limits", *["decode"] * 4]
    assert "out of memory" in rows[1]["error"]
    told = capsys.readouterr()
    assert "encode, forwards of 512 tokens: failed: CUDA out of memory" in told.out
    assert told.err.splitlines()[-1].startswith("error: 1 of 6 rows failed: encode")


def test_rows_so_far_are_in_the_file_where_the_process_is_ended(tmp_path, monkeypatch):
    def ended(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(parts, "decode", ended)
    with pytest.raises(KeyboardInterrupt):
        main([*SMALL, "--rows", "encode", "decode", "--output", str(tmp_path / "gpu.json")])

    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["row"] for row in rows] == ["limits", "encode"]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["--rows", "guess"], "invalid choice: 'guess'"),
        (["--documents", "0"], "--documents must be at least 1, got 0"),
        (["--encode-budgets", "512", "0"], "--encode-budgets must be at least 1, got 0"),
        (["--grpo-queries", "-1"], "--grpo-queries must be at least 1, got -1"),
        (["--group", "1"], "--group must be at least 2 for the row grpo, got 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(given, problem):
    with pytest.raises(UsageError, match=problem):
        main([*SMALL, *given])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="no CUDA device"):
        main(["--shape", "tiny"])
