"""The README of a model folder: its code runs without this project and gives the embedder's vectors."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from conftest import TEXTS, build_embedder
from plain_folders import LENGTHS, opened, write_plain
from test_folder import UNUSED, move_trained_weights
from test_literals import made, unigram

from search_r3.cli.training_results import _licence
from search_r3.models.folder import load_embedder, open_embedder, save_embedder
from search_r3.models.prompts import PromptEncoder, Prompts
from search_r3.models.tuning import LoraTuning

ORIGIN = {
    "command": "python -m src.train stage=sft",
    "commit": "0123abcd",
    "seed": 7,
    "python": "3.11.9",
    "packages": {"torch": "2.13.0"},
    "stage": "sft",
    "data": "pydocs",
    "step": 320,
    "base_model": "Qwen/Qwen2.5-0.5B-Instruct",
    "data_licence": "each under its own licence",
    "losses": {"loss": 1.25},
    "validation": {"direct": {"ndcg@10": 0.5}, "reasoning": {"ndcg@10": 0.75, "mrr@10": 0.25}},
}
QUERIES = [
    "read the lines of a file",
    "a text <|embed_token|> with a special token, and long " + 30 * "word ",
]


def blocks_of(folder):
    """The example of direct embeddings, and the code that also reasons."""
    example, whole = re.findall(
        r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert not re.search(r"(import|from) (src|search_r3)", example + whole)
    return example, whole


def code_of(folder):
    return blocks_of(folder)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with every part of the prompt in use, spread weights, and a seed that writes some reasoning."""
    embedder = build_embedder(seed=1)
    move_trained_weights(embedder)
    configured = {"repetition_penalty": 5.0, "num_beams": 3, "min_new_tokens": 3, "no_repeat_ngram_size": 1}
    embedder.causal_lm.generation_config.update(**configured)  # as an instruct model's, ours has none
    words = Prompts("be direct", "think | first", "read this", lead_in="The embedding is", closing=".")
    embedder.encoder = PromptEncoder(embedder.tokenizer, words, embedder.encoder.lengths)
    return save_embedder(embedder, tmp_path_factory.mktemp("card") / "model", ORIGIN)


def test_the_code_of_the_card_gives_the_embeddings_of_the_embedder(folder, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    monkeypatch.chdir(copy)
    names = {}
    exec(code_of(copy), names)
    embedder = load_embedder(folder)

    shown = json.loads(capsys.readouterr().out)
    assert len(shown) == 2
    documents = [*TEXTS[:3], "x " * 200]
    ours = embedder.embed_documents(documents)
    theirs = torch.stack([names["embed_text"]("document", text) for text in documents])
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    ours = embedder.embed_queries(QUERIES)
    theirs = torch.stack([names["embed_text"]("query", text) for text in QUERIES])
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    assert (ours[0] - ours[1]).abs().max() > 1e-2


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_short_example_runs_from_anywhere(folder, side, tmp_path, monkeypatch, capsys):
    embedder = load_embedder(folder)
    lengths = replace(embedder.encoder.lengths, truncation_side=side)
    embedder.encoder = PromptEncoder(embedder.tokenizer, embedder.encoder.prompts, lengths)
    folder = save_embedder(embedder, tmp_path / "some" / "model", ORIGIN)
    monkeypatch.chdir(tmp_path)
    example, whole = blocks_of(folder)
    assert len(example.splitlines()) < 26
    names, others = {}, {}
    exec(example.replace("path/to/this/folder", "some/model"), names)
    exec(whole.replace('folder = "."', 'folder = "some/model"'), others)

    assert len(json.loads(capsys.readouterr().out.splitlines()[0])) == 2
    ours = load_embedder(folder)
    end = {"right": "end", "left": "beginning"}[side]
    assert f"are cut at their {end}." in (folder / "README.md").read_text(encoding="utf-8")
    long = " ".join(f"word{n}" for n in range(200))
    for text in (*QUERIES, long):
        for given in (names["embed"](text, "direct"), others["embed_text"]("query", text)):
            torch.testing.assert_close(given, ours.embed_queries([text])[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(names["embed"](text), ours.embed_documents([text])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("repeat_ngram", [0, 1, 2])
def test_the_code_of_the_card_reasons_as_the_embedder_does(
    folder, repeat_ngram, tmp_path, monkeypatch, capsys
):
    embedder = load_embedder(folder)
    lengths = replace(embedder.encoder.lengths, reasoning=12, repeat_ngram=repeat_ngram)
    embedder.encoder = PromptEncoder(embedder.tokenizer, embedder.encoder.prompts, lengths)
    folder = save_embedder(embedder, tmp_path / "model", ORIGIN)
    monkeypatch.chdir(folder)
    names = {}
    exec(code_of(folder), names)
    ours = load_embedder(folder).reason(QUERIES)

    assert max(ours.n_tokens) > 0
    for row, query in enumerate(QUERIES):
        vector, text = names["reason"](query)
        assert text == ours.texts[row]
        torch.testing.assert_close(vector, ours.embeddings[row], atol=1e-5, rtol=0)


def test_the_card_states_origin_figures_prompts_and_licence(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")

    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["base_model"] == ORIGIN["base_model"]
    for word in (
        "`python -m src.train stage=sft`",
        "`0123abcd`",
        "seed: 7",
        "torch 2.13.0",
        "data: pydocs",
        "| direct | 0.5000 |  |",
        "| reasoning | 0.7500 | 0.2500 |",
        "| loss | 1.25 |",
        "think \\| first",
        "query 24, document 48, reasoning 6",
        "each under its own licence",
        "the training data and of Qwen/Qwen2.5-0.5B-Instruct",
    ):
        assert word in body, word
    n_parameters = sum(p.numel() for p in load_embedder(folder).model.parameters())
    assert f"{n_parameters / 1e6:,.1f} M parameters" in body
    assert "adapter/" not in body


def test_what_is_not_known_is_left_out_or_said(nano_folder, tmp_path):
    text = (nano_folder / "README.md").read_text(encoding="utf-8")

    assert "Base model: not recorded." in text
    assert "## Figures" not in text
    assert "None" not in text.replace(code_of(nano_folder), "")
    untrained = save_embedder(build_embedder(), tmp_path / "model", {}, is_trained=False)
    assert "nothing was trained" in (untrained / "README.md").read_text(encoding="utf-8")


def test_the_licence_of_a_mixture_is_that_of_each_source():
    cards = {"a": {"licence": "MIT"}, "b": {"sources": {"c": {"licence": "PSF-2.0"}, "d": {}}}}

    assert _licence({"sources": cards}) == "a: MIT b: c: PSF-2.0"
    assert _licence({}) is None


def test_the_card_of_a_lora_run_names_its_adapter(nano_folder, tmp_path):
    embedder = open_embedder(path=str(nano_folder), tuning=LoraTuning(r=4, alpha=8), **UNUSED)
    text = (save_embedder(embedder, tmp_path / "model", ORIGIN) / "README.md").read_text(encoding="utf-8")

    assert "adapter/" in text
    n_parameters = sum(p.numel() for p in load_embedder(nano_folder).model.parameters())
    assert f"{n_parameters / 1e6:,.1f} M parameters" in text  # merged, so without the adapter's


def test_the_code_of_the_card_reads_the_names_of_special_tokens_as_letters(tmp_path, capsys):
    """Of a tokenizer that has special tokens in its model's vocabulary; one of them has no role."""
    lengths = {**LENGTHS, "reasoning": 12}
    embedder = opened(write_plain(tmp_path / "plain", made(unigram), spare_rows=0), lengths=lengths)
    move_trained_weights(embedder)
    folder = save_embedder(embedder, tmp_path / "model", ORIGIN)
    example, whole = blocks_of(folder)
    names, others = {}, {}
    exec(example.replace("path/to/this/folder", str(folder)), names)
    exec(whole.replace('folder = "."', f'folder = "{folder}"'), others)
    ours = load_embedder(folder)

    texts = ["sum </s> text", "[SEP]", "<|end|> <|embed_token|>"]
    expected = ours.embed_queries(texts)
    for text, vector in zip(texts, expected, strict=True):
        for given in (names["embed"](text, "direct"), others["embed_text"]("query", text)):
            torch.testing.assert_close(given, vector, atol=1e-5, rtol=0)
    reasoned = ours.reason(texts)
    assert max(reasoned.n_tokens) > 0
    for row, text in enumerate(texts):
        vector, said = others["reason"](text)
        assert said == reasoned.texts[row]
        torch.testing.assert_close(vector, reasoned.embeddings[row], atol=1e-5, rtol=0)
