"""Model folders: every file that is read is as it was written, whatever the reader."""

import hashlib
import json
import logging
import re
import shutil
import sys
from pathlib import Path

import checked_folders
import pytest
import torch
from checked_folders import (
    CARRIERS,
    MODULES,
    READERS,
    described,
    evaluated,
    flipped,
    of_before,
    opened_for_training,
    refusal,
)
from conftest import TEXTS
from transformers import AutoModelForCausalLM

import search_r3.upgrade
from search_r3.models import checksums
from search_r3.models.folder import load_embedder, upgrade_folder

folder, saved = checked_folders.folder, checked_folders.saved  # fixtures
FILES = (
    "model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json",
    "chat_template.jinja", "adapter/adapter_model.safetensors", "adapter/adapter_config.json",
)  # fmt: skip
"""What a LoRA run leaves and a reader takes up, besides search_r3.json and `MODULES`."""

DAMAGES = {
    "first byte": lambda file: flipped(file, 0),
    "a byte in the middle": lambda file: flipped(file, file.stat().st_size // 2),
    "last byte": lambda file: flipped(file, -1),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\n"),
    "removed": Path.unlink,
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a link to nowhere": lambda file: (file.unlink(), file.symlink_to("nowhere")),
}


def test_the_description_names_every_file_that_is_read(saved):
    recorded = json.loads((saved / "search_r3.json").read_text())["checksums"]

    present = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    ours = {*FILES, *MODULES, "search_r3.json"}
    assert recorded.keys() == present - {"README.md", "adapter/README.md"} == ours
    for name in (*FILES, *MODULES):
        assert recorded[name] == hashlib.sha256((saved / name).read_bytes()).hexdigest()


def test_an_undamaged_folder_is_read_by_all(saved):
    vectors = load_embedder(saved).embed_documents(TEXTS[:2])

    torch.testing.assert_close(opened_for_training(saved).embed_documents(TEXTS[:2]), vectors)
    torch.testing.assert_close(evaluated(saved).embedder.embed_documents(TEXTS[:2]), vectors)
    assert not upgrade_folder(saved)


@pytest.mark.parametrize("name", [*FILES, "modules.json", "sentence_transformers/query/tokenizer.json"])
def test_no_damage_of_a_file_is_used(folder, name):
    whole = (folder / name).read_bytes()
    for damage, make in DAMAGES.items():
        make(folder / name)

        message = refusal(load_embedder, folder)

        assert f"{folder / name}: " in message, damage
        assert "take the folder from a copy, or train the model again" in message
        assert "\n" not in message
        if (folder / name).is_dir():
            (folder / name).rmdir()
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(whole)
    load_embedder(folder)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", ["model.safetensors", "adapter/adapter_model.safetensors", "tokenizer.json"])
def test_every_reader_compares(folder, read, name):
    flipped(folder / name, (folder / name).stat().st_size - 5)

    assert f"{folder / name}: is not as it was written" in refusal(read, folder)


def test_a_flipped_byte_of_the_description_is_refused_or_says_the_same(folder):
    """White space between two values is all that can change unnoticed."""
    file = folder / "search_r3.json"
    whole = file.read_bytes()
    said = json.loads(whole)
    positions = range(0, len(whole), len(whole) // 60)
    n_refused = 0
    for position in positions:
        flipped(file, position)
        try:
            assert repr(json.loads(file.read_bytes())) == repr(said)
        except (ValueError, AssertionError):
            n_refused += 1
            assert "search_r3.json" in refusal(load_embedder, folder)
        file.write_bytes(whole)
    assert n_refused > 50


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(is_trained=False),
        lambda d: d["provenance"].update(command="another"),
        lambda d: d.pop("is_trained"),
        lambda d: d.update(more=1),
        lambda d: d.update(checksumt=d.pop("checksums")),
        lambda d: d.update(checksums=None),
        lambda d: d.update(checksums={}),
        lambda d: d.update(checksums=[]),
        lambda d: d["checksums"].pop("search_r3.json"),
        lambda d: d["checksums"].pop("model.safetensors"),
        lambda d: d["checksums"].pop("tokenizer.json"),
        lambda d: d["checksums"].update({"model.safetensors": "0" * 64}),
        lambda d: d["checksums"].update({"model.safetensors": "x"}),
        lambda d: d["checksums"].update({"model.safetensors": 3}),
        lambda d: d["checksums"].update({"../../secret": "0" * 64}),
        lambda d: d["checksums"].update({"/etc/passwd": "0" * 64}),
        lambda d: d["checksums"].update({"absent.safetensors": "0" * 64}),
    ],
)
def test_a_description_that_was_changed_is_refused(folder, change):
    assert str(folder) in refusal(load_embedder, described(folder, change))


@pytest.mark.parametrize(
    "name",
    ["more.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "vocab.json",
     "special_tokens_map.json", "added_tokens.json", "other.jinja", "additional_chat_templates/a.jinja",
     "tokenizer.model", "adapter/more.safetensors"],
)  # fmt: skip
@pytest.mark.parametrize("read", [load_embedder, opened_for_training])
def test_a_file_that_would_be_read_with_the_others_is_refused(folder, read, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")

    assert f"{folder / name}: is not named by search_r3.json" in refusal(read, folder)


def test_what_no_reader_looks_at_may_be_added_and_the_card_edited(folder):
    before = load_embedder(folder).embed_documents(TEXTS[:2])
    (folder / "README.md").write_text("mine")
    (folder / "adapter" / "README.md").unlink()
    for name in ("LICENSE", "notes.md", "notes.txt", "picture.png", "sparse.json", ".gitattributes"):
        (folder / name).write_text("{}")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / ".cache").mkdir()

    assert torch.equal(load_embedder(folder).embed_documents(TEXTS[:2]), before)


# ---- one pass, and the same key of the cache as before

opens: list[str] = []


def note_open(event, arguments):
    if event == "open" and str(arguments[0]).endswith("model.safetensors"):
        opens.append(arguments[0])


def test_the_weights_are_read_for_their_hashes_once(folder):
    sys.addaudithook(note_open)  # safetensors maps the file from Rust, which is not seen here
    opens.clear()

    embedder = load_embedder(folder)

    read = sorted(Path(name).relative_to(folder).as_posix() for name in opens)
    assert read == ["adapter/adapter_model.safetensors", "model.safetensors", *sorted(CARRIERS)]
    assert embedder.weights_sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_shards_are_hashed_as_one_and_each_on_its_own(folder):
    shutil.rmtree(folder / "adapter")
    before = load_embedder(of_before(folder)).embed_documents(TEXTS[:2])
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    assert upgrade_folder(folder)

    embedder = load_embedder(folder)

    assert torch.equal(embedder.embed_documents(TEXTS[:2]), before)
    joined = b"".join(shard.read_bytes() for shard in shards)
    assert embedder.weights_sha256 == hashlib.sha256(joined).hexdigest()
    whole = shards[1].read_bytes()
    flipped(shards[1], -1)
    assert f"{shards[1]}: is not as it was written" in refusal(load_embedder, folder)
    shards[1].unlink()
    assert f"{shards[1]}: is missing" in refusal(load_embedder, folder)
    shards[1].write_bytes(whole)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(shards[1].name, shards[2].name))
    assert f"{index}: is not as it was written" in refusal(load_embedder, folder)


# ---- folders of before


def test_a_folder_of_before_opens_and_says_so_once(folder, caplog, capsys, monkeypatch):
    expected = load_embedder(folder).embed_documents(TEXTS[:2])
    of_before(folder)
    with caplog.at_level(logging.WARNING):
        load_embedder(folder)
        opened_for_training(folder)

    assert caplog.text.count("is from before there were checksums") == 1
    assert f"python -m src.upgrade {folder}" in caplog.text
    card = (folder / "README.md").read_bytes()
    monkeypatch.setattr(sys, "argv", ["src.upgrade", str(folder)])
    assert search_r3.upgrade.main() == 0
    assert "checksums are of what the files hold now" in capsys.readouterr().out
    assert search_r3.upgrade.main() == 0
    assert "is as it was written, nothing to do" in capsys.readouterr().out
    assert (folder / "README.md").read_bytes() == card
    assert torch.equal(load_embedder(folder).embed_documents(TEXTS[:2]), expected)
    flipped(folder / "model.safetensors", -1)
    assert "is not as it was written" in refusal(load_embedder, folder)


def test_upgrading_blesses_no_file_that_is_not_whole(folder):
    weights = of_before(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])

    assert str(weights) in refusal(upgrade_folder, folder)

    assert "checksums" not in json.loads((folder / "search_r3.json").read_text())


def test_upgrading_leaves_out_what_no_reader_looks_at(folder):
    (of_before(folder) / "LICENSE").write_text("mine")
    upgrade_folder(folder)
    (folder / "LICENSE").write_text("mine, newer")

    load_embedder(folder)


def test_the_names_that_are_compared_are_those_that_transformers_looks_for():
    from transformers import utils

    names = [value for name, value in vars(utils).items() if re.fullmatch(r"[A-Z_0-9]*(NAME|FILE)", name)]
    names = [name for name in names if isinstance(name, str)]
    names = [name for name in names if name.endswith((".json", ".safetensors", ".bin"))]
    assert {"config.json", "model.safetensors", "pytorch_model.bin"} <= {*names}
    for name in names:
        if not name.startswith(("audio_", "image_", "video_", "modelcard")):  # not for a model of text
            assert checksums._is_read(name) or checksums._FOREIGN.fullmatch(name), name


def test_a_folder_of_before_there_were_modules_gets_them_and_keeps_its_vectors(folder, saved):
    for name in MODULES:
        (folder / name).unlink()
    described(folder, lambda description: description.pop("checksums"))
    vectors = load_embedder(folder).embed_documents(TEXTS[:2])

    assert upgrade_folder(folder)

    assert not upgrade_folder(folder)
    for name in MODULES:
        assert (folder / name).read_bytes() == (saved / name).read_bytes(), name
    torch.testing.assert_close(load_embedder(folder).embed_documents(TEXTS[:2]), vectors, rtol=0, atol=0)


def test_a_stray_file_of_sentence_transformers_is_refused(folder):
    (folder / "sentence_transformers" / "query" / "vocab.json").write_text("{}")

    assert "is not named by search_r3.json" in refusal(load_embedder, folder)


def test_modules_of_a_user_in_a_folder_of_before_are_left_alone(folder):
    for name in MODULES:
        (folder / name).unlink()
    of_before(folder)
    (folder / "modules.json").write_text("[]")

    assert upgrade_folder(folder)

    load_embedder(folder)
    assert (folder / "modules.json").read_text() == "[]"
