"""A long text is cut before it is tokenized, and its first tokens are those of the whole text."""

import functools
import logging

import pytest
from conftest import TEXTS
from hypothesis import given
from hypothesis import strategies as st
from plain_folders import byte_tokenizer, sentencepiece_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from search_r3.models.nano import train_tokenizer
from search_r3.models.text_ids import PIECE, TIMES, WHOLE, cut_ids, plain_ids, settled_ids
from tests.fuzzing import fuzzed


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """As those of T5 and XLM-R: Unigram with Metaspace and NFKC."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """As those of BERT: WordPiece of words without accents and case."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def gpt4_tokenizer() -> PreTrainedTokenizerFast:
    """As those of Qwen and Llama 3: NFC, runs of blanks and line ends, byte-level BPE."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS, "    \n\n   \n" * 20], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="e")


KINDS = {
    "nano": lambda: train_tokenizer(TEXTS, 400),
    "byte": byte_tokenizer,
    "gpt4": gpt4_tokenizer,
    "metaspace": sentencepiece_tokenizer,
    "one word": lambda: sentencepiece_tokenizer("normalizer"),
    "unigram": unigram_tokenizer,
    "wordpiece": wordpiece_tokenizer,
}


@functools.cache
def made(kind: str) -> PreTrainedTokenizerFast:
    return KINDS[kind]()


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """As the library gives them for the whole text."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


letters = st.sampled_from("abcdefghirstSTA_.(:,'1é漢ßﬁ①\u0301\u0323\u200b🙂가\u1100\u1161")
special = st.sampled_from(["<|user|>", "<s>", "</s>", "<|embed_token|>", "<0x41>", "▁", "[UNK]"])
known = st.sampled_from(sorted(set(" ".join(TEXTS).split())))  # of several letters in a token
words = st.one_of(known, known, st.text(letters, min_size=1, max_size=7), special)
between = st.sampled_from([" ", "  ", "\n", " \n ", "\t", "\u00a0", "\r\n", "\u3000"])
pairs = st.lists(st.tuples(words, between), min_size=10, max_size=120)
long_texts = pairs.map(lambda found: "".join(word + gap for word, gap in found))


@pytest.mark.parametrize("kind", KINDS)
@fuzzed()
@given(text=long_texts, place=st.integers(0, 12))
def test_the_first_tokens_of_a_cut_text_are_those_of_the_whole_text(kind, text, place):
    """The last token is that at the first cut, or one before it."""
    tokenizer = made(kind)
    n_tokens = max(1, len(ids_of(tokenizer, text[:64])) - place)
    ids, is_settled = settled_ids(tokenizer, text, n_tokens, 64, "right")
    if is_settled:
        assert ids == ids_of(tokenizer, text)[:n_tokens]
    else:
        assert len(text) > TIMES * 64


@pytest.mark.parametrize("kind", KINDS)
@fuzzed()
@given(text=long_texts, place=st.integers(0, 12))
def test_the_last_tokens_of_a_text_cut_on_the_left_are_those_of_the_whole_text(kind, text, place):
    """The first token is that at the first cut, or one behind it."""
    tokenizer = made(kind)
    n_tokens = max(1, len(ids_of(tokenizer, text[-64:])) - place)
    ids, is_settled = settled_ids(tokenizer, text, n_tokens, 64, "left")
    if is_settled:
        assert ids == ids_of(tokenizer, text)[-n_tokens:]
    else:
        assert len(text) > TIMES * 64


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_text_keeps_its_end_where_the_left_is_cut(kind):
    tokenizer = made(kind)
    long = "open a socket " * (2 * WHOLE // 14) + "parse the header of a file"
    texts = ["sum of two integers in a row", long, ""]
    whole = [ids_of(tokenizer, text) for text in texts]
    assert len(whole[1]) > len(whole[0]) > 3
    assert plain_ids(tokenizer, texts, 3, "left") == [ids[-3:] for ids in whole]
    assert plain_ids(tokenizer, texts, 3) == [ids[:3] for ids in whole]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_read_on_until_its_first_tokens_stand_clear_of_the_cut(kind):
    """The cut at 64 and at 128 characters falls before or into the word that the tokens are of."""
    tokenizer = made(kind)
    text = " " * 90 + "parse the header of a file " * 100
    assert settled_ids(tokenizer, text, 5, 64, "right") == (ids_of(tokenizer, text)[:5], True)
    assert (
        settled_ids(tokenizer, text, 5, 64, "right")[0] != ids_of(tokenizer, text[:64])[:5] or kind != "nano"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["a", " ", "-", "\u0301", "\u200b", "漢", " \n", "<s>", "é", "🙂"])
def test_a_text_without_a_word_end_is_its_beginning(kind, unit):
    tokenizer, start = made(kind), 1024
    text = "a" + unit * (20 * start // len(unit))
    ids, is_settled = settled_ids(tokenizer, text, 30, start, "right")
    sizes = [start * 2**n for n in range(4)]
    assert sizes[-1] == TIMES * start
    assert ids in [ids_of(tokenizer, text[:size])[:30] for size in sizes]
    assert is_settled or ids == ids_of(tokenizer, text[: TIMES * start])[:30]


def test_texts_up_to_the_bound_are_read_whole_and_longer_ones_alike_alone_and_in_a_batch():
    tokenizer = made("nano")
    text = "--" * (WHOLE // 2 - 3) + "parse"
    assert len(text) < WHOLE
    assert plain_ids(tokenizer, [text], 4) == [ids_of(tokenizer, text)]
    texts = [f"{words} " * (3 * WHOLE // len(words)) for words in ("parse the header", "sum", "a - b")]
    both = plain_ids(tokenizer, ["first", *texts, "", "last"], 20)
    assert both == [plain_ids(tokenizer, [one], 20)[0] for one in ["first", *texts, "", "last"]]
    assert both[1:4] == [ids_of(tokenizer, one)[:20] for one in texts]
    assert [len(ids) for ids in both] == [
        len(ids_of(tokenizer, "first")),
        20,
        20,
        20,
        0,
        len(ids_of(tokenizer, "last")),
    ]


def test_a_limit_of_many_tokens_reads_as_much_as_they_need():
    tokenizer = made("byte")
    text = "sum of two " * 30_000
    assert plain_ids(tokenizer, [text], 9_000) == [ids_of(tokenizer, text)[:9_000]]


def test_without_a_limit_every_token_of_a_long_text_is_there():
    tokenizer = made("byte")
    text = "sum of two integers\n" * (PIECE // 20) + "\n" * (PIECE % 20) + "and more"
    assert len(text) > PIECE
    assert plain_ids(tokenizer, [text]) == [ids_of(tokenizer, text[:PIECE]) + ids_of(tokenizer, text[PIECE:])]


def test_what_is_not_read_is_said_once_for_all_texts_of_a_call(caplog):
    with caplog.at_level(logging.WARNING):
        plain_ids(made("nano"), ["-" * (2 * TIMES * WHOLE), "sum"] * 2, 5)
    assert [record.getMessage()[:36] for record in caplog.records] == ["2 texts have fewer than 5 tokens tha"]


@pytest.mark.parametrize("side", ["right", "left"])
def test_what_is_cut_is_counted_in_the_same_pass(side):
    tokenizer = made("byte")
    fits, long, very_long = "sum of two", "sum of two integers", "sum of two " * (WHOLE // 10)
    n_tokens = len(ids_of(tokenizer, fits))
    assert len(very_long) > WHOLE
    texts = [fits, long, "", very_long, fits]

    ids, n_cut = cut_ids(tokenizer, texts, n_tokens, side)

    assert n_cut == 2
    assert ids == plain_ids(tokenizer, texts, n_tokens, side)
    assert cut_ids(tokenizer, [very_long])[1] == 0  # nothing is cut without a limit
