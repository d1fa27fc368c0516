"""Where a reasoning is cut, and what the query's embedding is there."""

import numpy as np
import pytest
import torch
from conftest import LENGTHS, QUERIES, TEXTS, build_embedder
from transformers import MambaConfig, MambaForCausalLM

from search_r3 import SearchR3
from search_r3.models.cuts import cuts_of
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.prompts import Prompts


def cut(tokens: list[str], most: int = 40):
    """Cuts of a text whose tokens are given as text."""
    return cuts_of(lambda ids: "".join(tokens[place] for place in ids), range(len(tokens)), most)


SENTENCES = ["He", " asks", ".", " It", " is", " 3", ".", "14", " m", "!", "\n", "So", " what", "?", " End"]


def test_a_reasoning_is_cut_after_its_sentences():
    cuts = cut(SENTENCES)

    assert cuts.unit == "sentence"
    assert cuts.pieces == ("", "He asks.", " It is 3.14 m!", "\n", "So what?", " End")
    assert cuts.places == (0, 3, 10, 11, 14, 15)


def test_a_full_stop_of_another_script_needs_no_blank():
    assert cut(["你", "好", "。", "再", "见", "。", "好"]).pieces == ("", "你好。", "再见。", "好")


def test_few_sentences_are_cut_after_words_and_few_words_after_tokens():
    assert cut(["open", " a", " fi", "le", "."]).pieces == ("", "open", " a", " file.")
    assert cut(["open", " a", " fi", "le", "."]).unit == "word"
    assert cut(["parse", "_", "header"]).pieces == ("", "parse", "_", "header")
    assert cut(["parse", "_", "header"]).unit == "token"


@pytest.mark.parametrize("tokens", [[], ["one"], ["one", " two"]])
def test_the_shortest_reasonings(tokens):
    cuts = cut(tokens)
    assert cuts.places == tuple(range(len(tokens) + 1))
    assert cuts.pieces == ("", *tokens)


def test_a_character_of_several_tokens_stays_whole():
    raw = "für Größe, 日本".encode()
    cuts = cuts_of(
        lambda ids: bytes(raw[place] for place in ids).decode(errors="replace"), range(len(raw)), 40
    )
    assert "".join(cuts.pieces) == raw.decode()
    assert not any("\ufffd" in piece for piece in cuts.pieces)
    wide = "日本".encode()
    tokens = cuts_of(lambda ids: bytes(wide[n] for n in ids).decode(errors="replace"), range(len(wide)), 40)
    assert tokens.pieces == ("", "日", "本")


@pytest.mark.parametrize("most", [2, 3, 5])
def test_too_many_places_are_thinned_and_both_ends_stay(most):
    cuts = cut([" word"] * 50, most)
    assert len(cuts.places) == most
    assert (cuts.places[0], cuts.places[-1]) == (0, 50)
    assert "".join(cuts.pieces) == " word" * 50
    assert max(np.diff(cuts.places)) - min(np.diff(cuts.places)) <= 1


# Vectors; those of every architecture are compared in test_architectures


def test_what_comes_before_the_places_is_run_once(embedder):
    seen = []
    hook = embedder.decoder.register_forward_pre_hook(
        lambda decoder, args, kwargs: seen.append(list(kwargs["input_ids"].shape)), with_kwargs=True
    )
    reasoning = embedder.encoder.plain_ids(TEXTS[0])
    embedder.embed_cuts(QUERIES[0], reasoning, range(len(reasoning) + 1))
    hook.remove()

    n_prompt = len(embedder.encoder.reasoning_prompts(QUERIES[:1])[0])
    assert seen == [[1, n_prompt + len(reasoning)], [len(reasoning) + 1, 1]]


def test_the_token_budget_does_not_change_a_vector(embedder):
    reasoning = embedder.encoder.plain_ids(TEXTS[0])
    cuts = range(len(reasoning) + 1)
    whole = embedder.embed_cuts(QUERIES[0], reasoning, cuts)
    embedder.token_budget = 100
    torch.testing.assert_close(embedder.embed_cuts(QUERIES[0], reasoning, cuts), whole, atol=1e-5, rtol=1e-5)


def test_a_model_that_keeps_no_keys_runs_every_beginning():
    tokenizer = build_embedder().tokenizer
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    model = MambaForCausalLM(MambaConfig(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    embedder = ReasoningEmbedder(model, tokenizer, Prompts("d", "r", "t", lead_in="", closing=""), LENGTHS)
    reasoning = embedder.encoder.plain_ids(TEXTS[0])[:6]
    prompt = embedder.encoder.reasoning_prompts(QUERIES[:1])[0]

    vectors = embedder.embed_cuts(QUERIES[0], reasoning, [0, 3, 6])

    for place, vector in zip([0, 3, 6], vectors, strict=True):
        ids = [*prompt, *reasoning[:place], embedder.embed_token_id]
        torch.testing.assert_close(vector, embedder.embed_ids([ids])[0], atol=1e-5, rtol=1e-5)


def test_a_place_outside_is_refused_and_none_gives_none(embedder):
    with pytest.raises(ValueError, match="from 0 to 2"):
        embedder.embed_cuts("x", [7, 8], [3])
    assert embedder.embed_cuts("x", [7, 8], []).shape == (0, embedder.width)


# The class


@pytest.fixture(scope="module")
def model(loaded_embedder, tmp_path_factory):
    return SearchR3(loaded_embedder, tmp_path_factory.mktemp("cache")).read(TEXTS[:5], progress=False)


def test_a_trace_follows_a_document_from_the_prompt_to_the_hits(model):
    found = model.search(QUERIES[1], k=5)
    trace = model.trace(found)
    names = [hit.id for hit in found.hits]

    ranks, scores = model.ranks(trace.embeddings, names)

    assert ranks[-1].tolist() == [1, 2, 3, 4, 5]
    assert scores[-1].tolist() == [hit.score for hit in found.hits]
    assert (trace.n_tokens[0], trace.n_tokens[-1]) == (0, found.n_tokens)
    assert "".join(trace.pieces).strip() == found.reasoning
    written = model.embedder.encoder.reasoning_prompts([found.query])[0]
    for n_tokens, vector, row in zip(trace.n_tokens, trace.embeddings, ranks, strict=True):
        ids = [*written, *found.token_ids[:n_tokens], model.embedder.embed_token_id]
        alone = model.embedder.embed_ids([ids])[0].numpy()
        np.testing.assert_allclose(vector, alone, atol=1e-5)
        cosines = model.embed_documents(TEXTS[:5]) @ alone
        order = np.argsort(-cosines)
        assert np.diff(-cosines[order]).min() > 1e-5  # nothing is nearly tied
        assert [names[place] for place in np.argsort(row)] == [str(place) for place in order]


def test_only_a_reasoning_is_traced_and_only_known_documents_have_ranks(model):
    direct = model.search("x", mode="direct")
    with pytest.raises(ValueError, match="reasoning mode"):
        model.trace(direct)
    with pytest.raises(ValueError, match="at least 2"):
        model.trace(model.search("x"), most=1)
    with pytest.raises(ValueError, match="no document 'nine'"):
        model.ranks(direct.embedding[None], ["nine"])
    with pytest.raises(ValueError, match="read"):
        SearchR3(model.embedder).ranks(direct.embedding[None], ["0"])
