"""Model folders: every file that is read is as it was written, whatever the reader; nothing in one is run."""

import hashlib
import json
import logging
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import TEXTS, build_embedder
from plain_folders import TEMPLATE, byte_tokenizer, opened, write_plain
from safetensors.torch import load_file
from test_folder import UNUSED, move_trained_weights
from transformers import AutoModelForCausalLM, AutoTokenizer

import search_r3.upgrade
from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.evaluate import _evaluated
from search_r3.models import checksums
from search_r3.models.folder import load_embedder, open_embedder, save_embedder, upgrade_folder
from search_r3.models.tuning import FullTuning, LoraTuning

MARK = "ran"
FILES = (
    "model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json",
    "chat_template.jinja", "adapter/adapter_model.safetensors", "adapter/adapter_config.json",
)  # fmt: skip
"""What a LoRA run leaves and a reader takes up, besides search_r3.json and `MODULES`."""
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


class Evil:
    """Unpickled, it leaves the mark in the working directory."""

    def __reduce__(self):
        return (Path.touch, (Path(MARK),))


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


# ---- nothing is run


@pytest.mark.parametrize("has_checksums", [True, False])
@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "adapter/adapter_model.bin", "model.pt", "x.pkl", "model.ckpt"]
)
def test_a_pickle_has_no_place_in_a_model_folder(folder, name, has_checksums):
    if not has_checksums:
        of_before(folder)
    torch.save(Evil(), folder / name)
    for read in READERS:
        assert f"{folder / name}: has no place in a model folder" in refusal(read, folder)
    shutil.rmtree(folder / "adapter")
    (folder / "model.safetensors").unlink()
    refusal(load_embedder, folder)


def test_an_adapter_at_the_top_would_make_another_model(folder):
    config = {"base_model_name_or_path": "elsewhere", "peft_type": "LORA", "task_type": "CAUSAL_LM"}
    (of_before(folder) / "adapter_config.json").write_text(json.dumps(config))

    assert "adapter_config.json: has no place" in refusal(load_embedder, folder)


def with_own_code(folder, **changes):
    """A folder whose files name a module of its own, which would leave the mark."""
    code = f"from pathlib import Path\nPath({str(Path(MARK).absolute())!r}).touch()\n"
    (folder / "evil.py").write_text(code + "class Model: pass\nclass Config: pass\nclass Tokenizer: pass\n")
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    for name, content in {
        "config.json": {"auto_map": auto} | changes,
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}},
        "generation_config.json": {"auto_map": auto, "custom_generate": "."},
    }.items():
        written = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(written | content))
    return folder


def test_code_of_a_model_folder_is_not_heeded(folder, tmp_path):
    before = load_embedder(folder).embed_documents(TEXTS[:2])
    with_own_code(of_before(folder))

    for read in (load_embedder, opened_for_training, upgrade_folder):
        read(folder)
    embedder = load_embedder(folder)

    assert torch.equal(embedder.embed_documents(TEXTS[:2]), before)
    assert not Path(MARK).exists()
    again = save_embedder(embedder, tmp_path / "again", {})
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((again / name).read_text())


def test_a_model_that_is_nothing_without_its_own_code_is_refused_without_a_question(folder, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    with_own_code(of_before(folder), model_type="evil")
    for read in (load_embedder, opened_for_training, lambda path: opened(path)):
        message = refusal(read, folder)
        assert "code of its own" in message
        assert "trust_remote_code" not in message


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_folder_does_not_choose_a_kernel_from_a_hub(folder, key):
    file = of_before(folder) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"text": [{key: "evil/kernel"}]}))

    assert f"{file}: {key} may name code" in refusal(load_embedder, folder)


@pytest.fixture
def plain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_plain(tmp_path / "plain", byte_tokenizer())


def test_a_pickle_of_a_plain_folder_is_read_without_running_it(plain):
    """transformers reads `pytorch_model.bin` by `torch.load(weights_only=True)`."""
    weights = load_file(plain / "model.safetensors")
    expected = opened(plain).embed_documents(TEXTS[:2])
    (plain / "model.safetensors").unlink()
    torch.save(weights, plain / "pytorch_model.bin")
    torch.testing.assert_close(opened(plain).embed_documents(TEXTS[:2]), expected)

    torch.save(weights | {"model.norm.weight": Evil()}, plain / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights"):
        opened(plain)

    assert not Path(MARK).exists()
    torch.load(plain / "pytorch_model.bin", weights_only=False)
    assert Path(MARK).exists()  # so the file was one that runs something


ESCAPES = (
    "{{ cycler.__init__.__globals__.os.system('touch ran') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ self.__init__.__globals__.__builtins__.open('ran', 'w') }}",
    "{{ strftime_now.__globals__['datetime'] }}",
    "{% set x = messages.append(messages[0]) %}",
    "{{ messages|attr('__class__') }}{{ (messages|attr('__class__')).__base__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('touch ran') }}",
)


@pytest.mark.parametrize("escape", ESCAPES)
def test_a_chat_template_stays_in_its_sandbox(plain, escape):
    """transformers renders it in an ImmutableSandboxedEnvironment, which has no loader of other templates."""
    tokenizer = AutoTokenizer.from_pretrained(plain)
    tokenizer.chat_template = escape + TEMPLATE
    tokenizer.save_pretrained(plain)

    with pytest.raises(Exception, match=r"(?i)unsafe|undefined|loader|attribute|sandbox|template"):
        opened(plain)

    assert not Path(MARK).exists()


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
