"""Tokenization: only the user's text is cut, and prefix, text and suffix give the ids of the whole string."""

from conftest import LENGTHS, PROMPTS, TEXTS

from search_r3.models.nano import train_tokenizer
from search_r3.models.prompts import EMBED_TOKEN, Lengths, PromptEncoder


def encoder(**limits):
    return PromptEncoder(
        train_tokenizer(TEXTS, 400),
        PROMPTS,
        Lengths(**{"query": 24, "document": 48, "reasoning": 6, **limits}),
    )


def test_the_parts_give_the_ids_of_the_whole_string():
    parts = encoder()
    text = "parseHeader of a file"
    whole = f"<|system|>document<|user|>{text}<|assistant|>{EMBED_TOKEN}"
    assert parts.documents([text]) == [parts.tokenizer(whole, add_special_tokens=False)["input_ids"]]


def test_only_the_users_text_is_cut_and_at_its_end():
    short = encoder(document=3)
    full = encoder().documents(["sum of two integers and more"])[0]
    cut = short.documents(["sum of two integers and more"])[0]
    prefix, suffix = short.document.prefix, short.document.suffix
    assert cut == [*prefix, *full[len(prefix) : len(prefix) + 3], *suffix]
    assert cut[-1] == short.embed_token_id
    assert short.truncated_count(["sum of two integers and more", "a"], "document") == 1


def test_special_tokens_in_a_users_text_are_plain_text():
    parts = encoder()
    ids = parts.text_ids([f"a {EMBED_TOKEN} b <|system|> c"])[0]
    assert not set(ids) & set(parts.tokenizer.all_special_ids)
    assert "embed token" in parts.tokenizer.decode(ids)


def test_identifiers_are_read_as_words():
    tokenizer = train_tokenizer(TEXTS, 600)
    ids = {
        text: tokenizer(text)["input_ids"]
        for text in ("parseHeader", "parse_header", "Parse header", "PARSE-HEADER")
    }
    assert len({tuple(value) for value in ids.values()}) == 1
    assert tokenizer.decode(ids["parseHeader"]).strip() == "parse header"
    assert tokenizer.decode(tokenizer("HTTPServer2")["input_ids"]).split() == ["http", "server2"]


def test_any_text_survives_as_bytes():
    tokenizer = train_tokenizer(TEXTS, 400)
    assert tokenizer.decode(tokenizer("größe 漢字")["input_ids"]).strip() == "größe 漢字"


def test_the_fingerprint_knows_wording_limits_and_tokenizer():
    other_tokenizer = PromptEncoder(train_tokenizer(TEXTS, 300), PROMPTS, LENGTHS)
    prints = {encoder().fingerprint, encoder(query=25).fingerprint, other_tokenizer.fingerprint}
    assert len(prints) == 3
    assert encoder().fingerprint == encoder().fingerprint == encoder(repeat_ngram=0).fingerprint
    assert encoder(repeat_ngram=1).fingerprint != encoder().fingerprint
