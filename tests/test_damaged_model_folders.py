"""Of a damaged folder from before checksums, or of a hub, the file is named, which libraries do not do."""

import json
import shutil
from codecs import BOM_UTF8

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from search_r3.models.folder import ModelFolderError, load_embedder
from search_r3.models.tuning import FullTuning, LoraTuning
from tests.plain_folders import byte_tokenizer, opened, write_plain


@pytest.fixture(scope="module")
def old_folder(nano_folder, tmp_path_factory):
    """A model folder without checksums; read only."""
    folder = shutil.copytree(nano_folder, tmp_path_factory.mktemp("old") / "model")
    description = json.loads((folder / "search_r3.json").read_text())
    del description["checksums"]
    (folder / "search_r3.json").write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    return write_plain(tmp_path_factory.mktemp("hub") / "model", byte_tokenizer())


DAMAGES = {
    "cut off": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "binary": lambda content: bytes(range(256)),
    "a list": lambda content: b"[1]",
    "marked": lambda content: BOM_UTF8 + content,
}


def damage_of(folder, tmp_path, name, damage):
    copy = shutil.copytree(folder, tmp_path / "model")
    (copy / name).write_bytes(DAMAGES[damage]((copy / name).read_bytes()))
    return copy


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors"]
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_read_is_named(old_folder, hub_folder, tmp_path, name, damage):
    for number, folder in enumerate((old_folder, hub_folder)):
        copy = damage_of(folder, tmp_path / str(number), name, damage)
        with pytest.raises(ModelFolderError) as error:
            load_embedder(copy) if folder is old_folder else opened(copy)
        message = str(error.value)
        assert message.startswith(f"{copy / name}: ")
        assert "take the folder from a copy" in message
        assert "\n" not in message
        assert len(message) < 500 + len(str(copy))


def sharded(folder, kind):
    """A folder of a hub whose weights are in two files, by an index."""
    write_plain(folder, byte_tokenizer())
    weights = list(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    stem, end = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    names = [f"{stem}-0000{number}-of-00002.{end}" for number in (1, 2)]
    save = save_file if kind == "safetensors" else torch.save
    for name, part in zip(names, (weights[:9], weights[9:]), strict=True):
        save(dict(part), folder / name)
    places = {name: names[number >= 9] for number, (name, _) in enumerate(weights)}
    index = folder / f"{stem}.{end}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder, index, folder / names[1]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_shard_that_is_missing_is_named_with_the_index_that_names_it(tmp_path, kind):
    folder, index, shard = sharded(tmp_path / "model", kind)
    opened(folder)
    shard.unlink()
    with pytest.raises(ModelFolderError) as error:
        opened(folder)
    assert str(error.value).startswith(f"{index}: names {shard.name}, which the folder lacks; take")


@pytest.mark.parametrize("content", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_an_index_that_maps_nothing_is_named(tmp_path, content):
    folder, index, _ = sharded(tmp_path / "model", "safetensors")
    index.write_text(json.dumps(content))
    with pytest.raises(ModelFolderError) as error:
        opened(folder)
    assert str(error.value).startswith(f"{index}: must have weight_map")


@pytest.mark.parametrize("damage", ["cut off", "empty", "binary"])
def test_weights_that_are_no_pickle_are_named(tmp_path, damage):
    folder, _, shard = sharded(tmp_path / "model", "bin")
    torch.save({"not": "weights"}, folder / "training_args.bin")
    shard.write_bytes(DAMAGES[damage](shard.read_bytes()))
    with pytest.raises(ModelFolderError) as error:
        opened(folder)
    assert str(error.value).startswith(f"{shard}: cannot be read as weights")
    assert "\n" not in str(error.value)


def test_shards_without_an_index_are_an_error_that_names_the_folder(tmp_path):
    folder, index, _ = sharded(tmp_path / "model", "safetensors")
    index.unlink()
    with pytest.raises(ModelFolderError) as error:
        opened(folder)
    assert str(error.value).startswith(f"{folder}: transformers cannot read it: ")


def test_a_folder_without_a_tokenizer_that_can_be_read_says_so_in_a_line(tmp_path):
    folder = write_plain(tmp_path / "model", byte_tokenizer())
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFolderError) as error:
        opened(folder)
    assert str(error.value).startswith(f"{folder}: transformers cannot read its tokenizer: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("holds_base", [False, True])
def test_an_adapter_is_refused_before_anything_is_read(tmp_path, holds_base):
    """Transformers would read its base as well; what was trained on it could not be saved."""
    base = write_plain(tmp_path / "base", byte_tokenizer())
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"])
    )
    folder = base if holds_base else tmp_path / "adapter"
    tuned.save_pretrained(folder)
    for tuning in (FullTuning(), LoraTuning()):
        with pytest.raises(ModelFolderError, match=r"adapter of PEFT .*merge it into its base") as error:
            opened(folder, tuning=tuning)
        assert str(error.value).startswith(f"{folder}: ")
