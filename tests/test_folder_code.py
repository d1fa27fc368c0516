"""Nothing of a model folder is run: no pickle, no code of its own, no template outside its sandbox."""

import json
import shutil
from pathlib import Path

import checked_folders
import pytest
import torch
from checked_folders import READERS, of_before, opened_for_training, refusal
from conftest import TEXTS
from evil_pickles import MARK, Evil
from plain_folders import TEMPLATE, byte_tokenizer, opened, write_plain
from safetensors.torch import load_file
from transformers import AutoTokenizer

from search_r3.models.folder import load_embedder, save_embedder, upgrade_folder

folder, saved = checked_folders.folder, checked_folders.saved  # fixtures


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
