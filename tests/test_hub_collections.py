"""Public collections out of the hub's cache: its layouts, documents left out, and what is missing."""

import gzip
import json
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest
import pytrec_eval
from conftest import TEXTS as CODE

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.evaluation_checks import benchmarks_of, check
from search_r3.data.beir.benchmark import load_benchmark
from search_r3.data.beir.hub import HubError, beir_files, from_hub, written
from search_r3.data.beir.hub_sources import BEIR, BRIGHT, SOURCES
from search_r3.data.jsonl import DataError
from search_r3.data.types import Benchmark, Corpus
from search_r3.errors import UsageError
from search_r3.evaluate import run
from search_r3.evaluation.beir_collections import COLLECTIONS
from search_r3.evaluation.benchmark import evaluate_benchmark
from search_r3.evaluation.rankers import Model, Settings

DOCUMENTS = [{"_id": f"d{n}", "title": "", "text": f"word{n} and more"} for n in range(3)]
QUERIES = [{"_id": f"q{n}", "text": f"word{n}"} for n in range(2)]
JUDGED = [("q0", "d0", 1), ("q1", "d1", 1)]


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(file: Path, rows) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def write_as_mteb(folder: Path) -> Path:
    """As mteb/scifact: JSON lines, judgements too, with grades as floats."""
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(lines(DOCUMENTS))
    (folder / "queries.jsonl").write_text(lines(QUERIES))
    rows = [{"query-id": q, "corpus-id": d, "score": float(grade)} for q, d, grade in JUDGED]
    (folder / "qrels" / "test.jsonl").write_text(lines(rows))
    return folder


def write_as_beir(folder: Path) -> tuple[Path, Path]:
    """As BeIR/scifact and BeIR/scifact-qrels: parquet in two parts, judgements in another repository."""
    parquet(folder / "one" / "corpus" / "corpus-00000-of-00002.parquet", DOCUMENTS[:2])
    parquet(folder / "one" / "corpus" / "corpus-00001-of-00002.parquet", DOCUMENTS[2:])
    parquet(folder / "one" / "queries" / "queries-00000-of-00001.parquet", QUERIES)
    (folder / "two").mkdir()
    text = "query-id\tcorpus-id\tscore\n" + "".join(f"{q}\t{d}\t{grade}\n" for q, d, grade in JUDGED)
    (folder / "two" / "test.tsv").write_text(text)
    return folder / "one", folder / "two"


def write_as_once(folder: Path) -> Path:
    """Compressed lines, ids as numbers under `id`, judgements in parquet."""
    folder.mkdir()
    for kind, rows in (("corpus", DOCUMENTS), ("queries", QUERIES)):
        rows = [{"id": int(row["_id"][1:]), "text": row["text"]} for row in rows]
        with gzip.open(folder / f"{kind}.jsonl.gz", "wt") as file:
            file.write(lines(rows))
    rows = [{"query-id": q[1:], "corpus-id": d[1:], "score": grade} for q, d, grade in JUDGED]
    parquet(folder / "data" / "test-00000-of-00001.parquet", rows)
    return folder


@pytest.mark.parametrize("layout", ["mteb", "beir", "once"])
def test_a_snapshot_of_any_layout_is_the_same_collection(layout, tmp_path):
    if layout == "beir":
        source, judged = write_as_beir(tmp_path / "snapshot")
    else:
        source = judged = {"mteb": write_as_mteb, "once": write_as_once}[layout](tmp_path / "snapshot")
    written(tmp_path / "made", beir_files(source, judged))
    found = load_benchmark(tmp_path / "made", name="scifact")
    cut = 1 if layout == "once" else 0

    assert list(found.corpus.ids) == [row["_id"][cut:] for row in DOCUMENTS]
    assert list(found.corpus.texts) == [row["text"] for row in DOCUMENTS]
    assert found.queries == {row["_id"][cut:]: row["text"] for row in QUERIES}
    assert found.qrels == {q[cut:]: {d[cut:]: grade} for q, d, grade in JUDGED}


def test_a_snapshot_without_judgements_and_a_grade_that_is_no_number_are_refused(tmp_path):
    folder = write_as_mteb(tmp_path / "snapshot")
    row = {"query-id": "q0", "corpus-id": "d0", "score": 0.5}
    (folder / "qrels" / "test.jsonl").write_text(lines([row]))
    with pytest.raises(DataError, match=r"test\.jsonl: a judgement must have query-id, corpus-id and score"):
        written(tmp_path / "made", beir_files(folder, folder))
    assert not (tmp_path / "made").exists()
    (folder / "qrels" / "test.jsonl").unlink()
    with pytest.raises(HubError, match="there are no judgements"):
        beir_files(folder, folder)


@pytest.mark.parametrize(
    ("file", "row", "rule"),
    [
        (
            "corpus.jsonl",
            '{"_id": "d", "text": "half \\ud800"}',
            r"'text' of 'd' holds half of a surrogate pair",
        ),
        ("corpus.jsonl", '{"_id": "d", "title": 5, "text": ""}', "'title' of 'd' must be a string, got int"),
        ("queries.jsonl", '{"_id": "d", "text": ["x"]}', "'text' of 'd' must be a string, got list"),
        ("queries.jsonl", '{"_id": "q\\t1", "text": "x"}', "an id must not hold tabs or line ends"),
        ("qrels/test.jsonl", '{"query-id": "q0", "corpus-id": "d0", "score": NaN}', "a judgement must have"),
        (
            "qrels/test.jsonl",
            '{"query-id": "q0", "corpus-id": "d0", "score": 1e999}',
            "a judgement must have",
        ),
    ],
)
def test_a_row_of_a_snapshot_that_no_collection_may_have_is_refused_before_one_is_written(
    tmp_path, file, row, rule
):
    folder = write_as_mteb(tmp_path / "snapshot")
    (folder / file).write_text(row + "\n")
    with pytest.raises(DataError, match=rf"{file}: {rule}"):
        written(tmp_path / "made", beir_files(folder, folder))
    assert not (tmp_path / "made").exists()


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The hub's cache as it is offline, with one collection of BEIR and one task of BRIGHT in it."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    write_as_mteb(snapshot(cache, "scifact"))
    write_bright(snapshot(cache, "bright/biology"))
    return cache


def snapshot(cache: Path, name: str) -> Path:
    source = SOURCES[name]
    folder = cache / f"datasets--{source.repository.replace('/', '--')}" / "snapshots" / source.revision
    folder.parent.mkdir(parents=True)
    return folder


TEXTS = {
    "a/x_0.txt": "light and moths",
    "a/x_1.txt": "moths fly",
    "b.txt": "moths fly to light",
    "c.txt": "cats",
}
EXAMPLES = [
    {"id": "0", "query": "why do moths fly to light", "excluded_ids": ["b.txt"], "gold_ids": ["a/x_1.txt"]},
    {"id": "1", "query": "cats?", "excluded_ids": ["N/A"], "gold_ids": ["c.txt"]},
]


def write_bright(folder: Path) -> Path:
    """As xlangai/BRIGHT."""
    rows = [{"id": name, "content": text} for name, text in TEXTS.items()]
    parquet(folder / "documents" / "biology-00000-of-00001.parquet", rows)
    rows = [
        {**row, "reasoning": "-", "gold_ids_long": [row["gold_ids"][0].split("_")[0]], "gold_answer": "-"}
        for row in EXAMPLES
    ]
    parquet(folder / "examples" / "biology-00000-of-00001.parquet", rows)
    return folder


def call(tmp_path: Path, *given: str) -> list[dict]:
    out = tmp_path / "out"
    with ConfigSource() as source:
        places = [f"output_dir={out}", f"collections_dir={tmp_path / 'collections'}"]
        config = compose("evaluate", ["modes=[bm25]", *places, *given], source).config
    check(config, False)
    run(config)
    return json.loads((out / "metrics.json").read_text())["rows"]


def test_a_collection_comes_out_of_the_hub_s_cache_and_is_written_once(hub, tmp_path, caplog):
    rows = call(tmp_path, "benchmarks=[scifact]", "hub=true")

    assert [row["benchmark"] for row in rows] == ["scifact"]
    assert rows[0]["metrics"]["ndcg@10"] == 1.0
    assert "has 2 queries and 3 documents, BEIR's scifact has 300 and 5183" in caplog.text
    folder = tmp_path / "collections" / f"scifact@{BEIR['scifact'].revision[:12]}"
    before = (folder / "corpus.jsonl").stat().st_mtime_ns
    assert call(tmp_path, "benchmarks=[scifact]", "hub=true") == rows
    assert (folder / "corpus.jsonl").stat().st_mtime_ns == before


def test_a_folder_of_beir_dir_comes_first_and_all_of_beir_is_what_can_be_had(hub, tmp_path, caplog):
    own = written(tmp_path / "beir" / "nfcorpus", beir_files(*write_as_beir(tmp_path / "snapshot")))

    rows = call(tmp_path, "benchmarks=[beir]", f"beir_dir={own.parent}", "hub=true")
    assert [row["benchmark"] for row in rows] == ["nfcorpus", "scifact"]
    assert "not evaluated: msmarco, trec-covid, nq," in caplog.text


def test_what_cannot_be_had_is_one_error_with_what_to_get_and_where_to_put_it(hub, tmp_path):
    with pytest.raises(UsageError) as caught:
        call(tmp_path, "benchmarks=[scifact,nq,fever]", f"beir_dir={tmp_path}", "hub=true")

    told = str(caught.value)
    assert told.startswith(
        f"benchmarks: nq, fever: not in beir_dir={tmp_path}, and not to be had from the hub"
    )
    assert f"mteb/nq at {BEIR['nq'].revision[:12]} cannot be fetched" in told
    assert "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/<name>.zip" in told
    assert "HF_HOME" in told
    assert "\n" not in told
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_a_hub_that_did_not_answer_is_not_asked_again_and_its_cache_still_serves(hub, tmp_path, monkeypatch):
    with pytest.raises(HubError) as caught:
        from_hub("nq", tmp_path / "made")
    assert caught.value.is_unreachable

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    folder = from_hub("scifact", tmp_path / "made", is_offline=True)
    assert (folder / "corpus.jsonl").is_file()
    with pytest.raises(HubError, match="mteb/fever at bea83ef9e8fb cannot be fetched"):
        from_hub("fever", tmp_path / "made", is_offline=True)


def test_every_collection_of_beir_has_a_pinned_place_on_the_hub():
    assert list(BEIR) == [each.name for each in COLLECTIONS]
    assert len({source.revision for source in BEIR.values()}) == len(BEIR)
    assert all(len(source.revision) == 40 for source in SOURCES.values())
    assert len([name for name in BRIGHT if name.startswith("bright/")]) == 12


@pytest.mark.parametrize("place", ["hub", "beir_dir"])
def test_bright_takes_a_query_s_excluded_documents_out_of_its_ranking(place, hub, tmp_path):
    given = ["hub=true"]
    if place == "beir_dir":
        write_bright(tmp_path / "beir" / "bright")
        given = [f"beir_dir={tmp_path / 'beir'}"]
    rows = call(tmp_path, "benchmarks=[bright/biology]", *given)

    assert rows[0]["benchmark"] == "bright/biology"
    assert (rows[0]["n_queries"], rows[0]["n_docs"]) == (2, 4)
    with (tmp_path / "out" / "bright" / "biology" / "bm25" / "run.trec").open() as file:
        found = pytrec_eval.parse_run(file)
    assert set(found["0"]) == {"a/x_0.txt", "a/x_1.txt"}  # b.txt has all of its words
    assert rows[0]["metrics"]["ndcg@10"] == 1.0


@pytest.mark.parametrize("mode", ["direct", "hybrid-direct", "auto"])
def test_as_many_documents_are_kept_where_some_are_excluded(mode, loaded_embedder, tmp_path):
    ids = [f"d{n:03}" for n in range(130)]
    corpus = Corpus(ids, [f"{text} {n}" for n, text in enumerate(islice(cycle(CODE), 130))])
    queries = {"q": "sum of two integers", "p": "parse the header"}
    settings = Settings(top_k=100, analyzer="english", k1=1.2, b=0.75, seed=0)
    model = Model("m", loaded_embedder)
    judged = Benchmark("some", corpus, queries, {"q": {"d000": 1}, "p": {"d001": 1}})
    best: dict[str, list[str]] = {}
    for n, benchmark in enumerate((judged, replace(judged, excluded={"q": frozenset(ids[2:14])}))):
        row = evaluate_benchmark(
            benchmark, mode, tmp_path / str(n), settings, model, cache_dir=tmp_path / "c"
        )
        with (tmp_path / str(n) / row["folder"] / "run.trec").open() as file:
            run = pytrec_eval.parse_run(file)
        best |= {f"{query}{n}": sorted(found, key=found.get) for query, found in run.items()}

    assert {len(found) for found in best.values()} == {100}
    assert not set(best["q1"]) & set(ids[2:14])
    assert set(best["q0"]) - set(ids[2:14]) < set(best["q1"])
    assert set(best["p0"]) == set(best["p1"])


def test_all_of_bright_are_its_tasks(tmp_path):
    write_bright(tmp_path / "bright")
    with ConfigSource() as source:
        config = compose(
            "evaluate", ["modes=[bm25]", "benchmarks=[bright]", f"beir_dir={tmp_path}"], source
        ).config
    assert benchmarks_of(config)[:2] == ["bright/biology", "bright/earth_science"]
    assert len(benchmarks_of(config)) == 12


def test_a_document_that_is_both_relevant_and_excluded_is_refused(tmp_path):
    folder = written(tmp_path / "made", beir_files(*write_as_beir(tmp_path / "snapshot")))
    (folder / "excluded.tsv").write_text("query-id\tcorpus-id\nq0\td1\nq1\td1\n")

    with pytest.raises(DataError, match=r"excluded\.tsv, line 3: takes out 'd1', which is judged relevant"):
        load_benchmark(folder)
