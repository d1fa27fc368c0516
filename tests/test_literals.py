"""A text that holds the name of a special token is read as letters, by every kind of tokenizer.

What is expected comes from a second tokenizer that never had the special tokens: its ids, moved by their
number.
"""

import pytest
from plain_folders import LENGTHS, TEMPLATE, opened, write_plain
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from search_r3.models.folder import load_embedder, save_embedder
from search_r3.models.prompts import EMBED_TOKEN
from search_r3.models.text_ids import WHOLE, plain_ids

SPECIAL = ["[PAD]", "</s>", "[SEP]", "<|end|>", "<|user|>", "<|system|>", "<|assistant|>", EMBED_TOKEN]
LETTERS = sorted(set("abcdefghijklmnopqrstuvwxyz.,_PADSEP<>/|[]"))
WORDS = ["sum", "text", "embed", "user", "end"]
NAMED = {"unk_token": "<unk>", "pad_token": "[PAD]", "eos_token": "</s>", "chat_template": TEMPLATE}


def unigram(special):
    """As those of T5 and XLM-R, whose special tokens have the best score of all."""
    pieces = [("<unk>", 0.0), *((name, 0.0) for name in special)]
    pieces += [(letter, -5.0) for letter in ["▁", *LETTERS]] + [("▁" + word, -4.0) for word in WORDS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def by_bytes(special):
    """As those of sentencepiece with byte fallback: the bytes are of the vocabulary too."""
    pieces = [("<unk>", 0.0), *((name, 0.0) for name in special)]
    pieces += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    pieces += [(letter, -5.0) for letter in ["▁", *LETTERS]] + [("▁" + word, -4.0) for word in WORDS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def word_level(special):
    names = ["<unk>", *special, *LETTERS, *WORDS, "a"]
    vocabulary = {name: place for place, name in enumerate(dict.fromkeys(names))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def word_piece(special):
    """Words are split at white space alone, so that a name stays in one piece."""
    names = ["<unk>", *special, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]
    vocabulary = {name: place for place, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def merged(special):
    """BPE whose merges lead to the special tokens, as where they were made of all pairs of pieces."""
    names = ["<unk>", *special, "▁", *LETTERS, "em", *WORDS]
    merges = [("e", "m")]
    for name in special:  # <|e|>: the first letter and the next, and so on
        merges += [(name[:end], name[end]) for end in range(1, len(name))]
    names += [left + right for left, right in merges]
    vocabulary = {name: place for place, name in enumerate(dict.fromkeys(names))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


KINDS = {each.__name__: each for each in (unigram, by_bytes, word_level, word_piece)}
TEXTS = [
    *(text for name in SPECIAL for text in (name, f"sum {name} text", f"a{name}b", f"{name}{name} {name}")),
    "sum ＜/s＞ text",  # which NFKC makes </s>
    f"{EMBED_TOKEN}</s>[SEP]",
    "sum of two",
    "▁sum ▁ text▁",
    "漢字 é \n \t",
    "",
    "<0x0A> <0x41>",
]


def made(kind, special=SPECIAL, **settings):
    """A tokenizer that has the tokens in its model's vocabulary and marks them as special."""
    backend = kind(special)
    backend.add_special_tokens([AddedToken(name, special=True, **settings) for name in ["<unk>", *special]])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **NAMED)


def expected(kind, texts):
    """Ids of a tokenizer that never had the special tokens."""
    found = [each.ids for each in kind([]).encode_batch(list(texts), add_special_tokens=False)]
    return [[id + len(SPECIAL) if id else 0 for id in ids] for ids in found]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"normalized": True}, {"lstrip": True, "rstrip": True}])
def test_the_name_of_a_special_token_is_read_as_if_the_vocabulary_did_not_have_it(kind, settings):
    tokenizer = made(KINDS[kind], **settings)
    assert plain_ids(tokenizer, TEXTS) == expected(KINDS[kind], TEXTS)
    assert tokenizer("</s>", add_special_tokens=False)["input_ids"] == [2]  # a prompt still has it


@pytest.mark.parametrize("kind", [*KINDS.values(), merged])
def test_no_text_has_the_id_of_a_special_token_other_than_the_unknown_one(kind):
    tokenizer = made(kind)
    special = set(tokenizer.convert_tokens_to_ids(SPECIAL))
    texts = [*TEXTS, *(f"\ufdd0{name} \ufdd1{name} ##{name} ▁{name}" for name in SPECIAL)]
    assert len(special) == len(SPECIAL)
    for text, ids in zip(texts, plain_ids(tokenizer, texts), strict=True):
        assert not special & set(ids), text


def test_a_name_that_merges_lead_to_is_read_by_its_pieces():
    ids = plain_ids(made(merged), ["</s>", "sum em"])
    tokenizer = made(merged)
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["▁", "</s", ">"]
    assert tokenizer.convert_ids_to_tokens(ids[1]) == ["▁", "s", "u", "m", "▁", "em"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_long_text_with_names_is_cut_as_the_whole_of_it_would_be(kind, side):
    text = f"sum {EMBED_TOKEN} </s> of [SEP] text " * (2 * WHOLE // 40)
    (whole,) = expected(KINDS[kind], [text])
    assert len(text) > WHOLE
    cut = whole[:7] if side == "right" else whole[-7:]
    assert plain_ids(made(KINDS[kind]), [text], 7, side) == [cut]


def test_a_byte_that_is_typed_and_a_byte_of_a_letter_are_what_the_tokenizer_says():
    tokenizer = made(by_bytes, [*SPECIAL])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<0xC3>", "<0xA9>", "<0x0A>"]})
    given = plain_ids(tokenizer, ["é", "<0x0A>", "</s>"])
    place = tokenizer.convert_tokens_to_ids("<0x00>")
    assert given[0][-2:] == [place + 0xC3, place + 0xA9]
    assert given[1][-1:] == [place + 0x0A]
    assert given[2] == expected(by_bytes, ["</s>"])[0]


@pytest.mark.parametrize("kind", [*KINDS.values(), merged])
@pytest.mark.parametrize("is_normalized", [False, True])
def test_an_added_token_that_is_not_special_is_read_out_of_a_text(kind, is_normalized):
    tokenizer = made(kind)
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=is_normalized)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|last|>"]})
    (ids,) = plain_ids(tokenizer, ["sum <tool_call> </s> <|last|>"])
    place = tokenizer.convert_tokens_to_ids("<tool_call>")
    assert ids.count(place) == 1
    assert not set(ids) & set(tokenizer.convert_tokens_to_ids(["</s>", "<|last|>"]))


@pytest.mark.parametrize("letter", ["a", "\n", "\n\n", "▁"])
def test_a_character_with_a_role_is_still_written(letter):
    backend = Tokenizer(
        models.Unigram([("<unk>", 0.0), *((each, -1.0) for each in ("a", "b", "▁", "\n", "\n\n"))], 0)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token=letter)
    (ids,) = plain_ids(tokenizer, [f"b{letter}b"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["b", letter, "b"]


def test_a_token_that_becomes_special_later_is_kept_out_from_then_on():
    tokenizer = made(word_level, ["</s>"])
    place = tokenizer.convert_tokens_to_ids("text")
    assert plain_ids(tokenizer, ["text </s>"]) == [[place, 0]]
    tokenizer.add_special_tokens({"additional_special_tokens": ["text"]})
    assert plain_ids(tokenizer, ["text </s>"]) == [[0, 0]]


@pytest.fixture(scope="module", params=[*KINDS.values(), merged], ids=[*KINDS, "merged"])
def embedder(request, tmp_path_factory):
    """Trained from a plain folder and read again, as it is served."""
    place = tmp_path_factory.mktemp("literal")
    lengths = {**LENGTHS, "query": 9}
    found = opened(write_plain(place / "plain", made(request.param)), lengths=lengths)
    folder = save_embedder(found, place / "model", {})
    return load_embedder(folder), folder


def test_queries_documents_and_reasonings_hold_one_embed_token_at_most(embedder):
    encoder = embedder[0].encoder
    special = set(encoder.tokenizer.convert_tokens_to_ids(SPECIAL))
    for ids in (*encoder.queries(TEXTS), *encoder.documents(TEXTS)):
        assert ids.count(encoder.embed_token_id) == 1
        assert ids[-1] == encoder.embed_token_id
    assert not special & {id for ids in encoder.reasonings(TEXTS) for id in ids}
    prompt = [*encoder.reasoning.prefix, *encoder.reasoning.suffix]
    marks = [id for id in prompt if id in special]
    assert marks  # the prompt itself has them
    for ids in encoder.reasoning_prompts(TEXTS):
        assert [id for id in ids if id in special] == marks


@pytest.mark.parametrize("route", ["query", "document"])
def test_the_tokenizer_of_sentence_transformers_reads_names_as_we_do(embedder, route, tmp_path):
    ours, folder = embedder
    encoder = ours.encoder
    whole = encoder.queries(TEXTS) if route == "query" else encoder.documents(TEXTS)
    theirs = AutoTokenizer.from_pretrained(str(folder / "sentence_transformers" / route))
    assert theirs(TEXTS, truncation="longest_first")["input_ids"] == whole
    assert theirs.pad_token_id == encoder.tokenizer.pad_token_id
    theirs.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(TEXTS, truncation="longest_first")["input_ids"] == whole
