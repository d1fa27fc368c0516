"""`python -m src.check`: what it says of our folders, of damaged ones and of others'."""

import json
import re
import shutil

import pytest
import torch
from plain_folders import byte_tokenizer, opened, write_plain
from test_literals import made, unigram
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from search_r3.check import main
from search_r3.errors import UsageError
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.folder import save_embedder
from search_r3.models.folder.checking import DOCUMENT, QUERY
from search_r3.models.folder.upgrade import upgrade_folder
from search_r3.models.vocabulary import give_pad_token


def lines_of(capsys, folder):
    code = main([f"model.path={folder}"])
    _, *lines = capsys.readouterr().out.splitlines()
    return code, dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines)


def test_it_says_how_a_text_ends_and_is_cut(nano_folder, loaded_embedder, capsys):
    code, lines = lines_of(capsys, nano_folder)

    assert code == 0
    encoder, token = loaded_embedder.encoder, loaded_embedder.embed_token_id
    around = encoder.document.n_tokens
    whole = around + len(encoder.plain_ids(DOCUMENT))
    assert str([*encoder.queries([QUERY])[0][-6:]]) in lines["a query ends"]
    assert f"({min(whole, around + 48)} tokens)" in lines["a document ends"]
    assert f"{token}]" in lines["a cut document ends"]
    assert f"({around + 48} tokens)" in lines["a cut document ends"]
    assert lines["limits"].startswith("query 24, document 48 ")
    assert f"id {token}" in lines["embed token"]
    assert repr(encoder.direct.prefix_text) in lines["prompt of a query"]
    assert "float32" in lines["weights"]
    assert float(lines["alone and in a batch"].split()[-1]) < 1e-5


def test_it_measures_what_a_bare_last_token_gives(nano_folder, loaded_embedder, capsys):
    model = AutoModelForCausalLM.from_pretrained(nano_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(nano_folder)
    ours = (loaded_embedder.embed_queries([QUERY])[0], loaded_embedder.embed_documents([DOCUMENT])[0])
    expected = []
    for text, vector in zip((QUERY, DOCUMENT), ours, strict=True):
        with torch.no_grad():
            given = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        expected.append(torch.cosine_similarity(given.hidden_states[-1][0, -1], vector, dim=0).item())
    assert max(expected) < 0.99

    _, lines = lines_of(capsys, nano_folder)

    told = [float(number) for number in re.findall(r"-?\d\.\d{3}", lines["other tools"])]
    assert told == pytest.approx(expected, abs=6e-4)
    assert lines["sentence-transformers"].startswith("gives our ids")


def without_checksums(nano_folder, place):
    folder = shutil.copytree(nano_folder, place)
    description = json.loads((folder / "search_r3.json").read_text())
    del description["checksums"]
    (folder / "search_r3.json").write_text(json.dumps(description))
    return folder


def test_a_folder_of_before_is_told_to_be_read_wrong_elsewhere(nano_folder, tmp_path, capsys):
    folder = without_checksums(nano_folder, tmp_path / "model")
    (folder / "modules.json").unlink()

    code, lines = lines_of(capsys, folder)

    assert code == 1
    assert "WRONG" in lines["sentence-transformers"]
    assert f"python -m src.upgrade {folder}" in lines["sentence-transformers"]


def test_a_route_that_writes_another_prompt_is_wrong(nano_folder, tmp_path, capsys):
    folder = without_checksums(nano_folder, tmp_path / "model")
    routes = folder / "sentence_transformers"
    shutil.copy(routes / "document" / "tokenizer.json", routes / "query" / "tokenizer.json")

    code, lines = lines_of(capsys, folder)

    assert code == 1
    assert lines["sentence-transformers"].startswith("WRONG: other ids than ours for a query")


def test_a_folder_of_before_whose_routes_read_special_tokens_out_of_texts_is_wrong_until_upgraded(
    tmp_path, capsys
):
    embedder = opened(write_plain(tmp_path / "plain", made(unigram)))
    folder = without_checksums(save_embedder(embedder, tmp_path / "whole", {}), tmp_path / "model")
    for route in ("query", "document"):  # as they were written: with the names in the vocabulary
        file = folder / "sentence_transformers" / route / "tokenizer.json"
        text = file.read_text(encoding="utf-8").replace("\ufdd0<", "<").replace("\ufdd0[", "[")
        file.write_text(text, encoding="utf-8")

    code, lines = lines_of(capsys, folder)

    assert code == 1
    assert lines["sentence-transformers"].startswith("WRONG: other ids than ours for a document; to have it")
    (folder / "modules.json").unlink()
    assert upgrade_folder(folder)
    assert lines_of(capsys, folder)[0] == 0


def changed(folder, name, **settings):
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def pooled_by_the_last_token(folder):
    """What sentence-transformers makes of a folder that it does not know, when it saves it."""
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[1:]))


BROKEN = {
    "forgotten prompts": (pooled_by_the_last_token, "names Transformer in ., Pooling in"),
    "another pooling": (
        lambda folder: changed(folder, "sentence_transformers/pooling/config.json", pooling_mode="mean"),
        'pooling/config.json has pooling_mode "mean", ours has "lasttoken"',
    ),
    "a prompt twice": (
        lambda folder: changed(folder, "config_sentence_transformers.json", prompts={"query": "query: "}),
        "config_sentence_transformers.json has prompts",
    ),
    "the queries' route for encode": (
        lambda folder: changed(
            folder,
            "sentence_transformers/router_config.json",
            parameters={"default_route": "query", "allow_empty_key": True, "route_mappings": {}},
        ),
        "router_config.json has parameters",
    ),
    "a longer limit": (
        lambda folder: changed(
            folder, "sentence_transformers/query/sentence_bert_config.json", max_seq_length=9
        ),
        "query/sentence_bert_config.json has max_seq_length 9",
    ),
    "a file that is no JSON": (
        lambda folder: (folder / "sentence_transformers" / "normalize" / "config.json").write_text("{"),
        "normalize/config.json is missing or cannot be read",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_makes_another_model_of_it_elsewhere_is_wrong(nano_folder, tmp_path, capsys, kind):
    folder = without_checksums(nano_folder, tmp_path / "model")
    harm, told = BROKEN[kind]
    harm(folder)

    code, lines = lines_of(capsys, folder)

    assert code == 1
    assert lines["sentence-transformers"].startswith("WRONG: ")
    assert told in lines["sentence-transformers"]
    (folder / "modules.json").unlink()  # the remedy that the line names
    assert upgrade_folder(folder)
    assert lines_of(capsys, folder)[0] == 0


def test_padding_on_the_other_side_is_wrong(nano_folder, tmp_path, capsys):
    folder = without_checksums(nano_folder, tmp_path / "model")
    assert "WRONG" not in lines_of(capsys, folder)[1]["padding"]
    changed(folder, "tokenizer_config.json", padding_side="right")

    code, lines = lines_of(capsys, folder)

    assert code == 1
    assert "WRONG: its tokenizer_config.json says padding_side 'right'" in lines["padding"]


def test_a_vector_that_depends_on_its_batch_is_wrong(nano_folder, monkeypatch, capsys):
    def one_that_counts(self, texts):
        return torch.full((len(texts), self.width), float(len(texts)))

    monkeypatch.setattr(ReasoningEmbedder, "embed_documents", one_that_counts)

    code, lines = lines_of(capsys, nano_folder)

    assert code == 1
    assert lines["alone and in a batch"].startswith("differ by at most 3.0e+00; WRONG")


def encoder(place, pooling=None, prompts=None, eos=True, **tokenizer_settings):
    """A folder of sentence-transformers, as it lies on a hub; without pooling, a plain one."""
    tokenizer = byte_tokenizer()
    give_pad_token(tokenizer)
    end = tokenizer.eos_token
    if eos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
        )
    folder = write_plain(place, tokenizer)
    if tokenizer_settings:
        changed(folder, "tokenizer_config.json", **tokenizer_settings)
    if pooling is None:
        return folder
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts or {}}))
    return folder


LAST = {"pooling_mode_lasttoken": True}


def test_a_folder_of_sentence_transformers_is_looked_at(tmp_path, capsys):
    code, lines = lines_of(capsys, encoder(tmp_path / "m", LAST, {"query": "find: "}, padding_side="left"))

    assert code == 0
    assert lines["kind"].startswith("sentence-transformers: Transformer, Pooling")
    assert lines["limits"].startswith("12 tokens")
    assert lines["prompt of a query"] == "'find: '"
    assert lines["prompt of a document"] == "none"
    assert lines["a cut document ends"].endswith("(12 tokens)")
    assert lines["pooling"] == "lasttoken"
    assert float(lines["alone and in a batch"].split()[-1]) < 1e-5
    assert "forgets it" in lines["without its query prompt"]


FOREIGN = {
    "a lost end token": ({"pooling": LAST, "eos": False}, "a query ends", "no end token"),
    "padding before the first": (
        {"pooling": {"pooling_mode": "cls"}, "padding_side": "left"},
        "padding",
        "the first place is read",
    ),
    "no pooling": ({}, "pooling", "not stated"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_commonly_wrong_with_a_folder_of_others_is_told(tmp_path, capsys, kind):
    settings, name, told = FOREIGN[kind]

    code, lines = lines_of(capsys, encoder(tmp_path / "m", **settings))

    assert code == 1
    assert "WRONG" in lines[name]
    assert told in lines[name]


def test_what_is_no_model_folder_is_told_what_it_lacks(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UsageError, match=r"no search_r3\.json, no tokenizer\.json, no config\.json, no weights"
    ):
        main([f"model.path={tmp_path / 'empty'}"])
    with pytest.raises(UsageError, match="no such folder"):
        main([f"model.path={tmp_path / 'absent'}"])
    with pytest.raises(UsageError, match="is empty"):
        main(["model.path="])
    folder = encoder(tmp_path / "m", LAST)
    (folder / "modules.json").write_text('[{"path": "", "type": "their.code.Router"}]')
    with pytest.raises(UsageError, match="begins with Router"):
        main([str(folder)])
    (folder / "modules.json").write_text("{}")
    with pytest.raises(UsageError, match="must be a JSON list"):
        main([str(folder)])
