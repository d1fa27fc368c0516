"""Every reader is given damaged files: it reads what a plain reading gives, or says what is wrong in a line.

A file starts as one of ours and is changed in places, replaced by arbitrary bytes, or by other JSON. More
examples: see `tests.fuzzing`.
"""

import csv
import gzip
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import TEXTS
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from search_r3.cli.model_choice import read_facts
from search_r3.cli.provenance import write_metrics
from search_r3.cli.run_status import read_status, state_of, write_status
from search_r3.cli.sweep_table import sweep_table
from search_r3.data.beir.documents import load_corpus, load_queries
from search_r3.data.beir.qrels import load_qrels
from search_r3.data.jsonl import DataError
from search_r3.data.triples import load_triples
from search_r3.data.types import Benchmark, Corpus
from search_r3.errors import UsageError
from search_r3.evaluation.benchmark import evaluate_benchmark
from search_r3.evaluation.places import earlier_rows
from search_r3.evaluation.rankers import Settings
from search_r3.evaluation.results import check_files, read_row, read_scores
from search_r3.evaluation.trec import read_qrels, read_run
from search_r3.files import write_json
from search_r3.index.rows.cache import StoreError, open_store, store_folder, stored_embeddings
from search_r3.models.folder import ModelFolderError, read_description
from search_r3.records import RecordError, read_config, read_json
from search_r3.report import joined
from tests.fuzzing import fuzzed

OURS = (DataError, UsageError, StoreError, ModelFolderError)
LONGEST = 500

# What a mutation puts in a place: bytes that end lines, fields and values, halves of characters, numbers.
PIECES = st.sampled_from(
    [
        b"", b"\n", b"\r\n", b"\t", b" ", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8",
        b"\xed\xa0\x80",
        b'"', b"\\", b"\\ud800", b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"NaN", b"-Infinity",
        b"1e999", b"9" * 5000, b"-1", b"0.5", b"[" * 3000, b'{"a":' * 2000, b"x" * 10_000, b"'", b"${x}",
        b"#",
        b"- ", b"&a *a", b"!!python/object:os.system", b"%", b"q0", b"1",
    ]
)  # fmt: skip
WHOLE = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\n", b"[]", b"{}", b"null", b"3", b'"text"', b"NaN", b"\x1f\x8b", b"{" * 50_000]),
    st.sampled_from(['{"rows": []}', "seed: 1\n"]).map(lambda text: text.encode("utf-16")),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.2), PIECES), min_size=1, max_size=3)


@st.composite
def damaged(draw, valid: bytes) -> bytes:
    """A file that is like the valid one, or like nothing."""
    kind = draw(st.sampled_from(["whole", "edits", "edits", "edits", "cut", "value", "value"]))
    if kind == "whole":
        return draw(WHOLE)
    if kind == "cut":
        return valid[: draw(st.integers(0, len(valid)))]
    if kind == "value":
        return _with_another_value(draw, valid)
    content = valid
    for place, share, piece in draw(EDITS):
        start = int(place * len(content))
        content = content[:start] + piece + content[start + int(share * share * len(content)) :]
    return content


def _with_another_value(draw, valid: bytes) -> bytes:
    """Valid JSON, whole or in lines, with one value or key replaced."""
    try:
        rows = [json.loads(valid)]
    except ValueError:
        try:
            rows = [json.loads(line) for line in valid.splitlines()]
        except ValueError:
            return valid
    other = draw(
        st.one_of(
            st.sampled_from(
                [None, True, -1, 10**400, 0.5, "", "text", [], {}, [1], {"a": 1}, "\ud800", "\n"]
            ),
            st.text(max_size=5),
        )
    )
    node = draw(st.sampled_from(rows))
    while isinstance(node, (dict, list)) and node:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = draw(st.sampled_from(keys))
        if not isinstance(node[key], (dict, list)) or not node[key] or draw(st.booleans()):
            if draw(st.booleans()):
                node[key] = other
            else:
                del node[key]
            break
        node = node[key]
    return "\n".join(json.dumps(row) for row in rows).encode() + b"\n"


def read(reader: Callable[[Path], object], file: Path, content: bytes) -> object:
    """What the reader gives, or None where it refuses, which is checked."""
    file.write_bytes(content)
    try:
        return reader(file)
    except OURS as error:
        message = str(error)
        assert str(file) in message
        assert len(message.replace(str(file), "")) < LONGEST
        assert "\n" not in message
        return None


def plain_lines(content: bytes) -> list[dict]:
    return [json.loads(line) for line in content.decode("utf-8-sig").split("\n") if line.strip()]


# ---- collections and rows

DOCUMENTS = [{"_id": f"d{n}", "title": "größe" * (n == 1), "text": text} for n, text in enumerate(TEXTS[:3])]
CORPUS = Corpus(["d0", "d1"], ["a", "b"])
QUERIES = {"q0": "a", "q1": "b"}


def json_lines(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
@fuzzed()
@given(data=st.data())
def test_a_corpus_is_read_as_its_lines_are_or_refused(tmp_path, name, data):
    content = data.draw(damaged(json_lines(DOCUMENTS)))
    packed = gzip.compress(content, mtime=0) if name.endswith("gz") else content
    corpus = read(lambda file: load_corpus(file, allow_empty_documents=True), tmp_path / name, packed)
    if corpus is not None:
        rows = plain_lines(content)
        assert corpus.ids == [row["_id"] for row in rows]
        assert list(corpus.texts) == [f"{row.get('title') or ''} {row['text']}".strip() for row in rows]


@fuzzed()
@given(data=st.data())
def test_a_damaged_gzip_file_is_refused(tmp_path, data):
    content = data.draw(damaged(gzip.compress(json_lines(DOCUMENTS), mtime=0)))
    corpus = read(load_corpus, tmp_path / "corpus.jsonl.gz", content)
    if corpus is not None:
        assert corpus.ids == [row["_id"] for row in plain_lines(gzip.decompress(content))]


@fuzzed()
@given(data=st.data())
def test_a_corpus_on_disk_gives_what_one_in_memory_gives(tmp_path, data):
    content = data.draw(damaged(json_lines(DOCUMENTS)))
    on_disk = read(lambda file: load_corpus(file, in_memory_mib=0), tmp_path / "corpus.jsonl", content)
    in_memory = read(load_corpus, tmp_path / "corpus.jsonl", content)
    assert (on_disk is None) == (in_memory is None)
    if on_disk is not None:
        assert list(on_disk.texts) == list(in_memory.texts) == [on_disk.texts[n] for n in range(len(on_disk))]


@fuzzed()
@given(data=st.data())
def test_queries_are_read_as_their_lines_are_or_refused(tmp_path, data):
    content = data.draw(damaged(json_lines(DOCUMENTS)))
    queries = read(load_queries, tmp_path / "queries.jsonl", content)
    if queries is not None:
        assert queries == {row["_id"]: row["text"] for row in plain_lines(content)}


@fuzzed(120)
@given(data=st.data())
def test_judgements_are_read_as_their_columns_are_or_refused(tmp_path, data):
    valid = b"query-id\tcorpus-id\tscore\nq0\td0\t1\nq0\td1\t-2\nq1\td1\t0\n"
    content = data.draw(damaged(valid))
    qrels = read(lambda file: load_qrels(file, QUERIES, CORPUS, True), tmp_path / "test.tsv", content)
    if qrels is not None:
        text = content.decode("utf-8-sig")
        rows = [line.rstrip("\r").split("\t") for line in text.split("\n") if line.strip()]
        rows = rows[1:] if [cell.strip() for cell in rows[0]] == ["query-id", "corpus-id", "score"] else rows
        expected = {}
        for query, document, grade in rows:
            if query in QUERIES:
                expected.setdefault(query, {})[document] = int(grade)
        assert qrels.grades == expected


@fuzzed(120)
@given(data=st.data())
def test_training_rows_are_read_as_their_lines_are_or_refused(tmp_path, data):
    rows = [
        {"query": f"q{n}", "positive": text, "hard_negatives": ["x", "y"], "reasoning": "r", "id": f"i{n}"}
        for n, text in enumerate(TEXTS[:3])
    ]
    content = data.draw(damaged(json_lines(rows)))
    columns = {"reasoning": "reasoning", "id": "id"}

    def reader(file):
        return load_triples([str(file)], columns=columns, validation_share=0.0)

    loaded = read(reader, tmp_path / "rows.jsonl", content)
    if loaded is not None:
        plain = plain_lines(content)
        listed = [
            row["positive"] if isinstance(row["positive"], list) else [row["positive"]] for row in plain
        ]
        assert [example.positive for example in loaded.examples] == [
            text for texts in listed for text in dict.fromkeys(texts)
        ]
        if all(len(set(texts)) == 1 for texts in listed):
            assert [example.query for example in loaded.examples] == [row["query"] for row in plain]
            assert [example.reasoning for example in loaded.examples] == [
                row.get("reasoning") for row in plain
            ]


# ---- files of an evaluation


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Path:
    """The folder of an evaluation of BM25; every test damages a copy of one file, elsewhere."""
    folder = tmp_path_factory.mktemp("evaluation")
    corpus = Corpus([f"d{n}" for n in range(4)], [text.split("\n")[1] for text in TEXTS[:4]])
    queries = {f"q{n}": text.split("\n")[0] for n, text in enumerate(TEXTS[:3])}
    benchmark = Benchmark("tiny", corpus, queries, {f"q{n}": {f"d{n}": 1, "d3": 2} for n in range(3)})
    row = evaluate_benchmark(benchmark, "bm25", folder, Settings(100, "code", 1.2, 0.75, 0))
    origin = {"command": "c", "commit": "0", "seed": 1, "python": "3", "packages": {}}
    write_metrics(folder / "metrics.json", [row], origin)
    return folder / row["folder"]


def fields_of(line: str) -> list[str]:
    """What a tool in C finds in a line: of bytes, Python too parts at the six blanks of ASCII only."""
    return [field.decode() for field in line.encode().split()]


@fuzzed()
@given(data=st.data())
def test_a_run_is_read_as_its_fields_are_or_refused(evaluation, tmp_path, data):
    content = data.draw(damaged((evaluation / "run.trec").read_bytes()))
    run = read(read_run, tmp_path / "run.trec", content)
    if run is not None:
        expected = {}
        for line in content.decode("utf-8-sig").split("\n"):
            if line.strip():
                query, _, document, _, score, _ = fields_of(line)
                expected.setdefault(query, {})[document] = float(score)
        assert run == expected
        assert all(math.isfinite(score) for found in run.values() for score in found.values())


@fuzzed()
@given(data=st.data())
def test_judgements_of_a_run_are_read_as_their_fields_are_or_refused(evaluation, tmp_path, data):
    content = data.draw(damaged((evaluation / "qrels.trec").read_bytes()))
    qrels = read(read_qrels, tmp_path / "qrels.trec", content)
    if qrels is not None:
        lines = [fields_of(line) for line in content.decode("utf-8-sig").split("\n") if line.strip()]
        assert {(q, d, grade) for q, grades in qrels.items() for d, grade in grades.items()} == {
            (q, d, int(grade)) for q, _, d, grade in lines
        }


@fuzzed()
@given(data=st.data())
def test_scores_of_queries_are_those_of_their_row_or_refused(evaluation, tmp_path, data):
    row = json.loads((evaluation / "row.json").read_text())["row"]
    content = data.draw(damaged((evaluation / "per_query.jsonl").read_bytes()))
    scores = read(lambda file: read_scores(file, row, "ndcg@10"), tmp_path / "per_query.jsonl", content)
    if scores is not None:
        assert scores == {line["query_id"]: line["ndcg@10"] for line in plain_lines(content)}
        assert sum(scores.values()) / 3 == pytest.approx(row["metrics"]["ndcg@10"], rel=1e-9)


@pytest.mark.parametrize("is_hashed", [True, False])
@fuzzed(100)
@given(data=st.data())
def test_a_row_is_read_as_it_was_written_or_refused(evaluation, tmp_path, is_hashed, data):
    written = json.loads((evaluation / "row.json").read_text())
    if not is_hashed:
        del written["sha256"], written["files"]
    content = data.draw(damaged(json.dumps(written).encode()))
    (tmp_path / "bm25").mkdir(exist_ok=True)
    found = read(lambda file: read_row(file.parent), tmp_path / "bm25" / "row.json", content)
    if found is not None:
        plain = json.loads(content)
        assert (found["key"], found["row"]) == (plain["key"], plain["row"])
        if is_hashed and "sha256" in plain:
            assert plain == written


@fuzzed()
@given(data=st.data())
def test_a_file_beside_a_row_is_as_it_was_written_or_refused(evaluation, tmp_path, data):
    name = data.draw(st.sampled_from(["run.trec", "qrels.trec", "per_query.jsonl"]))
    for file in evaluation.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    valid = (evaluation / name).read_bytes()
    content = data.draw(damaged(valid))

    def reader(file: Path) -> bool:
        check_files(file.parent, read_row(file.parent))
        return True

    assert (read(reader, tmp_path / name, content) is None) == (content != valid)


@fuzzed(100)
@given(data=st.data())
def test_a_table_is_read_as_it_stands_there_or_refused(evaluation, tmp_path, data):
    content = data.draw(damaged((evaluation.parents[1] / "metrics.json").read_bytes()))
    rows = read(earlier_rows, tmp_path / "metrics.json", content)
    if rows is not None:
        plain = json.loads(content)["rows"]
        assert [row["metrics"] for row in rows] == [row["metrics"] for row in plain]

    def reported(file: Path) -> list[dict]:
        try:
            return joined({str(file): read_json(file)})[0]
        except ValueError as error:
            raise error if isinstance(error, RecordError) else UsageError(str(error)) from None

    rows = read(reported, tmp_path / "metrics.json", content)
    if rows is not None:
        assert len(rows) == len(json.loads(content)["rows"])


# ---- records of a run


@fuzzed(100)
@given(data=st.data())
def test_a_json_record_is_read_as_json_or_refused(tmp_path, data):
    valid = {"command": "python", "choices": {"model": "nano"}, "seed": 1, "packages": {"torch": "2.13"}}
    content = data.draw(damaged(json.dumps(valid, indent=2).encode()))
    found = read(read_json, tmp_path / "provenance.json", content)
    if found is not None:
        assert found == json.loads(content.decode())


@fuzzed(100)
@given(data=st.data())
def test_a_status_is_read_as_it_stands_there_or_refused(tmp_path, data):
    (tmp_path / "status.json").unlink(missing_ok=True)
    write_status(tmp_path, "finished")
    content = data.draw(damaged((tmp_path / "status.json").read_bytes()))
    status = read(lambda file: read_status(file.parent), tmp_path / "status.json", content)
    state = read(lambda file: state_of(file.parent), tmp_path / "status.json", content)
    if status is not None:
        assert status == json.loads(content)
        assert state == status.get("state") or state == "interrupted"


@fuzzed(100)
@given(data=st.data())
def test_a_sweep_with_a_damaged_job_has_its_table(tmp_path, data):
    (tmp_path / "0" / "status.json").unlink(missing_ok=True)
    write_status(tmp_path / "0", "finished")
    row = {"mode": "direct", "metrics": {"ndcg@10": 0.5}}
    write_json(tmp_path / "0" / "metrics.json", {"rows": [row]})
    name = data.draw(st.sampled_from(["status.json", "metrics.json"]))
    file = tmp_path / "0" / name
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    table, _ = sweep_table(tmp_path, [["seed=1"]])
    assert len(table.splitlines()) == 3


CONFIG = {
    "seed": 1,
    "output_dir": None,
    "stage": {"name": "sft", "trainer": {"max_steps": 3, "logger": ["${output_dir}/csv"]}},
    "model": {"path": None, "prompts": {"direct_system": "a: b # c"}},
}


@fuzzed(150)
@given(data=st.data())
def test_a_configuration_is_read_as_yaml_or_refused(tmp_path, data):
    content = data.draw(damaged(yaml.safe_dump(CONFIG).encode()))
    found = read(read_config, tmp_path / "config.yaml", content)
    if found is not None:
        plain = yaml.safe_load(content)
        assert list(OmegaConf.to_container(found)) == list(plain)


# ---- model folders and caches


@fuzzed(100)
@given(data=st.data())
def test_a_description_of_a_model_is_read_as_json_or_refused(nano_folder, tmp_path, data):
    (tmp_path / "config.json").write_bytes((nano_folder / "config.json").read_bytes())
    content = data.draw(damaged((nano_folder / "search_r3.json").read_bytes()))
    found = read(lambda file: read_description(file.parent), tmp_path / "search_r3.json", content)
    if found is not None:
        assert found == json.loads(content)
    read_facts(str(tmp_path))  # nothing is raised: loading tells


@fuzzed(100)
@given(data=st.data())
def test_a_cache_of_embeddings_is_refused_where_its_records_are_damaged(tmp_path, data):
    key, texts = {"weights": "w", "corpus": "c"}, ["a", "b"]
    folder = store_folder(tmp_path, key)
    for file in folder.glob("*"):
        file.unlink()
    embed = lambda some: ([[float(len(t)), 1.0] for t in some], None)  # noqa: E731
    stored_embeddings(tmp_path, key, texts, embed, 1, False)
    name = data.draw(st.sampled_from(["key.json", "done.jsonl", "rows.npy"]))
    content = data.draw(damaged((folder / name).read_bytes()))
    (folder / name).write_bytes(content)
    found, message = None, str(folder)
    try:
        found = open_store(folder, key, 2).tolist()
    except StoreError as error:
        message = str(error)
    assert found in (None, [[1.0, 1.0], [1.0, 1.0]])
    assert str(folder) in message
    assert len(message.replace(str(folder), "")) < LONGEST


def test_a_plain_reading_of_columns_is_that_of_csv():
    """The expectation above parts lines as the csv module does."""
    text = "q0\td0\t1\nq1\td1\t-2\n"
    rows = list(csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert rows == [line.split("\t") for line in text.split("\n") if line]
