"""What `src.export` writes, read by FAISS, pyarrow and transformers alone."""

import json

import faiss
import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from search_r3 import SearchR3
from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.data.jsonl import DataError
from search_r3.errors import UsageError
from search_r3.export import check
from search_r3.export import run as export
from search_r3.index import exports
from search_r3.models.folder import load_embedder, read_description

WORDS = ("sum", "read", "list", "path", "lines")
TEXTS = [f"def {one}({other}, b): return {other} {n}" for n, one in enumerate(WORDS) for other in WORDS]
QUERIES = ["times four", "a + 2", ""]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    rows = [{"_id": f"d {n}\u2028é", "text": text} for n, text in enumerate(TEXTS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def composed(*overrides):
    with ConfigSource() as source:
        return compose("export", list(overrides), source).config


@pytest.fixture
def written(nano_folder, corpus, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "BLOCK_ROWS", 7)  # several blocks, the last of them not whole

    def write(kind, name):
        output = tmp_path / "new" / name
        given = [f"model.path={nano_folder}", f"corpus={corpus}", f"output={output}", f"cache_dir={cache}"]
        export(composed(f"to={kind}", *given))
        assert not list(output.parent.glob("*.part"))
        return output

    return write


@pytest.fixture(scope="module")
def model(nano_folder, corpus, cache):
    return SearchR3.load(nano_folder, cache_dir=cache).read(corpus, progress=False)


def assert_same_ranking(hits, ids, scores):
    """The same documents in the same order, but for neighbours that fp32 does not tell apart."""
    np.testing.assert_allclose([hit.score for hit in hits], scores, rtol=0, atol=1e-6)
    n_told_apart = 0
    for place in range(1, len(hits) - 1):
        gaps = np.abs(np.diff(scores[place - 1 : place + 2]))
        if gaps.min() > 1e-5:
            assert hits[place].id == ids[place]
            n_told_apart += 1
    assert n_told_apart > 2


def test_faiss_reads_the_index_and_ranks_as_our_search(written, model):
    output = written("faiss", "corpus.faiss")

    index = faiss.read_index(str(output))
    ids = [json.loads(line) for line in (output.parent / "corpus.faiss.ids.jsonl").open()]
    scores, rows = index.search(model.embed_queries(QUERIES[:2]), 10)
    for query, values, found in zip(QUERIES, scores, rows, strict=False):
        assert_same_ranking(
            model.search(query, k=10, mode="direct").hits, [ids[row] for row in found], values
        )
    facts = json.loads((output.parent / "corpus.faiss.json").read_text())
    assert facts["weights"] == model.embedder.weights_sha256


def test_the_file_is_byte_for_byte_what_faiss_itself_writes(written, model, tmp_path):
    output = written("faiss", "corpus.faiss")

    own = faiss.IndexFlatIP(model.embedder.width)
    own.add(model.embed_documents(TEXTS))
    faiss.write_index(own, str(tmp_path / "own.faiss"))
    vectors = faiss.read_index(str(output)).reconstruct_n(0, len(TEXTS))
    np.testing.assert_allclose(vectors, own.reconstruct_n(0, len(TEXTS)), rtol=0, atol=1e-6)
    n_header = len(exports._flat_header(1, 1))
    assert output.read_bytes()[:n_header] == (tmp_path / "own.faiss").read_bytes()[:n_header]
    assert output.stat().st_size == (tmp_path / "own.faiss").stat().st_size


def test_another_version_of_faiss_that_reads_another_index_is_told(written, monkeypatch, tmp_path):
    header = exports._flat_header
    monkeypatch.setattr(exports, "_flat_header", lambda n, width: header(n - 1, width))

    with pytest.raises(RuntimeError):
        written("faiss", "corpus.faiss")
    assert not list((tmp_path / "new").iterdir())


def test_pyarrow_reads_the_table_and_numpy_ranks_as_our_search(written, model):
    output = written("parquet", "corpus.parquet")

    table = pyarrow.parquet.read_table(output)
    kind = str(table.schema.field("vector").type)
    assert kind == f"fixed_size_list<element: float>[{model.embedder.width}]"
    assert pyarrow.parquet.ParquetFile(output).num_row_groups == 4
    vectors = np.stack(table["vector"].to_numpy())
    ids = table["_id"].to_pylist()
    scores = vectors @ model.embed_queries(QUERIES[:1])[0]
    best = np.argsort(-scores, kind="stable")[:10]
    ours = model.search(QUERIES[0], k=10, mode="direct").hits
    assert_same_ranking(ours, [ids[row] for row in best], scores[best])
    facts = json.loads(table.schema.metadata[b"search_r3"])
    assert facts["weights"] == model.embedder.weights_sha256


def test_a_folder_is_written_again_in_half_precision(nano_folder, tmp_path):
    export(composed("to=folder", f"model.path={nano_folder}", f"output={tmp_path / 'model'}"))

    before, after = (load_file(place / "model.safetensors") for place in (nano_folder, tmp_path / "model"))
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert all(torch.equal(after[name], before[name].bfloat16()) for name in before)
    ours, other = load_embedder(nano_folder), load_embedder(tmp_path / "model")
    assert ours.encoder.fingerprint == other.encoder.fingerprint
    origin = read_description(tmp_path / "model")["provenance"]
    assert origin.pop("exported_from_sha256") == ours.weights_sha256
    assert origin == read_description(nano_folder)["provenance"]


def test_documents_that_cannot_be_read_leave_no_folder(nano_folder, cache, tmp_path):
    (tmp_path / "bad.jsonl").write_text("no JSON\n")
    given = [f"model.path={nano_folder}", f"corpus={tmp_path / 'bad.jsonl'}", f"cache_dir={cache}"]
    with pytest.raises(DataError, match=r"bad\.jsonl, line 1"):
        export(composed("to=faiss", f"output={tmp_path / 'new' / 'below' / 'index'}", *given))
    assert not (tmp_path / "new").exists()


def test_documents_are_not_written_over(nano_folder, tmp_path):
    folder = tmp_path / "collection"
    folder.mkdir()
    line = '{"_id": "a", "text": "x"}\n'
    for name in ("corpus.jsonl", "vectors.ids.jsonl", "vectors.json"):
        (folder / name).write_text(line)
    (folder / "other.faiss").symlink_to("corpus.jsonl")
    for corpus, output in (
        ("corpus.jsonl", "corpus.jsonl"),
        ("", "corpus.jsonl"),
        ("corpus.jsonl", "other.faiss"),
        ("vectors.ids.jsonl", "vectors"),
        ("vectors.json", "vectors"),
    ):
        given = [f"corpus={folder / corpus}", f"output={folder / output}", "to=faiss"]
        with pytest.raises(UsageError, match="is the corpus and would be lost"):
            check(composed(f"model.path={nano_folder}", *given), False)
    given = [f"corpus={folder / 'vectors.json'}", f"output={folder / 'another'}", "to=parquet"]
    check(composed(f"model.path={nano_folder}", *given), False)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["to=fais", "corpus={corpus}", "output=a"], "Did you mean faiss"),
        (["to=faiss", "output=a"], "to=faiss needs corpus="),
        (["to=faiss", "corpus=nowhere", "output=a"], "corpus=nowhere: no such"),
        (["to=parquet", "corpus={corpus}", "output=."], "output=. is a folder"),
        (["to=folder", "output=a", "save_dtype=int8"], "save_dtype=int8 does not exist"),
        (["to=parquet", "corpus={corpus}", "output=a", "save_dtype=float16"], "writes vectors in float32"),
        (["to=folder", "output={folder}"], "is the model folder that is read"),
        (["to=folder", "output=a", "corpus={corpus}"], "leave corpus= out"),
        (["to=folder", "output=tests"], "is no model folder that a run wrote"),
        (["to=folder", "output=a", "model=nano"], "is for src.train"),
    ],
)
def test_what_cannot_be_exported_is_refused(nano_folder, corpus, given, problem):
    filled = [each.format(corpus=corpus, folder=nano_folder) for each in given]
    with pytest.raises(UsageError, match=problem.replace(".", "\\.")):
        check(composed(f"model.path={nano_folder}", *filled), False)
