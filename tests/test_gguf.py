"""GGUF files: the model is what was written, tokens are those of the original, and the rest is refused."""

import json
import unicodedata
from functools import cache
from itertools import pairwise

import gguf
import numpy as np
import pytest
import regex
import torch
from conftest import QUERIES, TEXTS
from gguf_files import CONTROL, small_llama, vocabulary_and_merges, write_gguf
from plain_folders import opened
from transformers import AutoModelForCausalLM, AutoTokenizer

from search_r3.models.folder import load_embedder, save_embedder
from search_r3.models.gguf import PRE_TOKENIZERS, GgufError, quantisation, read_gguf
from search_r3.models.prompts import EMBED_TOKEN
from search_r3.models.tuning import FullTuning, LoraTuning
from tests.command import run

GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PATTERNS = {
    "gpt-2": [GPT_2],
    "smollm": [r"\p{N}", GPT_2],
    "llama-bpe": [LLAMA_3],
    "qwen2": [LLAMA_3.replace("{1,3}", "")],
}
"""As llama.cpp has them (llama-vocab.cpp): a text is cut at each match of the first, the rest by the next."""

HARD = [
    *TEXTS,
    "x = [ 12,  345]\n\n  7 items, 3.14 and 2²  ½",
    "It's 1999's DON'T  we'Ll\tcosts 12,500\r\nnext\n \n  end   ",
    "naïve Ünïcode 東京 12月 🙂🙂 \u00a0\u2003x",
    "for i in range(10):\n    print(i, 1e-05)  # 100%",
    "",
    " ",
    "cafe\u0301 \u1e9b\u0323",
    "<|im_end|> is text",
]


@cache
def byte_characters() -> dict[int, str]:
    """GPT-2's spelling of bytes: printable Latin-1 stands for itself, the others are moved up by 256."""
    spans = ("!~", "¡¬", "®ÿ")
    printable = [byte for first, last in spans for byte in range(ord(first), ord(last) + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


def pieces(text: str, patterns: list[str]) -> list[str]:
    """A text cut by one pattern after the other; what stands between matches is a piece too."""
    parts = [text]
    for pattern in patterns:
        cut = []
        for part in parts:
            end = 0
            for match in regex.finditer(pattern, part):
                cut += [part[end : match.start()], match[0]]
                end = match.end()
            cut.append(part[end:])
        parts = [part for part in cut if part]
    return parts


def merged(piece: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair merges, the slow way: the lowest rank first, from the left."""
    symbols = [byte_characters()[byte] for byte in piece.encode()]
    while len(symbols) > 1:
        rank, place = min((ranks.get(pair, 1 << 60), n) for n, pair in enumerate(pairwise(symbols)))
        if rank == 1 << 60:
            break
        symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
    return symbols


@pytest.fixture(scope="module")
def vocabulary():
    tokens, merges = vocabulary_and_merges()
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    return {token: number for number, token in enumerate(tokens)}, ranks


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A file, and the model that was written into it."""
    file = tmp_path_factory.mktemp("gguf") / "small.gguf"
    return file, write_gguf(file)


def test_every_family_of_the_table_is_compared_here():
    assert PATTERNS.keys() == PRE_TOKENIZERS.keys()


@pytest.mark.parametrize("pre", PATTERNS)
def test_tokens_are_those_of_the_pattern_and_the_merges(pre, vocabulary, tmp_path):
    numbers, ranks = vocabulary
    file = tmp_path / "a.gguf"
    write_gguf(file, pre=pre)
    _, tokenizer = read_gguf(file)
    tokenizer.save_pretrained(tmp_path / "folder")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "folder")

    for text in HARD:
        read = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
        expected = [numbers[token] for piece in pieces(read, PATTERNS[pre]) for token in merged(piece, ranks)]
        for each in (tokenizer, loaded):
            found = each(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            assert found == expected, (pre, text)
    assert tokenizer.decode(expected) == HARD[-1]


def test_families_differ_on_digits():
    """Otherwise the test above would not tell them apart."""
    cut = {pre: tuple(pieces("  12345 x", patterns)) for pre, patterns in PATTERNS.items()}

    assert len(set(cut.values())) == 4


@pytest.mark.parametrize(
    ("pre", "says", "starts"),
    [
        ("smollm", None, False),
        ("llama-bpe", None, True),
        ("smollm", True, True),
        ("llama-bpe", False, False),
    ],
)
def test_a_text_starts_with_bos_where_the_file_or_the_family_says_so(pre, says, starts, tmp_path):
    write_gguf(tmp_path / "a.gguf", pre=pre, **({} if says is None else {"add_bos_token": says}))
    _, tokenizer = read_gguf(tmp_path / "a.gguf")

    assert (tokenizer("sum")["input_ids"][0] == 1) == starts


def test_special_tokens_and_the_chat_template_are_those_of_the_file(small):
    _, tokenizer = read_gguf(small[0])

    assert [tokenizer.convert_tokens_to_ids(token) for token in CONTROL] == [0, 1, 2]
    named = (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert named == (*CONTROL, CONTROL[-1])
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "<|im_start|>user\nhi<|im_end|>\n"
    assert tokenizer(text)["input_ids"][0] == 1
    assert tokenizer.model_max_length == 256


def test_the_model_is_the_one_that_was_written(small):
    file, written = small
    model, _ = read_gguf(file)

    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, written(ids).logits, rtol=1e-5, atol=1e-5)
    for name, value in written.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.config.rope_parameters["rope_theta"] == 100000.0
    assert model.config.pad_token_id is None
    assert not hasattr(model.config, "quantization_config")


def test_quantised_weights_are_what_the_file_says_in_any_dtype(tmp_path):
    file = tmp_path / "q8.gguf"
    written = write_gguf(file, quantised=("ffn_up.weight", "attn_q.weight"))

    model, _ = read_gguf(file, torch.bfloat16)

    kind = gguf.GGMLQuantizationType.Q8_0
    array = written.state_dict()["model.layers.1.mlp.up_proj.weight"].numpy()
    expected = torch.from_numpy(gguf.dequantize(gguf.quantize(array, kind), kind))
    assert not torch.equal(expected, torch.from_numpy(array))
    found = model.state_dict()["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(found, expected.to(torch.bfloat16))
    assert quantisation(file) == {"F32": 16, "Q8_0": 4}


def test_a_model_from_a_file_can_be_saved_and_read_as_any_folder(small, tmp_path):
    model, tokenizer = read_gguf(small[0])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_unused_ids_stay_free_and_the_embed_token_takes_the_first(tmp_path):
    """As in Qwen2.5, whose converter calls the rows that round the matrix up [PAD151665] and so on."""
    write_gguf(tmp_path / "a.gguf", n_unused=5)
    embedder = opened(tmp_path / "a.gguf")
    n_tokens = len(vocabulary_and_merges()[0])

    assert embedder.embed_token_id == n_tokens
    assert embedder.vocabulary_size == n_tokens + 5
    assert not [token for token in embedder.tokenizer.get_vocab() if token.startswith("[PAD")]


@pytest.mark.parametrize("tuning", [FullTuning(), LoraTuning(r=2, alpha=4)], ids=["full", "lora"])
def test_without_a_spare_row_the_matrix_grows_by_the_embed_token_alone(small, tuning, tmp_path):
    """As SmolLM2 has it: vocabulary and matrix are of one size, and the head is tied."""
    file, written = small
    embedder = opened(file, tuning=tuning)
    n = written.config.vocab_size

    assert embedder.tokenizer.convert_tokens_to_ids(EMBED_TOKEN) == n
    folder = save_embedder(embedder, tmp_path / "model", {})
    loaded = load_embedder(folder)
    weight = loaded.causal_lm.get_input_embeddings().weight
    assert weight is loaded.causal_lm.get_output_embeddings().weight
    assert weight.shape[0] == n + 1 == loaded.causal_lm.config.vocab_size
    before = written.get_input_embeddings().weight.detach()
    assert torch.equal(weight[:n], before)
    torch.testing.assert_close(weight[n], before.mean(0))
    expected = embedder.embed_documents(TEXTS)
    torch.testing.assert_close(loaded.embed_documents(TEXTS), expected, rtol=1e-4, atol=1e-5)
    assert loaded.reason(QUERIES).token_ids == embedder.reason(QUERIES).token_ids


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pre": "deepseek-llm"}, ["'deepseek-llm'", "gpt-2, smollm, llama-bpe, qwen2"]),
        ({"pre": None}, ["names no pre-tokenizer"]),
        ({"kind": "llama"}, ["kind 'llama'", "byte-level BPE"]),
        ({"architecture": "nosuch"}, ["nosuch", "not supported"]),
        ({"left_out": ("blk.1.ffn_up.weight",)}, ["lacks 1 of", "layers.1.mlp.up_proj.weight"]),
        ({"tensors": {"blk.0.attn_q.bias": np.zeros(32, np.float32)}}, ["left out", "blk.0.attn_q.bias"]),
        ({"tensors": {"rope_freqs.weight": np.ones(4, np.float32)}}, ["positions are scaled"]),
        ({"strings": {"llama.rope.scaling.type": "yarn"}}, ["positions are scaled", "rope.scaling.type"]),
        ({"n_parts": 3}, ["one of 3 parts"]),
    ],
    ids=lambda value: None if isinstance(value, list) else "-".join(value),
)
def test_what_would_be_read_otherwise_than_meant_is_refused(settings, words, tmp_path):
    file = tmp_path / "a.gguf"
    write_gguf(file, **settings)

    with pytest.raises(GgufError) as caught:
        read_gguf(file)
    assert str(file) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all, but text " * 40, "half"])
def test_a_damaged_file_is_refused_by_name(content, small, tmp_path):
    file = tmp_path / "a.gguf"
    whole = small[0].read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content == "half" else content)

    with pytest.raises(GgufError, match="no whole GGUF file"):
        read_gguf(file)
    with pytest.raises(GgufError, match="no such file"):
        read_gguf(tmp_path / "absent.gguf")


def test_the_head_of_its_own_is_read(tmp_path):
    tokens, _ = vocabulary_and_merges()
    head = np.random.default_rng(0).normal(size=(len(tokens), 32)).astype(np.float32)
    write_gguf(tmp_path / "a.gguf", small_llama(len(tokens)), tensors={"output.weight": head})

    model, _ = read_gguf(tmp_path / "a.gguf")

    assert torch.equal(model.get_output_embeddings().weight, torch.from_numpy(head))
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight


def test_a_run_from_a_gguf_file_leaves_a_folder_that_names_it(small, tmp_path):
    """Two steps of SFT, as a user starts them, with a chat template of the run's own."""
    rows = tmp_path / "rows.jsonl"
    lines = [{"query": f"sum {n}", "positive": f"def sum_{n}", "reasoning": f"adds {n}"} for n in range(8)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plain = "{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}"
    done = run(
        "train", "stage=sft", "model=smollm2_135m", f"model.name={small[0]}", "data=triples",
        f"data.files=[{rows}]", "data.columns.reasoning=reasoning", "data.columns.hard_negatives=null",
        "data.validation_share=0.0", "stage.trainer.max_steps=2", "stage.datamodule.batch_size=4",
        f"model.chat_template={json.dumps(plain)}", f"output_dir={tmp_path / 'run'}", cwd=tmp_path,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    description = json.loads((tmp_path / "run" / "model" / "search_r3.json").read_text())
    assert description["provenance"]["base_model"] == str(small[0])
    assert description["rendered"]["document"]["prefix"] == "Represent the fact.\n"
    assert load_embedder(tmp_path / "run" / "model").reason(["sum 3"]).embeddings.isfinite().all()
