"""Tokens of a text are those of the published tokenizer.json, whatever class of transformers reads it."""

import json
import logging

import pytest
from conftest import TEXTS
from plain_folders import ROLES, TEMPLATE, byte_tokenizer, opened, sentencepiece_tokenizer, write_plain
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from search_r3.models.folder import load_embedder, open_embedder, save_embedder
from search_r3.models.folder.weights import read_tokenizer
from search_r3.models.tuning import FullTuning

HARD = ["x = [ 12,  345]\n\n  7 items\t\tend", "It's 1999's  DON'T cost 12,500.75", "naïve  東京12月 é", " a"]
DIGITS = pre_tokenizers.Digits(individual_digits=True)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
THREES = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\s?\p{L}+"), "isolated")
PUBLISHED = {
    "SmolLM2": ("llama", "GPT2Tokenizer", [DIGITS, WORDS], None),
    "a GPT-2 that splits digits": ("gpt2", "GPT2Tokenizer", [DIGITS, WORDS], normalizers.NFKC()),
    "no class named": ("gpt2", None, [DIGITS, WORDS], None),
    "DeepSeek's distilled Qwen": ("qwen2", "LlamaTokenizerFast", [THREES, DIGITS, WORDS], None),
    "CodeLlama, with roles of its class alone": ("llama", "CodeLlamaTokenizer", [DIGITS, WORDS], None),
    "what says what it is": ("qwen2", "PreTrainedTokenizerFast", [THREES, WORDS], None),
}


def published(folder, kind, tokenizer_class, before, normalizer):
    """A folder with a tokenizer of bytes, trained with the rules that are given."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Sequence(before), decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", *ROLES]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([*TEXTS, *HARD * 9], trainer)
    named = {"chat_template": TEMPLATE, "eos_token": "<|endoftext|>"}
    write_plain(folder, PreTrainedTokenizerFast(tokenizer_object=backend, **named), kind)
    change(folder / "tokenizer_config.json", tokenizer_class=tokenizer_class)
    return folder


def change(file, **values):
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def ids_of(folder):
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [file.encode(text, add_special_tokens=False).ids for text in HARD]


@pytest.mark.parametrize("name", PUBLISHED)
def test_tokens_are_those_of_the_file_and_stay_so_in_the_saved_folder(name, tmp_path, caplog):
    folder = published(tmp_path / "plain", *PUBLISHED[name])
    with caplog.at_level(logging.INFO):
        embedder = opened(folder)

    assert embedder.encoder.text_ids(HARD) == ids_of(folder)
    assert "has other rules than the tokenizer.json" in caplog.text
    saved = save_embedder(embedder, tmp_path / "model", {})
    trained = open_embedder(
        path=str(saved), name=None, create=None, prompts=None, lengths=None, tuning=FullTuning()
    )
    for later in (load_embedder(saved), trained):
        assert later.encoder.text_ids(HARD) == ids_of(folder)
        assert later.encoder.fingerprint == embedder.encoder.fingerprint


def test_a_class_that_has_the_rules_of_the_file_reads_it(tmp_path, caplog):
    folder = published(tmp_path, "gpt2", "GPT2Tokenizer", [WORDS], None)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    (content["pre_tokenizer"],) = content["pre_tokenizer"]["pretokenizers"]
    file.write_text(json.dumps(content))
    for absent in ("use_regex", "trim_offsets"):  # as in files of before
        content["pre_tokenizer"].pop(absent)
        with caplog.at_level(logging.INFO):
            tokenizer = read_tokenizer(folder, local_files_only=True)
        assert type(tokenizer).__name__ == "GPT2Tokenizer"
        file.write_text(json.dumps(content))
    assert "other rules" not in caplog.text


@pytest.mark.parametrize("is_added", [True, False])
@pytest.mark.parametrize(
    ("tokenizer", "kind", "tokenizer_class"),
    [(byte_tokenizer, "gpt2", "GPT2Tokenizer"), (sentencepiece_tokenizer, "llama", "LlamaTokenizer")],
)
def test_the_blank_before_a_text_is_as_the_configuration_says(
    tmp_path, tokenizer, kind, tokenizer_class, is_added
):
    folder = write_plain(tmp_path, tokenizer(), kind)
    stated = {"tokenizer_class": tokenizer_class, "add_prefix_space": is_added}
    change(folder / "tokenizer_config.json", **stated)

    first = read_tokenizer(folder, local_files_only=True).tokenize("sum")[0]

    assert first.startswith(("\u2581", "\u0120")) == is_added


def test_a_role_that_only_the_class_knows_is_kept(tmp_path):
    folder = published(tmp_path, *PUBLISHED["no class named"])
    change(folder / "tokenizer_config.json", eos_token=None)  # as in the first folders of GPT-2

    tokenizer = read_tokenizer(folder, local_files_only=True)

    assert type(tokenizer) is PreTrainedTokenizerFast
    assert (tokenizer.eos_token, tokenizer.padding_side) == ("<|endoftext|>", "left")


def test_a_tokenizer_of_no_class_of_its_own_is_read_as_before(tmp_path):
    folder = write_plain(tmp_path, byte_tokenizer())
    tokenizer = read_tokenizer(folder, local_files_only=True)
    assert [tokenizer(text)["input_ids"] for text in HARD] == ids_of(folder)
