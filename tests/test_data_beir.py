"""Collections in BEIR layout: what is read, and the one error for each bad row."""

import gzip
import json
import lzma
import pickle
import threading
import zipfile
from pathlib import Path

import pytest
import pytrec_eval
from beir_folders import CORPUS, QUERIES, UNMATCHED, lines, qrels, write_collection

from search_r3.data.beir.benchmark import load_benchmark
from search_r3.data.beir.documents import load_corpus
from search_r3.data.beir.layout import collection_name, removes_self_match
from search_r3.data.beir.training import load_beir_training
from search_r3.data.jsonl import ConcatTexts, DataError, LazyTexts, numbered_lines
from search_r3.data.mixture import load_mixture
from search_r3.evaluation.metrics import per_query_metrics
from search_r3.evaluation.trec import read_qrels
from search_r3.records import RecordError
from search_r3.stages.data import thinned


@pytest.mark.parametrize("compressed", [False, True])
def test_title_and_text_are_joined_by_one_space(tmp_path, compressed):
    benchmark = load_benchmark(write_collection(tmp_path, compressed), name="small")
    assert list(benchmark.corpus.ids) == ["d1", "d2", "d3", "d4"]
    assert list(benchmark.corpus.texts) == [
        "Wings lift of a wing",
        "größe ☃ of\ta snowman",
        "no title here",
        "Only a title",
    ]


@pytest.mark.parametrize("compressed", [False, True])
def test_line_ends_of_windows_a_byte_order_mark_and_a_missing_header_change_nothing(tmp_path, compressed):
    plain = load_benchmark(write_collection(tmp_path / "plain"))
    judged = "q30\td1\t2\nq30\td2\t 1 \nq31\td3\t0"
    files = {"corpus": lines(CORPUS), "queries": lines(QUERIES), "test": judged}
    odd = {name: "\ufeff\r\n" + text.replace("\n", "\r\n") for name, text in files.items()}
    odd["train"] = "\n" + qrels([("q0", "d1", 1)])  # the header is not on the first line
    folder = write_collection(tmp_path / "odd", compressed, **odd)
    benchmark = load_benchmark(folder)
    assert benchmark.corpus.fingerprint == plain.corpus.fingerprint
    assert (benchmark.queries, benchmark.qrels) == (plain.queries, plain.qrels)
    assert [row.id for row in load_beir_training(folder, validation_share=0).examples] == ["q0\td1"]


def test_all_judged_queries_count_and_no_others(tmp_path):
    benchmark = load_benchmark(write_collection(tmp_path))
    assert benchmark.queries == {"q30": "query number 30", "q31": "query number 31"}
    assert benchmark.qrels == {"q30": {"d1": 2, "d2": 1}, "q31": {"d3": 0}}
    assert benchmark.name == tmp_path.name


BAD_ROWS = [
    ({"corpus": lines(CORPUS[:1]) + "{'_id': 1}\n"}, "corpus.jsonl", 2, "one JSON object"),
    ({"corpus": lines(CORPUS[:1]) + '{"_id": ' + "9" * 5000 + "}\n"}, "corpus.jsonl", 2, "one JSON object"),
    ({"corpus": lines(CORPUS[:1]) + "[1]\n"}, "corpus.jsonl", 2, "got list"),
    ({"corpus": '{"_id": "x", "text": "a", "text": "b"}\n'}, "corpus.jsonl", 1, "key 'text' is given twice"),
    ({"corpus": lines(CORPUS[:1]) + '\n{"_id": "x"}\n'}, "corpus.jsonl", 3, "'text' is missing"),
    ({"corpus": '{"text": "x"}\n'}, "corpus.jsonl", 1, "'_id' is missing"),
    ({"corpus": lines([{"_id": 7, "text": "x"}])}, "corpus.jsonl", 1, "must be a string, got int"),
    ({"corpus": lines([{"_id": "x", "text": ["x"]}])}, "corpus.jsonl", 1, "must be a string, got list"),
    (
        {"corpus": lines([{"_id": "x", "text": "y", "title": 3}])},
        "corpus.jsonl",
        1,
        "'title' must be a string",
    ),
    (
        {"corpus": lines([*CORPUS, {"_id": "x", "title": " ", "text": ""}])},
        "corpus.jsonl",
        5,
        "not both be empty",
    ),
    ({"corpus": lines([*CORPUS, CORPUS[0]])}, "corpus.jsonl", 5, "second time"),
    ({"corpus": lines(CORPUS) + '{"_id": "x", "text": "\udcff"}\n'}, "corpus.jsonl", 5, "UTF-8"),
    ({"corpus": lines(CORPUS) + '{"_id": "x", "text": "\\ud800"}\n'}, "corpus.jsonl", 5, "surrogate"),
    ({"corpus": ""}, "corpus.jsonl", 0, "no documents"),
    ({"queries": lines([*QUERIES, QUERIES[0]])}, "queries.jsonl", 41, "second time"),
    ({"queries": lines([{"_id": "q", "text": " "}])}, "queries.jsonl", 1, "must not be empty"),
    ({"queries": "nonsense\n"}, "queries.jsonl", 1, "one JSON object"),
    ({"train": qrels([("q0", "d9", 1)])}, "train.tsv", 2, "'d9' is not in the corpus"),
    ({"train": qrels([("q0", "d1", 1), ("q99", "d1", 1)])}, "train.tsv", 3, "'q99' is not in the queries"),
    ({"train": qrels([("q0", "d1", 1), ("q0", "d1", 1)])}, "train.tsv", 3, "judged twice"),
    ({"train": "q0\t0\td1\t1\n"}, "train.tsv", 1, "3 tab-separated columns"),
    ({"train": "query-id corpus-id score\n"}, "train.tsv", 1, "3 tab-separated columns"),
    ({"train": "q0\t0\td1\t1\n"}, "train.tsv", 1, "TREC's format has 4: take the second column out"),
    ({"train": "q0 0 d1 1\n"}, "train.tsv", 1, "TREC's format has 4: take the second column out"),
    ({"train": "query_id\tdoc_id\trelevance\n"}, "train.tsv", 1, "a header line reads query-id, corpus-id"),
    ({"train": "q0\td1\thigh\n"}, "train.tsv", 1, "integer, got 'high'"),
    ({"train": "q0\td1\t1.5\n"}, "train.tsv", 1, "integer, got '1.5'"),
    ({"train": "query-id\tcorpus-id\tscore\n"}, "train.tsv", 0, "no judgements"),
]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("files", "file", "line", "rule"), BAD_ROWS)
def test_a_bad_row_is_one_error_with_file_line_and_rule(tmp_path, files, file, line, rule, compressed):
    folder = write_collection(tmp_path, compressed, **files)
    with pytest.raises(DataError) as caught:
        load_beir_training(folder)
    assert Path(caught.value.file).name == file + (".gz" if compressed else "")
    assert caught.value.line == line
    assert rule in caught.value.rule
    assert caught.value.file in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).line == line  # it crosses process borders


def test_a_missing_split_names_those_that_are_there(tmp_path):
    folder = write_collection(tmp_path)
    with pytest.raises(DataError, match=r"no such split; splits of this folder: test, train"):
        load_benchmark(folder, split="dev")
    with pytest.raises(DataError, match="no such folder"):
        load_benchmark(tmp_path / "nowhere")
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(DataError, match=r"corpus.jsonl: no such file"):
        load_benchmark(folder)


def test_a_damaged_gzip_file_is_named(tmp_path):
    folder = write_collection(tmp_path, compressed=True)
    path = folder / "corpus.jsonl.gz"
    whole = path.read_bytes()
    for damaged in (whole[:-12], whole[:20] + b"\xff" * 20 + whole[40:], b"no gzip at all"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="gzip stream is damaged"):
            load_benchmark(folder)


def test_an_archive_is_called_one(tmp_path):
    """BEIR publishes zip files."""
    folder = write_collection(tmp_path / "coll")
    with zipfile.ZipFile(tmp_path / "coll.zip", "w") as archive:
        archive.write(folder / "corpus.jsonl")
    with pytest.raises(DataError, match=r"coll\.zip: is a zip archive; unpack it$"):
        load_corpus(tmp_path / "coll.zip")
    (folder / "corpus.jsonl").write_bytes(lzma.compress((folder / "corpus.jsonl").read_bytes()))
    with pytest.raises(DataError, match=r"corpus\.jsonl: is compressed with xz; unpack it, or"):
        load_benchmark(folder)


@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_gzip_file_without_the_ending_is_told_which_one_it_needs(tmp_path, file):
    folder = write_collection(tmp_path)
    (folder / file).write_bytes(gzip.compress((folder / file).read_bytes()))
    with pytest.raises(
        DataError, match=r"is compressed with gzip; give it a name that ends in \.gz$"
    ) as caught:
        load_benchmark(folder)
    assert caught.value.file == str(folder / file)


def test_a_benchmark_keeps_its_empty_documents_and_says_so(tmp_path, caplog):
    folder = write_collection(tmp_path, corpus=lines([*CORPUS, {"_id": "d5", "title": "", "text": ""}]))
    assert load_benchmark(folder).corpus.texts[4] == ""
    assert "1 of 5 documents have neither title nor text" in caplog.text
    with pytest.raises(DataError, match="line 5"):
        load_benchmark(folder, allow_empty_documents=False)


def test_self_match_removal_follows_mteb_by_name_and_can_be_set(tmp_path):
    removed = [
        "arguana",
        "ArguAna",
        "fiqa",
        "FiQA2018",
        "quora",
        "QuoraRetrieval",
        "fever",
        "msmarco",
        "MSMARCO",
    ]
    kept = ["scifact", "cosqa", "NanoArguAna", "NanoMSMARCO", "climate-fever", "hotpotqa", "nq"]
    assert all(removes_self_match(name) for name in removed)
    assert not any(removes_self_match(name) for name in kept)
    folder = write_collection(tmp_path)
    assert load_benchmark(folder, name="arguana").remove_self_match
    assert not load_benchmark(folder, name="arguana", remove_self_match=False).remove_self_match
    assert load_benchmark(folder, remove_self_match=True).remove_self_match
    assert load_beir_training(folder, name="arguana").test.remove_self_match


def test_a_collection_is_called_what_the_user_wrote_and_not_what_a_link_points_to(tmp_path, monkeypatch):
    for name in ("one", "two"):
        write_collection(tmp_path / "store" / name / "v1")
    (tmp_path / "links").mkdir()
    links = {"arguana": "../store/one/v1", "other": "../store/two/v1"}
    for name, target in links.items():
        (tmp_path / "links" / name).symlink_to(target)
    loaded = {name: load_benchmark(tmp_path / "links" / name) for name in links}
    assert [benchmark.name for benchmark in loaded.values()] == ["arguana", "other"]
    assert [benchmark.remove_self_match for benchmark in loaded.values()] == [True, False]
    data = load_beir_training(tmp_path / "links" / "arguana")
    assert (data.name, data.test.name, data.test.remove_self_match) == ("arguana", "arguana-test", True)

    monkeypatch.chdir(tmp_path / "links" / "arguana")
    monkeypatch.setenv("PWD", str(tmp_path / "links" / "arguana"))  # as a shell leaves it
    written = [".", "", "./", "../arguana/.", str(tmp_path / "links" / "arguana") + "//", "qrels/.."]
    assert [collection_name(path) for path in written] == ["arguana"] * 5 + ["v1"]
    monkeypatch.setenv("PWD", "/")  # a stale value is no name
    assert collection_name(".") == "v1"
    assert collection_name("..") == "one"
    with pytest.raises(DataError, match="no name to call the collection by"):
        collection_name("/")


def test_own_documents_that_are_relevant_and_taken_out_are_counted_aloud(tmp_path, caplog):
    judged = [("q1", "q1", 1), ("q1", "d1", 1), ("q2", "q2", 0), ("q2", "d1", 1)]
    corpus = [*CORPUS, {"_id": "q1", "text": "query number 1"}, {"_id": "q2", "text": "query number 2"}]
    folder = write_collection(tmp_path, corpus=lines(corpus), test=qrels(judged))
    load_benchmark(folder)
    assert "same id" not in caplog.text
    load_benchmark(folder, name="quora")
    assert "quora: of 1 of 2 queries the document of the same id is judged relevant" in caplog.text
    caplog.clear()
    load_beir_training(folder, remove_self_match=True)
    assert "-test: of 1 of 2 queries the document of the same id is judged relevant" in caplog.text


def test_of_a_name_with_slashes_the_last_part_decides_about_self_matches():
    assert removes_self_match("beir/ArguAna")
    assert not removes_self_match("arguana/nfcorpus")


def test_a_judgement_without_its_document_or_query_is_refused_with_the_option_that_takes_it(tmp_path):
    folder = write_collection(tmp_path, **UNMATCHED)
    with pytest.raises(DataError, match=r"line 3: document 'gone' is not.*allow_unmatched_judgements=true"):
        load_benchmark(folder)
    write_collection(tmp_path, test=qrels([("q30", "d1", 1), ("q99", "gone", 2)]))
    with pytest.raises(DataError, match=r"line 3: query 'q99' is not.*allow_unmatched_judgements=true"):
        load_benchmark(folder)
    with pytest.raises(DataError, match=r"test.tsv: not one judged document is in the corpus \(.*'7'.*'d1'"):
        load_benchmark(
            write_collection(tmp_path, test=qrels([("q30", "7", 1)])), allow_unmatched_judgements=True
        )
    with pytest.raises(DataError, match=r"test.tsv: no judgement is of a query in the queries file \(1 rows"):
        load_benchmark(
            write_collection(tmp_path, test=qrels([("q99", "d1", 2)])), allow_unmatched_judgements=True
        )


def test_a_judged_document_that_is_missing_counts_as_not_found_as_in_trec_eval(tmp_path, caplog):
    benchmark = load_benchmark(write_collection(tmp_path, **UNMATCHED), allow_unmatched_judgements=True)
    assert benchmark.queries.keys() == {"q30", "q31", "q32"}
    assert (benchmark.judged_documents_missing, benchmark.judged_queries_missing) == (2, 1)
    assert "2 of 5 judgements are of a document that the corpus lacks (the first: 'gone')" in caplog.text
    assert (
        "1 of 5 judgements are of a query without a text (the first: 'q99'); they are left out" in caplog.text
    )
    run = {query: {"d1": 0.9, "d2": 0.5, "d3": 0.1} for query in benchmark.queries}
    published = {"q30": {"d1": 1, "gone": 2}, "q31": {"lost": 1}, "q32": {"d2": 1}}
    names = {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100", "map@100": "map_cut_100"}
    theirs = pytrec_eval.RelevanceEvaluator(published, set(names.values())).evaluate(run)
    ours = per_query_metrics(run, benchmark.qrels)
    assert ours["q30"]["recall@100"] == 0.5
    assert 0 < ours["q30"]["ndcg@10"] < 0.5  # grade 1 of an ideal that begins with grade 2
    for query, values in ours.items():
        for name, trec_name in names.items():
            assert values[name] == pytest.approx(theirs[query][trec_name], abs=1e-6)


def test_what_is_odd_and_kept_is_said_in_one_line_each(tmp_path, caplog):
    corpus = [*CORPUS, {"_id": "n1", "text": "3.14"}, {"_id": "n2", "text": "?!"}, {"_id": "e", "text": " "}]
    queries = [*QUERIES, {"_id": "blank", "text": " "}, {"_id": "number", "text": "42"}]
    folder = write_collection(
        tmp_path,
        corpus=lines(corpus),
        queries=lines(queries),
        test=qrels([("blank", "d1", 1), ("q3", "d2", 0)]),
    )
    benchmark = load_benchmark(folder)
    assert benchmark.queries["blank"] == " "
    said = [record.getMessage().partition(": ")[2] for record in caplog.records]
    assert said == [
        "1 of 7 documents have neither title nor text (the first: 'e'); they are kept",
        "2 of 7 documents hold no letter (the first: 'n1'); they are kept",
        "1 of 42 queries are empty (the first: 'blank'); they are kept",
        "1 of 42 queries hold no letter (the first: 'number'); they are kept",
        "1 of 2 queries have no document of a grade above 0 and count 0",
    ]


def with_grade(folder, grade):
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "a"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "a"}\n')
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\nq1\td1\t{grade}\n")
    return folder


@pytest.mark.parametrize(
    ("grade", "value"), [("1.0", 1), ("2.00", 2), ("1.", 1), ("+1", 1), ("-1.0", -1), (" 1", 1), ("0.0", 0)]
)
def test_a_whole_grade_may_be_written_with_a_point_or_a_sign(tmp_path, grade, value):
    assert load_benchmark(with_grade(tmp_path, grade)).qrels == {"q1": {"d1": value}}
    (tmp_path / "qrels.trec").write_text(f"q1 0 d1 {grade}\n")
    assert read_qrels(tmp_path / "qrels.trec") == {"q1": {"d1": value}}


@pytest.mark.parametrize("grade", ["0.5", "1.01", "1e0", "--1", "+-1", "+", ".0", ".", "1,0", "nan", "1_0"])
def test_a_grade_that_is_no_whole_number_is_refused_with_its_line(tmp_path, grade):
    with pytest.raises(DataError, match=r"test.tsv, line 2: the score must be an integer, got "):
        load_benchmark(with_grade(tmp_path, grade))
    (tmp_path / "qrels.trec").write_text(f"q1 0 d1 {grade}\n")
    with pytest.raises(RecordError, match=r"line 1: the grade must be an integer, got "):
        read_qrels(tmp_path / "qrels.trec")


HUGE = "x" * 10_000_000


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"corpus.jsonl": json.dumps({"_id": HUGE, "text": "a"})}, "_id must have at most 4096 characters"),
        ({"corpus.jsonl": json.dumps({HUGE: 1, "_id": "d", "more": 1})}, "key 'text' is missing"),
        ({"corpus.jsonl": json.dumps({"_id": "d", "text": "a"}) + HUGE}, "each line must be one JSON object"),
        ({"queries.jsonl": '{"_id": ' + "9" * 10_000_000}, "each line must be one JSON object"),
        ({"qrels/test.tsv": f"q1\td1\t{HUGE}"}, "a line must not be longer than 65536 bytes"),
        ({"qrels/test.tsv": f"q1\td1\t{HUGE[:60_000]}"}, "the score must be an integer, got 'xxx"),
        ({"qrels/test.tsv": f"q1\t{HUGE[:60_000]}\t1"}, "document 'xxx"),
        ({"qrels/test.tsv": "q1\td1\t" + "9" * 30}, "the score must lie within 32 bits"),
    ],
)
def test_a_message_repeats_no_more_than_a_few_words_of_a_long_line(tmp_path, files, message):
    folder = tmp_path / "c"
    (folder / "qrels").mkdir(parents=True)
    good = {
        "corpus.jsonl": '{"_id": "d1", "text": "a"}',
        "queries.jsonl": '{"_id": "q1", "text": "a"}',
        "qrels/test.tsv": "q1\td1\t1",
    }
    for name, content in (good | files).items():
        (folder / name).write_text(content + "\n")
    with pytest.raises(DataError) as error:
        load_benchmark(folder)
    name = next(iter(files))
    assert str(error.value).startswith(f"{folder / name}, line 1: ")
    assert message in str(error.value)
    assert len(str(error.value)) < 450 + len(str(folder))


def test_a_line_that_does_not_end_is_read_no_further_than_its_bound(tmp_path):
    file = tmp_path / "queries.jsonl"
    file.write_bytes(b'{"_id": "a", "text": "a"}\n')
    with file.open("r+b") as stream:
        stream.truncate(1 << 40)  # a hole of a terabyte: one line of NULs
    with pytest.raises(DataError, match=r"line 2: a line must not be longer than 1000 bytes"):
        list(numbered_lines(file, longest=1000))


def test_a_corpus_on_disk_equals_the_one_in_memory(tmp_path):
    rows = [{"_id": f"d{n}", "title": "t" * (n % 3), "text": "ß☃" * (n * 400 + 1)} for n in range(40)]
    text = "\ufeff" + lines(rows).replace('{"_id": "d7"', '\n\n{"_id": "d7"').rstrip("\n")  # no last line end
    path = write_collection(tmp_path, corpus=text) / "corpus.jsonl"
    memory, disk = load_corpus(path), load_corpus(path, in_memory_mib=0)
    assert isinstance(disk.texts, LazyTexts)
    assert len(disk.texts) == 40
    assert list(disk.texts) == list(memory.texts)
    assert [disk.texts[row] for row in range(39, -1, -1)] == list(memory.texts)[::-1]
    assert disk.texts[3:9:2] == memory.texts[3:9:2]
    assert disk.texts[-1] == memory.texts[-1]
    assert disk.fingerprint == memory.fingerprint
    assert list(pickle.loads(pickle.dumps(disk.texts))) == list(memory.texts)
    with pytest.raises(IndexError, match="row 40 of 40"):
        disk.texts[40]


def test_threads_read_one_corpus_on_disk_at_once(tmp_path):
    rows = [{"_id": f"d{n}", "text": f"{n} " * 3000} for n in range(30)]
    path = write_collection(tmp_path, corpus=lines(rows)) / "corpus.jsonl"
    texts, expected = load_corpus(path, in_memory_mib=0).texts, load_corpus(path).texts
    wrong: list[int] = []

    def read() -> None:
        wrong.extend(row for _ in range(10) for row in range(30) if texts[row] != expected[row])

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_joined_texts_are_their_parts_behind_one_another():
    joined = ConcatTexts([["a", "b"], [], ["c"], ConcatTexts([["d"], ["e"]])])
    assert list(joined) == [joined[row] for row in range(len(joined))] == ["a", "b", "c", "d", "e"]
    assert (joined[-1], joined[1:4]) == ("e", ["b", "c", "d"])
    with pytest.raises(IndexError):
        joined[5]
    assert list(ConcatTexts([])) == []


@pytest.mark.parametrize("in_memory_mib", [256, 0])
def test_the_title_of_a_document_is_how_its_text_begins(tmp_path, in_memory_mib):
    file = tmp_path / "corpus.jsonl"
    rows = [
        (" A title ", "and a text"),
        ("", "a text alone"),
        (None, "text"),
        ("alone", " "),
        ("  ", "blank"),
    ]
    lines = [json.dumps({"_id": f"d{n}", "title": t, "text": x}) for n, (t, x) in enumerate(rows)]
    file.write_text("\n".join(lines) + "\n")

    corpus = load_corpus(file, in_memory_mib=in_memory_mib)

    assert [corpus.title_of(row) for row in range(5)] == ["A title", "", "", "alone", ""]
    assert corpus.texts[0].startswith("A title")
    file.write_text('{"_id": "d", "text": "no title in the whole file"}\n')
    assert load_corpus(file).title_lengths is None
    assert load_corpus(file).title_of(0) == ""


@pytest.mark.parametrize("compressed", [False, True])
def test_excluded_documents_are_those_of_the_folder_however_it_is_read(tmp_path, compressed):
    folder = write_collection(tmp_path / "mine", dev=qrels([("q33", "d1", 1)]))
    table = b"query-id\tcorpus-id\nq30\td3\nq33\td4\n"
    name = "excluded.tsv.gz" if compressed else "excluded.tsv"
    (folder / name).write_bytes(gzip.compress(table) if compressed else table)
    assert load_benchmark(folder).excluded == {"q30": {"d3"}}
    data = load_beir_training(folder)
    assert data.test.excluded == {"q30": {"d3"}}
    assert data.validation.excluded == {"q33": {"d4"}}
    assert thinned(data.validation, 5, 2, seed=0).excluded == {"q33": {"d4"}}
    mixed = load_mixture({"a": data})
    assert mixed.test.excluded == {"a/q:q30": {"a/d3"}}
    assert mixed.test.qrels.keys() > mixed.test.excluded.keys()
