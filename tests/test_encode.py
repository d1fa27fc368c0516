"""A corpus encoded into a folder of shards, and read from there in place of being encoded again."""

import json
import os
import pickle
import signal

import numpy as np
import pyarrow.dataset
import pyarrow.parquet
import pytest
from conftest import TEXTS, build_embedder

from search_r3 import SearchR3
from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.data.beir.benchmark import load_benchmark
from search_r3.data.beir.documents import load_corpus
from search_r3.data.jsonl import DataError, LazyTexts
from search_r3.encode import check, run
from search_r3.errors import UsageError
from search_r3.evaluate import run as evaluate
from search_r3.evaluation.ranking import document_embeddings, documents_cut
from search_r3.evaluation.shards import shards_of
from search_r3.export import run as export
from search_r3.index.encoded import EncodedError, EncodedFile, gaps
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.folder import load_embedder, save_embedder
from search_r3.search import run as search
from tests.command import forked

N_ROWS, SHARD_ROWS = 31, 8
LONG = " ".join(TEXTS)  # more than the model reads


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """A folder in BEIR layout; every tenth document is cut."""
    folder = tmp_path_factory.mktemp("collection") / "small"
    (folder / "qrels").mkdir(parents=True)
    texts = [LONG if row % 10 == 0 else f"{TEXTS[row % 5][:20]} {row}" for row in range(N_ROWS)]
    rows = [
        {"_id": f"d {row}\u2028é", "title": "A" * (row % 2), "text": text} for row, text in enumerate(texts)
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = [{"_id": f"q{n}", "text": query} for n, query in enumerate(("sum of two", "open a socket"))]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    judged = "".join(f"q{n}\td {n}\u2028é\t1\n" for n in range(2))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    return folder


def composed(command, *overrides):
    with ConfigSource() as source:
        return compose(command, list(overrides), source).config


def encode(model, corpus, output, *overrides):
    config = composed(
        "encode", f"model.path={model}", f"corpus={corpus}", f"output={output}",
        *(overrides or [f"shard_rows={SHARD_ROWS}"]),
    )  # fmt: skip
    check(config, False)
    run(config)
    return output


@pytest.fixture(scope="module")
def encoded(nano_folder, collection, tmp_path_factory):
    return encode(nano_folder, collection, tmp_path_factory.mktemp("encoded") / "vectors")


def shards(folder):
    return sorted(folder.glob("*.parquet"))


def table_of(folder):
    table = pyarrow.dataset.dataset(folder, format="parquet").to_table()
    return table["_id"].to_pylist(), np.stack(table["vector"].to_numpy())


class NotAsked:
    """A model of which no document is asked."""

    def __init__(self, embedder):
        self.embedder, self.n_asked = embedder, 0

    def __getattr__(self, name):
        return getattr(self.embedder, name)

    def embed_documents_and_count(self, texts, progress=False):
        raise AssertionError(f"{len(texts)} documents were encoded again")


def test_a_reader_of_parquet_finds_every_document_once_with_its_own_vector(
    encoded, collection, loaded_embedder
):
    ids, vectors = table_of(encoded)

    corpus = load_corpus(collection / "corpus.jsonl")
    assert [file.name for file in shards(encoded)] == [
        f"rows-{start:011d}-{min(start + SHARD_ROWS, N_ROWS):011d}.parquet"
        for start in range(0, N_ROWS, SHARD_ROWS)
    ]
    assert ids == corpus.ids
    alone = np.stack([loaded_embedder.embed_documents([text])[0].numpy() for text in corpus.texts])
    np.testing.assert_allclose(vectors, alone, rtol=0, atol=2e-6)  # batches are padded otherwise
    assert np.abs(np.diff(alone, axis=0)).max() > 1e-3


def test_one_shard_has_the_bits_and_the_schema_of_the_export(encoded, nano_folder, collection, tmp_path):
    whole = encode(nano_folder, collection, tmp_path / "whole", "shard_rows=4096")
    given = [f"model.path={nano_folder}", f"corpus={collection}", f"cache_dir={tmp_path / 'cache'}"]
    export(composed("export", "to=parquet", f"output={tmp_path / 'one.parquet'}", *given))

    ours, theirs = (pyarrow.parquet.read_table(file) for file in (shards(whole)[0], tmp_path / "one.parquet"))
    assert ours.schema.equals(theirs.schema)
    assert ours.equals(theirs)
    facts, others = (json.loads(table.schema.metadata[b"search_r3"]) for table in (ours, theirs))
    assert others.items() <= facts.items()


def test_what_a_killed_call_left_is_kept_and_the_rest_is_encoded(nano_folder, collection, encoded, tmp_path):
    output = tmp_path / "vectors"
    done = forked(encode_until_killed, nano_folder, collection, output, 2)
    assert done.returncode == -signal.SIGKILL
    left = {file: file.stat().st_mtime_ns for file in shards(output)}
    assert len(left) == 2
    (output / "rows-00000000016-00000000024.parquet.host.1.part").write_bytes(b"PAR1 half")

    encode(nano_folder, collection, output)

    assert {file: file.stat().st_mtime_ns for file in left} == left
    assert not list(output.glob("*.part"))
    assert [file.read_bytes() for file in shards(output)] == [file.read_bytes() for file in shards(encoded)]


def encode_until_killed(model, corpus, output, n_shards):
    """In a process of its own: dies while the shard after so many is embedded."""
    embed = ReasoningEmbedder.embed_documents_and_count

    def dying(self, texts, progress=False):
        if len(shards(output)) == n_shards:
            os.kill(os.getpid(), signal.SIGKILL)
        return embed(self, texts, progress)

    ReasoningEmbedder.embed_documents_and_count = dying
    encode(model, corpus, output)


def test_only_what_is_missing_is_encoded_also_in_shards_of_another_size(
    nano_folder, collection, encoded, tmp_path, capsys
):
    output = tmp_path / "vectors"
    encode(nano_folder, collection, output)
    shards(output)[1].unlink()
    left = {file: file.stat().st_mtime_ns for file in shards(output)}

    encode(nano_folder, collection, output, "shard_rows=5")

    told = capsys.readouterr().out
    assert "23 of 31 documents are there and are kept" in told
    assert "encoded 8 documents in" in told
    assert {file: file.stat().st_mtime_ns for file in left} == left
    assert len(shards(output)) == 5
    assert table_of(output)[0] == table_of(encoded)[0]


@pytest.mark.parametrize(
    ("held", "missing"),
    [
        ([], [(0, 10)]),
        ([(0, 10)], []),
        ([(2, 4)], [(0, 2), (4, 10)]),
        ([(0, 3), (3, 5), (9, 10)], [(5, 9)]),
    ],
)
def test_rows_that_no_file_holds_are_found(held, missing):
    files = [EncodedFile(None, start, stop, 4, {}) for start, stop in held]
    assert gaps(files, 10) == missing


def test_a_shard_of_a_corpus_on_disk_carries_places_and_no_text(collection):
    corpus = load_corpus(collection / "corpus.jsonl", in_memory_mib=0)
    assert isinstance(corpus.texts, LazyTexts)

    parts = list(shards_of(corpus, [(0, 3), (20, N_ROWS)], 8))

    assert [(part.start, part.stop) for part in parts] == [(0, 3), (20, 28), (28, N_ROWS)]
    sent = pickle.dumps(parts)
    assert b"socket" not in sent
    assert b"integers" not in sent
    expected = load_corpus(collection / "corpus.jsonl")
    for part in pickle.loads(sent):
        assert list(part.texts) == expected.texts[part.start : part.stop]
        assert part.ids == expected.ids[part.start : part.stop]


def test_search_reads_the_folder_and_finds_what_it_finds_by_encoding(
    encoded, nano_folder, collection, loaded_embedder, tmp_path
):
    own = SearchR3.load(nano_folder, cache_dir=tmp_path / "own").read(collection, progress=False)
    read = SearchR3(NotAsked(loaded_embedder), tmp_path / "read")
    read.read(collection, progress=False, embeddings=encoded)

    for query in ("sum of two", "open a socket"):
        ours, theirs = (each.search(query, 9, "direct").hits for each in (own, read))
        np.testing.assert_allclose([h.score for h in ours], [h.score for h in theirs], rtol=0, atol=2e-6)
        assert {hit.id for hit in ours} == {hit.id for hit in theirs}
    assert documents_cut(read.corpus, loaded_embedder, tmp_path / "read") == 4
    lines = next((tmp_path / "read").glob("*/done.jsonl")).read_text().splitlines()
    assert sum(json.loads(line)["cut"] for line in lines) == 4  # told by the shards: no text is counted again


def test_evaluation_reads_the_folder(encoded, nano_folder, collection, tmp_path, monkeypatch):
    given = [f"model.path={nano_folder}", f"benchmarks=[{collection.name}]", f"beir_dir={collection.parent}"]
    given += ["modes=[direct]", f"embeddings={encoded}"]

    def encodes(*_):
        raise AssertionError("a document was encoded again")

    monkeypatch.setattr(ReasoningEmbedder, "embed_documents_and_count", encodes)
    output = tmp_path / "evaluation"
    evaluate(composed("evaluate", *given, f"output_dir={output}", f"cache_dir={tmp_path / 'cache'}"))

    (row,) = json.loads((output / "metrics.json").read_text())["rows"]
    assert (row["n_docs"], row["documents_cut"]) == (N_ROWS, 4)
    monkeypatch.undo()
    benchmark, embedder = load_benchmark(collection), load_embedder(nano_folder)
    scores = (
        embedder.embed_queries(list(benchmark.queries.values()))
        @ embedder.embed_documents(benchmark.corpus.texts).T
    )
    ranks = [1 + int((row > row[n]).sum()) for n, row in enumerate(scores)]
    assert row["metrics"]["mrr@10"] == pytest.approx(np.mean([1 / r if r <= 10 else 0 for r in ranks]))


def test_encoding_and_what_reads_its_vectors_say_how_many_documents_are_cut(
    encoded, nano_folder, collection, tmp_path, caplog
):
    given = [f"model.path={nano_folder}", f"corpus={collection}", f"cache_dir={tmp_path / 'cache'}"]
    given += [f"embeddings={encoded}"]
    limit = load_embedder(nano_folder).limit("document")
    line = f"4 of {N_ROWS} documents are longer than {limit} and are cut"

    def told(call):
        caplog.clear()
        call()
        return [message for message in caplog.messages if "are cut" in message]

    assert told(lambda: encode(nano_folder, collection, encoded)) == [line]  # nothing is left to encode
    assert told(lambda: search(composed("search", *given, "query=sum", "modes=[direct]"))) == [line]
    output = tmp_path / "one.parquet"
    assert told(lambda: export(composed("export", *given, "to=parquet", f"output={output}"))) == [line]
    facts = json.loads(pyarrow.parquet.read_schema(output).metadata[b"search_r3"])
    assert facts["cut"] == 4


def other_model(place, seed=1, document=None):
    embedder = build_embedder(seed)
    if document is not None:
        embedder = ReasoningEmbedder(
            embedder.model,
            embedder.tokenizer,
            embedder.encoder.prompts,
            type(embedder.encoder.lengths)(query=24, document=document, reasoning=6),
            is_trained=False,
        )
    return save_embedder(embedder, place / "model", {"command": "test"})


def refusal(folder, model, corpus, tmp_path, **reading):
    with pytest.raises(UsageError) as told:
        SearchR3(load_embedder(model, **reading), tmp_path / "cache").read(
            corpus, progress=False, embeddings=folder
        )
    assert len(str(told.value).splitlines()) == 1
    assert not list((tmp_path / "cache").glob("*/rows.npy"))
    return str(told.value)


def test_a_folder_of_another_model_or_corpus_is_refused_in_a_line(encoded, nano_folder, collection, tmp_path):
    said = refusal(encoded, other_model(tmp_path / "weights"), collection, tmp_path)
    assert "made with other weights (" in said
    assert str(encoded) in said
    limited = other_model(tmp_path / "lengths", seed=0, document=40)
    assert "another tokenizer, prompts or lengths" in refusal(encoded, limited, collection, tmp_path)
    assert "another data type (torch.float32 there, torch.bfloat16 asked for)" in refusal(
        encoded, nano_folder, collection, tmp_path, dtype="bfloat16"
    )
    assert "another read_state" in refusal(encoded, nano_folder, collection, tmp_path, read_state="before")
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join((collection / "corpus.jsonl").read_text().splitlines(keepends=True)[:-1]))
    assert "another corpus" in refusal(encoded, nano_folder, fewer, tmp_path)


def test_documents_that_cannot_be_read_leave_no_folder_and_a_folder_as_it_was(nano_folder, tmp_path):
    (tmp_path / "bad.jsonl").write_text("no JSON\n")
    (tmp_path / "empty").mkdir()
    for place in ("empty", "new"):
        with pytest.raises(DataError, match=r"bad\.jsonl, line 1"):
            encode(nano_folder, tmp_path / "bad.jsonl", tmp_path / place / "")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bad.jsonl", "empty"]


def test_a_folder_is_not_filled_up_by_another_model(encoded, collection, tmp_path):
    before = {file: file.stat().st_mtime_ns for file in shards(encoded)}
    with pytest.raises(EncodedError, match="made with other weights"):
        encode(other_model(tmp_path), collection, encoded)
    assert {file: file.stat().st_mtime_ns for file in shards(encoded)} == before


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda file: file.unlink(), "8 of 31 rows are not encoded yet, from row 8 on"),
        (lambda file: file.write_bytes(file.read_bytes()[:-9]), "no whole Parquet file"),
        (lambda file: file.write_bytes(b""), "no whole Parquet file"),
        (lambda file: flip_a_bit_of_a_vector(file), "damaged"),
        (lambda file: write_other_ids(file), r"row 0 is of document 'x0', and the corpus has 'd 8"),
        (lambda file: pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), file), "holds no vectors that"),
        (lambda file: (file.parent / "rows-copy.parquet").write_bytes(file.read_bytes()), "has too"),
    ],
    ids=["missing", "torn", "empty", "flipped", "other ids", "strange", "twice"],
)
def test_files_that_are_damaged_missing_or_strange_are_refused(
    nano_folder, collection, encoded, tmp_path, damage, problem
):
    folder = tmp_path / "vectors"
    folder.mkdir()
    for file in shards(encoded):
        (folder / file.name).write_bytes(file.read_bytes())
    damage(shards(folder)[1])

    with pytest.raises(EncodedError, match=problem):
        document_embeddings(
            load_corpus(collection / "corpus.jsonl"), load_embedder(nano_folder), tmp_path / "cache", False,
            embeddings=folder,
        )  # fmt: skip


def flip_a_bit_of_a_vector(file):
    content = bytearray(file.read_bytes())
    vector = pyarrow.parquet.read_table(file)["vector"][3].as_py()
    place = bytes(content).index(np.float32(vector[5:9]).tobytes())
    content[place] ^= 1
    file.write_bytes(content)


def write_other_ids(file):
    table = pyarrow.parquet.read_table(file)
    names = pyarrow.array([f"x{n}" for n in range(len(table))])
    pyarrow.parquet.write_table(table.set_column(0, "_id", names), file)


def test_an_exported_file_is_read_as_a_folder_is(nano_folder, collection, loaded_embedder, tmp_path):
    given = [f"model.path={nano_folder}", f"corpus={collection}", f"cache_dir={tmp_path / 'cache'}"]
    export(composed("export", "to=parquet", f"output={tmp_path / 'one.parquet'}", *given))
    corpus = load_corpus(collection / "corpus.jsonl")

    rows = document_embeddings(
        corpus, NotAsked(loaded_embedder), tmp_path / "read", False, embeddings=tmp_path / "one.parquet"
    )

    np.testing.assert_array_equal(rows, table_of(tmp_path / "one.parquet")[1])
    assert documents_cut(corpus, loaded_embedder, tmp_path / "read") == 4


@pytest.mark.parametrize(
    ("command", "given", "problem"),
    [
        ("encode", ["engine=rya"], "engine=rya does not exist. Did you mean ray?"),
        ("encode", ["workers=2"], "workers=2 is of engine=ray"),
        ("encode", ["address=auto"], "address=auto is of engine=ray"),
        ("encode", ["corpus=nowhere"], "corpus=nowhere: no such folder or file"),
        ("encode", ["output={collection}"], "corpus.jsonl is in there, which src.encode did not write"),
        ("encode", ["output={collection}/corpus.jsonl"], "corpus.jsonl is a file; name a folder"),
        ("search", ["embeddings=nowhere"], "embeddings=nowhere: no such folder"),
        ("export", ["embeddings=nowhere", "to=faiss", "output=x"], "embeddings=nowhere: no such folder"),
        ("export", ["embeddings=x", "to=folder", "output=x", "corpus=null"], "leave embeddings= out"),
        ("evaluate", ["embeddings=nowhere"], "embeddings=nowhere: no such folder"),
        (
            "evaluate",
            ["embeddings={collection}", "benchmarks=[a,b]", "held_out=a"],
            "of one model and one collection",
        ),
        ("evaluate", ["embeddings={collection}", "modes=[bm25]"], "in which that model embeds documents"),
    ],
)
def test_what_cannot_be_meant_is_refused(nano_folder, collection, tmp_path, command, given, problem):
    import importlib

    base = [f"model.path={nano_folder}"]
    if command != "evaluate":
        base.append(f"corpus={collection}")
    if command == "encode":
        base.append(f"output={tmp_path / 'new'}")
    filled = [each.format(collection=collection) for each in given]
    with pytest.raises(UsageError, match=problem):
        importlib.import_module(f"search_r3.{command}").check(composed(command, *base, *filled), False)
    assert not (tmp_path / "new").exists()
