"""Every kind of folder that training writes, opened by sentence-transformers without code of ours."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXTS, build_embedder
from huggingface_hub import HfApi
from local_hub import local_hub
from plain_folders import byte_tokenizer, opened, sentencepiece_tokenizer, write_plain
from sentence_transformers import SentenceTransformer
from test_folder import UNUSED, move_trained_weights

from search_r3.demo import MODEL
from search_r3.models.folder import load_embedder, open_embedder, save_embedder
from search_r3.models.tuning import FullTuning, LoraTuning

LONG = "rows of a table, " * 60
ASKED = [
    "sum of two integers",
    "",
    "  blanks around \n",
    "<|embed_token|> in a text, <|end|> and <|system|> too",
    "\u0301a combining mark first, é and ﬁ",
    LONG,
    LONG + "another end",
]
CLOSE = {"rtol": 0, "atol": 1e-5}


def full(place):
    embedder = build_embedder(seed=1)
    move_trained_weights(embedder)
    return save_embedder(embedder, place / "model", {})


def lora(place):
    base = save_embedder(build_embedder(seed=2), place / "base", {}, is_trained=True)
    embedder = open_embedder(path=str(base), tuning=LoraTuning(r=2, alpha=4), **UNUSED)
    move_trained_weights(embedder)
    return save_embedder(embedder, place / "model", {})


def second_stage(place):
    embedder = open_embedder(path=str(full(place / "first")), tuning=FullTuning(), **UNUSED)
    return save_embedder(embedder, place / "model", {})


def plain(tokenizer, architecture):
    def make(place):
        folder = write_plain(place / "plain", tokenizer(), architecture)
        return save_embedder(opened(folder), place / "model", {})

    return make


KINDS = {
    "nano, full": full,
    "nano, LoRA merged": lora,
    "nano, a second stage": second_stage,
    "chat template, byte level": plain(byte_tokenizer, "llama"),
    "learned positions": plain(byte_tokenizer, "gpt2"),
    "blank in front by Metaspace": plain(sentencepiece_tokenizer, "mistral"),
    "blank in front by a normalizer": plain(lambda: sentencepiece_tokenizer("normalizer"), "gemma"),
    "no chat template": plain(lambda: byte_tokenizer(chat_template=None), "phi"),
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return KINDS[request.param](tmp_path_factory.mktemp("kind"))


@pytest.fixture(scope="module")
def ours(folder):
    return load_embedder(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    return SentenceTransformer(str(folder), device="cpu")


def test_queries_and_documents_get_our_vectors(ours, theirs):
    queries, documents = ours.embed_queries(ASKED).numpy(), ours.embed_documents(ASKED).numpy()
    assert np.abs(queries - documents).max() > 0.01  # two prompts: the comparison can fail

    np.testing.assert_allclose(theirs.encode_query(ASKED), queries, **CLOSE)
    np.testing.assert_allclose(theirs.encode_document(ASKED), documents, **CLOSE)
    np.testing.assert_allclose(theirs.encode(ASKED), documents, **CLOSE)
    np.testing.assert_allclose(theirs.encode(ASKED, task="query"), queries, **CLOSE)


def test_the_batch_does_not_matter(ours, theirs):
    queries = ours.embed_queries(ASKED).numpy()

    np.testing.assert_allclose(theirs.encode_query(ASKED, batch_size=2), queries, **CLOSE)
    for text, vector in zip(ASKED, queries, strict=True):
        np.testing.assert_allclose(theirs.encode_query(text), vector, **CLOSE)


@pytest.mark.parametrize("task", ["query", "document"])
def test_the_ids_are_ours_and_the_text_alone_is_cut(ours, theirs, task):
    encoder = ours.encoder
    whole = encoder.queries(ASKED) if task == "query" else encoder.documents(ASKED)
    assert ours.truncated_count(ASKED, task) >= 2

    given = theirs.preprocess(ASKED, task=task)

    for ids, mask, expected in zip(given["input_ids"], given["attention_mask"], whole, strict=True):
        assert ids[mask.bool()].tolist() == expected


def test_fewer_numbers_of_a_vector(folder, ours):
    theirs = SentenceTransformer(str(folder), device="cpu", truncate_dim=8)

    np.testing.assert_allclose(theirs.encode(ASKED), ours.embed_documents(ASKED)[:, :8], **CLOSE)
    short = torch.nn.functional.normalize(ours.embed_queries(ASKED)[:, :8], dim=-1)
    np.testing.assert_allclose(theirs.encode_query(ASKED, normalize_embeddings=True), short, **CLOSE)


def test_its_facts(ours, theirs):
    assert theirs.get_embedding_dimension() == ours.width
    assert theirs.similarity_fn_name == "cosine"
    scores = theirs.similarity(theirs.encode_query(TEXTS[:2]), theirs.encode_document(TEXTS[:3]))
    assert scores.shape == (2, 3)


def test_it_is_saved_and_opened_again(theirs, tmp_path):
    theirs.save_pretrained(str(tmp_path / "saved"))

    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(again.encode_query(ASKED), theirs.encode_query(ASKED), **CLOSE)


PUSHED = """
import sys
from sentence_transformers import SentenceTransformer
SentenceTransformer(sys.argv[1], device="cpu").push_to_hub("me/model")
print(SentenceTransformer("me/model", device="cpu").encode_query("sum of two integers").tolist())
"""


@pytest.mark.parametrize("is_uploaded", [False, True])
def test_it_is_opened_by_its_name_on_a_hub(nano_folder, loaded_embedder, tmp_path, is_uploaded):
    code = PUSHED
    with local_hub() as hub:
        if is_uploaded:
            HfApi(hub.address, "hf_any").upload_folder(repo_id="me/model", folder_path=nano_folder)
            code = "".join(line for line in PUSHED.splitlines(True) if "push_to_hub" not in line)
        done = subprocess.run(
            [sys.executable, "-c", code, str(nano_folder)],
            env=hub.environment(tmp_path / "home"), capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr

    vector = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(vector, loaded_embedder.embed_queries(["sum of two integers"])[0], **CLOSE)


def test_a_shorter_limit_cuts_the_text_and_leaves_the_prompt(nano_folder):
    ours, theirs = load_embedder(nano_folder), SentenceTransformer(str(nano_folder), device="cpu")
    around = ours.encoder.direct
    theirs.max_seq_length = around.n_tokens + 2

    (ids,) = theirs.preprocess([LONG], task="query")["input_ids"].tolist()

    assert ids == around.wrap(ours.encoder.text_ids([LONG], 2)[0])


def test_half_precision_stays_near(nano_folder, tmp_path):
    ours = load_embedder(nano_folder)
    folder = save_embedder(ours, tmp_path / "model", {}, dtype="bfloat16")

    theirs = SentenceTransformer(str(folder), device="cpu")

    assert {parameter.dtype for parameter in theirs.parameters()} == {torch.bfloat16}
    given = theirs.encode_query(ASKED, convert_to_tensor=True).float()
    assert torch.cosine_similarity(given, ours.embed_queries(ASKED)).min() > 0.99


def test_a_folder_without_its_modules_is_another_model(nano_folder, tmp_path):
    """What opening one was before: the last token of a text without prompt, and nothing said."""
    folder = shutil.copytree(nano_folder, tmp_path / "model")
    (folder / "modules.json").unlink()

    given = SentenceTransformer(str(folder), device="cpu").encode(ASKED[:1], normalize_embeddings=True)

    assert np.abs(given - load_embedder(nano_folder).embed_documents(ASKED[:1]).numpy()).max() > 0.01


def test_an_older_version_is_told_what_it_needs(nano_folder, tmp_path):
    folder = shutil.copytree(nano_folder, tmp_path / "model")
    file = folder / "config_sentence_transformers.json"
    settings = json.loads(file.read_text())
    settings["requirements"]["sentence-transformers"]["specifier"] = ">=99"  # as seen from an older one
    file.write_text(json.dumps(settings))

    with pytest.raises(ImportError, match="Router"):
        SentenceTransformer(str(folder), device="cpu")


def test_the_shipped_demo_model_opens_in_it():
    folder = Path(__file__).resolve().parents[2] / MODEL
    ours, theirs = load_embedder(folder, dtype="bfloat16"), SentenceTransformer(str(folder), device="cpu")

    given = theirs.encode_query(ASKED, convert_to_tensor=True).float()

    assert torch.cosine_similarity(given, ours.embed_queries(ASKED)).min() > 0.999
