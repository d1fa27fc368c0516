"""The tokenizers that a model folder keeps for sentence-transformers; tests/extras runs the tool itself."""

import json

import pytest
from conftest import build_embedder
from plain_folders import LENGTHS, byte_tokenizer, opened, sentencepiece_tokenizer, write_plain
from safetensors import safe_open
from transformers import AutoTokenizer

from search_r3.models.folder import save_embedder

ASKED = [
    "sum of two integers",
    "",
    "  blanks around \n",
    "<|embed_token|> in a text, <|end|> and <|system|> too",
    "\u0301a combining mark first, é and ﬁ",
    "rows of a table, " * 60,
]
TOKENIZERS = {
    "byte level": byte_tokenizer,
    "blank in front by Metaspace": sentencepiece_tokenizer,
    "blank in front by a normalizer": lambda: sentencepiece_tokenizer("normalizer"),
}


@pytest.fixture(scope="module", params=["nano", "cut on the left", *TOKENIZERS])
def saved(request, tmp_path_factory):
    """An embedder and its folder."""
    place = tmp_path_factory.mktemp("kind")
    if request.param == "nano":
        embedder = build_embedder()
    elif request.param == "cut on the left":
        plain = write_plain(place / "plain", byte_tokenizer())
        embedder = opened(plain, lengths={**LENGTHS, "truncation_side": "left"})
    else:
        embedder = opened(write_plain(place / "plain", TOKENIZERS[request.param]()))
    return embedder, save_embedder(embedder, place / "model", {})


@pytest.mark.parametrize("route", ["query", "document"])
def test_a_route_writes_the_prompt_around_a_text_and_cuts_the_text_alone(saved, route):
    embedder, folder = saved
    encoder = embedder.encoder
    expected = encoder.queries(ASKED) if route == "query" else encoder.documents(ASKED)
    assert embedder.truncated_count(ASKED, route) >= 1

    tokenizer = AutoTokenizer.from_pretrained(str(folder / "sentence_transformers" / route))

    assert tokenizer(ASKED, truncation="longest_first")["input_ids"] == expected
    batch = tokenizer(ASKED, truncation="longest_first", padding=True)
    for ids, mask, whole in zip(batch["input_ids"], batch["attention_mask"], expected, strict=True):
        assert ids[: sum(mask)] == whole  # padding is on the right
        assert mask[0] == 1


def test_the_tokenizer_of_the_folder_itself_adds_nothing(saved):
    embedder, folder = saved

    tokenizer = AutoTokenizer.from_pretrained(str(folder))

    text = "sum of two integers"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == embedder.encoder.plain_ids(text)
    ours = embedder.tokenizer.backend_tokenizer.to_str()
    assert tokenizer.backend_tokenizer.to_str() == ours


def test_no_weight_is_there_twice(saved):
    _, folder = saved

    for route in ("query", "document"):
        with safe_open(folder / "sentence_transformers" / route / "model.safetensors", "pt") as weights:
            assert sum(weights.get_tensor(name).numel() for name in weights.keys()) == 4  # noqa: SIM118


def test_every_module_has_its_place_in_the_folder(saved):
    _, folder = saved

    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))

    assert [module["type"].rpartition(".")[2] for module in modules] == [
        "Router", "Transformer", "Pooling", "Normalize",
    ]  # fmt: skip
    assert all((folder / module["path"]).is_dir() for module in modules)
