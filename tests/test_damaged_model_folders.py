"""Of a damaged folder from before checksums, or of a hub, the file is named, which libraries do not do."""

import json
import shutil

import pytest

from search_r3.models.folder import ModelFolderError, load_embedder
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
