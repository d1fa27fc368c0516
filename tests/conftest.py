"""A tiny real model of a real architecture, built offline, saved and loaded as a large one would be."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the package does, and like it before torch

from pathlib import Path

import pytest
import torch

from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.folder import load_embedder, save_embedder
from search_r3.models.nano import create_nano
from search_r3.models.prompts import Lengths, Prompts
from tests.command import THREADS

torch.set_num_threads(THREADS)

LONGEST = (
    "test_rl_two_ranks_resume",
    "test_sharded_runs",
    "test_four_ranks",
    "test_end_to_end",
    "test_hops",
    "test_bench_refresh",
    "test_rl_resume",
    "test_train_cli",
    "test_multirun",
    "test_rl_two_ranks",
    "test_tune",
)
"""Modules that start first, so that no worker is left with one of them at the end."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest modules first, each in its own order; what the machine cannot do is skipped with the reason."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    lacking = {"gpu": None if torch.cuda.is_available() else "torch finds no CUDA device", "bf16": no_bf16()}
    for item in items:
        for name, reason in lacking.items():
            if reason is not None and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


def no_bf16() -> str | None:
    """Why torch does not multiply in bf16 on this CPU; None where it does, in hardware or not."""
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.nn.Linear(2, 2)(torch.ones(1, 2)).sum().backward()
    except RuntimeError as error:
        return f"torch refuses a bf16 product on this CPU: {error}"
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """How an order that was drawn is had again; `-q` leaves out the line at the top."""
    if config.getoption("random_order_enabled", False):
        seed = config.getoption("random_order_seed")
        terminalreporter.write_line(f"random order: --random-order --random-order-seed={seed}")


TEXTS = [
    "Return the sum of two integers.\ndef add_numbers(first, second):\n    return first + second",
    "Parse the header line of a file.\ndef parseHeader(line):\n    return line.split(':')",
    "Open a socket and connect to a host.\ndef connect(host, port):\n    return create_connection(host)",
    "Sort the rows by a column.\ndef sort_rows(table, column):\n    return sorted(table, key=column)",
    "Write text to a file and close it.\ndef write_text(path, text):\n    open(path).write(text)",
] * 3
QUERIES = [
    "sum of integers",
    "parse the header line of a long file now",
    "connect",
    "",
    "sort rows by column",
]
PROMPTS = Prompts("direct", "reason", "document", lead_in="", closing="")
LENGTHS = Lengths(query=24, document=48, reasoning=6)


def linear_head(weight: torch.Tensor, bias: torch.Tensor | None = None):
    """From states to logits by one product, in the precision of the weight."""
    return lambda states: torch.nn.functional.linear(states.to(weight.dtype), weight, bias)


def build_embedder(seed: int = 0, **settings) -> ReasoningEmbedder:
    sizes = {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    model, tokenizer = create_nano(TEXTS, **{**sizes, **settings}, seed=seed)
    return ReasoningEmbedder(model, tokenizer, PROMPTS, LENGTHS, is_trained=False)


@pytest.fixture
def embedder() -> ReasoningEmbedder:
    """An untrained embedder that a test may change."""
    return build_embedder()


@pytest.fixture(scope="session")
def nano_folder(tmp_path_factory) -> Path:
    """A saved model folder; read only."""
    return save_embedder(build_embedder(), tmp_path_factory.mktemp("nano") / "model", {"command": "test"})


@pytest.fixture(scope="session")
def loaded_embedder(nano_folder) -> ReasoningEmbedder:
    """The saved folder as inference loads it; read only."""
    return load_embedder(nano_folder)


@pytest.fixture(scope="session")
def beir_root() -> Path:
    """Folder of real BEIR collections; tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "beir"
    root = Path(os.environ.get("SEARCH_R3_BEIR", default))
    if not root.is_dir():
        pytest.skip(f"real BEIR collections are not at {root}; set SEARCH_R3_BEIR to their folder")
    return root
