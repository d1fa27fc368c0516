"""Tokenizers without a pad token, and the embed token's row in vocabularies with and without spare rows."""

import json
import re

import pytest
import torch
from conftest import QUERIES, TEXTS
from plain_folders import (
    ARCHITECTURES,
    LENGTHS,
    MARKS,
    TEMPLATE,
    WORDS,
    byte_tokenizer,
    opened,
    sentencepiece_tokenizer,
    write_plain,
)
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.folder import ModelFolderError, load_embedder, open_embedder, save_embedder
from search_r3.models.folder.plain import load_plain
from search_r3.models.prompts import EMBED_TOKEN, Lengths, Prompts
from search_r3.models.tuning import FullTuning, LoraTuning
from search_r3.models.vocabulary import add_embed_token, give_pad_token

UNUSED = {"name": None, "create": None, "prompts": {}, "lengths": {}}
TOKENIZERS = {
    "llama": lambda: sentencepiece_tokenizer("normalizer"),
    "mistral": sentencepiece_tokenizer,
    "gpt2": lambda: byte_tokenizer(bos_token="<|end|>", unk_token="<|end|>"),
    "gemma": lambda: sentencepiece_tokenizer(pad_token="<s>"),
    "phi": byte_tokenizer,
    "qwen2": byte_tokenizer,
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def embedder(request, tmp_path_factory):
    """A model as the hub has it: no embed token, mostly no pad token."""
    folder = tmp_path_factory.mktemp(request.param) / "plain"
    return opened(write_plain(folder, TOKENIZERS[request.param](), request.param))


def test_padding_does_not_depend_on_the_pad_token(embedder):
    """A batch of rows of unequal length, under each of three pad ids that are also real tokens of a text."""
    tokenizer = embedder.tokenizer
    assert tokenizer.pad_token_id is not None
    documents = [*TEXTS[:4], "a"]
    alone = torch.cat([embedder.embed_documents([text]) for text in documents])
    token = tokenizer.convert_ids_to_tokens(embedder.encoder.plain_ids("sum")[0])
    before = tokenizer.pad_token
    for pad in (before, tokenizer.eos_token, token):
        tokenizer.pad_token = pad
        together = embedder.embed_documents(documents)
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    tokenizer.pad_token = before


def test_the_pad_token_is_kept_in_the_folder_and_in_the_tokenizer(embedder, tmp_path):
    folder = save_embedder(embedder, tmp_path / "model", {})
    chosen = embedder.tokenizer.pad_token

    assert AutoTokenizer.from_pretrained(folder).pad_token == chosen
    assert json.loads((folder / "search_r3.json").read_text())["pad_token"] == chosen
    # A folder whose tokenizer lost it gets the one that the folder names, whatever would be chosen today.
    description = json.loads((folder / "search_r3.json").read_text())
    del description["checksums"]  # as in a folder from before there were any
    recorded = next(token for token in embedder.tokenizer.all_special_tokens if token != chosen)
    (folder / "search_r3.json").write_text(json.dumps(description | {"pad_token": recorded}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_embedder(folder).tokenizer.pad_token == recorded
    assert open_embedder(path=str(folder), tuning=FullTuning(), **UNUSED).tokenizer.pad_token == recorded


@pytest.mark.parametrize("tuning", [FullTuning(), LoraTuning(r=2, alpha=4)], ids=["full", "lora"])
def test_what_is_saved_is_what_is_loaded(embedder, tmp_path, tuning):
    folder = save_embedder(embedder, tmp_path / "model", {})
    again = save_embedder(open_embedder(path=str(folder), tuning=tuning, **UNUSED), tmp_path / "again", {})
    loaded = load_embedder(again)

    expected = embedder.embed_documents(TEXTS)
    torch.testing.assert_close(loaded.embed_documents(TEXTS), expected, rtol=1e-4, atol=1e-5)
    assert loaded.reason(QUERIES).token_ids == embedder.reason(QUERIES).token_ids


@pytest.mark.parametrize(
    ("tokenizer", "pad"),
    [
        (lambda: byte_tokenizer((*MARKS, "<|finetune_right_pad_id|>")), "<|finetune_right_pad_id|>"),
        (lambda: byte_tokenizer((*MARKS, "<|reserved_special_token_0|>")), "<|reserved_special_token_0|>"),
        (sentencepiece_tokenizer, "<unk>"),
        (byte_tokenizer, "<|end|>"),
        (lambda: byte_tokenizer(eos_token=None, bos_token="<|user|>"), "<|user|>"),
        (lambda: byte_tokenizer(pad_token="<|system|>"), "<|system|>"),
    ],
    ids=["named", "reserved", "unknown", "end", "beginning", "its own"],
)
def test_which_token_pads(tokenizer, pad):
    tokenizer = tokenizer()
    give_pad_token(tokenizer)

    assert tokenizer.pad_token == pad
    give_pad_token(tokenizer, "<|user|>")
    assert tokenizer.pad_token == pad  # one that is there stays


def test_without_any_special_token_the_embed_token_pads_and_is_still_written(tmp_path):
    folder = write_plain(tmp_path / "plain", byte_tokenizer(special=("a",), eos_token=None))
    embedder = opened(folder)

    assert embedder.tokenizer.pad_token == EMBED_TOKEN
    assert embedder.embed_token_id not in embedder.special_ids.banned
    assert embedder.reason(QUERIES).embeddings.isfinite().all()


# Rows


def rows_of(model):
    head = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    return {"in": model.get_input_embeddings().weight, "out": head.weight} | (
        {} if bias is None else {"bias": bias}
    )


@pytest.mark.parametrize("architecture", ["llama", "gemma"])
@pytest.mark.parametrize("of_embed_token", [True, False])
def test_the_row_that_a_configuration_pads_with_is_trained(tmp_path, architecture, of_embed_token):
    """That of the embed token, as where a pad token was added and not saved, or of the end of a turn."""
    tokenizer = byte_tokenizer()
    token = len(tokenizer) if of_embed_token else tokenizer.eos_token_id
    folder = write_plain(tmp_path, tokenizer, architecture, pad_token_id=token)
    assert AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().padding_idx == token
    embedder = opened(folder)
    assert (token == embedder.embed_token_id) == of_embed_token
    ids = torch.tensor([embedder.encoder.documents(["sum of two"])[0]])

    embedder.hidden_states(ids, torch.ones_like(ids, dtype=torch.bool))[:, -1].square().sum().backward()

    assert embedder.causal_lm.get_input_embeddings().weight.grad[token].abs().max() > 0


@pytest.mark.parametrize("spare_rows", [0, 7])
@pytest.mark.parametrize("architecture", ["llama", "gemma", "phi"], ids=["untied", "tied", "biased"])
def test_the_embed_token_starts_at_the_mean_of_the_used_rows_and_no_other_row_moves(
    tmp_path, architecture, spare_rows
):
    tokenizer = byte_tokenizer()
    n = len(tokenizer)
    folder = write_plain(tmp_path / "plain", tokenizer, architecture, spare_rows)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for value in rows_of(model).values():
            value += torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    before = {name: value.detach().clone() for name, value in rows_of(model).items()}

    add_embed_token(model, tokenizer)

    assert tokenizer.convert_tokens_to_ids(EMBED_TOKEN) == n
    assert ("bias" in before) == (architecture == "phi")
    for name, value in rows_of(model).items():
        assert value.shape[0] == n + max(spare_rows, 1), name
        torch.testing.assert_close(value[n], before[name][:n].mean(0))
        others = [row for row in range(before[name].shape[0]) if row != n]
        assert torch.equal(value[others], before[name][others]), name
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (architecture == "gemma")
    assert model.config.vocab_size == n + max(spare_rows, 1)
    logits = model(input_ids=torch.tensor([[n, 1]])).logits
    assert logits.shape[-1] == model.config.vocab_size


def test_added_tokens_without_a_row_get_one(tmp_path):
    """A pad token added to the tokenizer and not to the model, as many a folder has it."""
    tokenizer = byte_tokenizer()
    n = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    folder = write_plain(tmp_path / "plain", tokenizer, spare_rows=-1)

    embedder = opened(folder)

    assert (embedder.tokenizer.pad_token_id, embedder.embed_token_id) == (n, n + 1)
    weight = embedder.causal_lm.get_input_embeddings().weight
    assert weight.shape[0] == n + 2
    torch.testing.assert_close(weight[n], weight[:n].mean(0))
    torch.testing.assert_close(weight[n + 1], weight[:n].mean(0))
    assert embedder.embed_documents(TEXTS).isfinite().all()


def test_a_tokenizer_that_has_the_embed_token_and_a_model_that_lacks_its_row(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [EMBED_TOKEN]})
    embedder = opened(write_plain(tmp_path / "plain", tokenizer, spare_rows=-1))

    assert embedder.causal_lm.get_input_embeddings().weight.shape[0] == len(embedder.tokenizer)
    assert embedder.embed_documents(TEXTS).isfinite().all()


@pytest.mark.parametrize("spare_rows", [0, 50])
def test_a_vocabulary_with_holes_bans_the_holes_and_no_token(tmp_path, spare_rows):
    """The last token of the vocabulary stands 30 ids further on, so there are fewer tokens than ids."""
    tokenizer = byte_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    token, last = max(state["model"]["vocab"].items(), key=lambda item: item[1])
    state["model"]["vocab"][token] = last + 30
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))

    embedder = opened(write_plain(tmp_path / "plain", tokenizer, spare_rows=spare_rows))

    tokens, n_rows = set(embedder.tokenizer.get_vocab().values()), embedder.vocabulary_size
    assert max(tokens) == last + 30
    assert n_rows == max(last + 31, last + 1 + spare_rows)
    banned = set(embedder.special_ids.banned)
    assert {last + 29, *range(last + 31, n_rows)} <= banned
    marked = {place for place, token in embedder.tokenizer.added_tokens_decoder.items() if token.special}
    assert banned & tokens <= marked - {embedder.embed_token_id}
    assert embedder.embed_ids([[last + 30, embedder.embed_token_id]]).isfinite().all()


def test_an_embed_token_that_would_get_the_id_of_a_word_is_refused(tmp_path):
    """The tokenizers library counts 258 words and gives that id, which `he` has: 256 and 257 are holes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {letter: place for place, letter in enumerate(letters)} | {"he": 258, "ll": 259}
    backend = Tokenizer(models.BPE(vocab=words, merges=[("h", "e"), ("l", "l")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATE)
    folder = write_plain(tmp_path, tokenizer, eos_token_id=None)
    with pytest.raises(ValueError, match=r"would get id 258, which is that of 'he'"):
        opened(folder)


def test_an_embedder_made_by_hand_gets_a_pad_token_too(embedder):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [EMBED_TOKEN]})
    made = ReasoningEmbedder(embedder.model, tokenizer, embedder.encoder.prompts, embedder.encoder.lengths)

    assert made.embed_documents([*TEXTS[:3], "a"]).isfinite().all()


def with_tokens(*tokens, **named):
    """A tokenizer to which tokens are added at the end."""
    tokenizer = byte_tokenizer(**named)
    for token in tokens:
        tokenizer.add_tokens([token], special_tokens=token.special)
    return tokenizer


def special(text):
    return AddedToken(text, special=True)


def evaluated(folder):
    return load_plain(folder, Prompts(**WORDS), Lengths(**LENGTHS))


@pytest.mark.parametrize("read", [opened, evaluated])
@pytest.mark.parametrize("is_normalized", [False, True])
def test_an_embed_token_that_was_not_marked_as_special_is_not_read_out_of_a_text(
    tmp_path, read, is_normalized
):
    token = AddedToken(EMBED_TOKEN, special=False, normalized=is_normalized)
    embedder = read(write_plain(tmp_path / "plain", with_tokens(token)))
    text = f"a {EMBED_TOKEN} in a text"
    ids = embedder.encoder.documents([text])[0]
    assert ids.count(embedder.embed_token_id) == 1
    assert ids[-1] == embedder.embed_token_id
    if read is opened:
        saved = load_embedder(save_embedder(embedder, tmp_path / "model", {}))
        assert saved.encoder.documents([text])[0] == ids


def test_a_token_marked_as_special_without_a_role_is_never_written(tmp_path):
    embedder = opened(write_plain(tmp_path, with_tokens(special("<|x|>"))))
    ids = set(embedder.tokenizer.convert_tokens_to_ids(["<|x|>", "<|user|>"]))
    assert not ids & set(embedder.tokenizer.all_special_ids)
    assert ids <= set(embedder.special_ids.banned)


def test_special_tokens_without_a_row_do_not_keep_a_checkpoint_from_being_evaluated(tmp_path):
    """As in a folder to which a pad token was added, and no row."""
    tokenizer = with_tokens(special(EMBED_TOKEN), special("<|pad|>"))
    tokenizer.pad_token = "<|pad|>"
    embedder = evaluated(write_plain(tmp_path, tokenizer, spare_rows=-1))
    documents = [*TEXTS[:2], "a"]
    alone = torch.cat([embedder.embed_documents([text]) for text in documents])
    torch.testing.assert_close(embedder.embed_documents(documents), alone, rtol=1e-4, atol=1e-5)
    assert max(embedder.special_ids.banned) < embedder.vocabulary_size
    assert torch.isfinite(embedder.reason(QUERIES[:2]).embeddings).all()


@pytest.mark.parametrize(
    "lacking",
    [{"token": special("<|x|>"), "chat_template": "<|x|>" + TEMPLATE}, {"token": AddedToken("sum")}],
)
def test_a_token_of_prompts_or_texts_without_a_row_is_refused_by_name(tmp_path, lacking):
    named = dict(lacking)
    token = named.pop("token")
    folder = write_plain(tmp_path, with_tokens(special(EMBED_TOKEN), token, **named), spare_rows=-1)
    with pytest.raises(ModelFolderError, match=rf"'{re.escape(str(token))}' of its tokenizer is id \d+, and"):
        evaluated(folder)
