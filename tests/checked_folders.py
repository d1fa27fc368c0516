"""A saved model folder for tests, every way of reading it, and what damages it."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import build_embedder
from evil_pickles import MARK
from test_folder import UNUSED, move_trained_weights

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.evaluate import _evaluated
from search_r3.models.folder import load_embedder, open_embedder, save_embedder, upgrade_folder
from search_r3.models.tuning import FullTuning, LoraTuning

_ROUTE = (
    "config.json", "model.safetensors", "sentence_bert_config.json",
    "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip
MODULES = (
    "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json",
    "sentence_transformers/router_config.json", "sentence_transformers/pooling/config.json",
    "sentence_transformers/normalize/config.json",
    *(f"sentence_transformers/{route}/{name}" for route in ("document", "query") for name in _ROUTE),
)  # fmt: skip
"""What sentence-transformers takes up."""
CARRIERS = [name for name in MODULES if name.endswith("safetensors")]


def opened_for_training(path):
    return open_embedder(path=str(path), tuning=FullTuning(), **UNUSED)


def evaluated(path):
    with ConfigSource() as source:
        return _evaluated(compose("evaluate", [f"model.path={path}"], source).config)


READERS = [load_embedder, opened_for_training, evaluated, upgrade_folder]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of a LoRA run; read only."""
    place = tmp_path_factory.mktemp("saved")
    base = save_embedder(build_embedder(), place / "base", {}, is_trained=True)
    embedder = open_embedder(path=str(base), tuning=LoraTuning(r=2, alpha=4), **UNUSED)
    move_trained_weights(embedder)
    return save_embedder(embedder, place / "model", {"command": "test", "loss": float("nan")})


@pytest.fixture
def folder(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(saved, tmp_path / "model")


def described(folder, change):
    """Rewrites search_r3.json."""
    file = folder / "search_r3.json"
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))
    return folder


def of_before(folder):
    """As a folder that was written before there were checksums."""
    return described(folder, lambda description: description.pop("checksums"))


def refusal(read, folder):
    with pytest.raises(ValueError, match=re.escape(str(folder))) as refused:
        read(folder)
    assert not Path(MARK).exists()
    return str(refused.value)


def flipped(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << (position % 8)
    file.write_bytes(bytes(content))
