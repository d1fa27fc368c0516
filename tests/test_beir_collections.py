"""The collections of BEIR by name: their counts, what is missing and where it comes from."""

import json

import pytest

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.evaluation_checks import benchmarks_of, check, split_of
from search_r3.data.types import Benchmark, Corpus
from search_r3.errors import UsageError
from search_r3.evaluate import run
from search_r3.evaluation.beir_collections import (
    COLLECTIONS,
    absent_text,
    cqadupstack_rows,
    difference_text,
    official,
)
from search_r3.evaluation.report import print_table

PARTS = [each.name for each in COLLECTIONS if each.name.startswith("cqadupstack/")]


def write_collection(folder, split="test"):
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": f"d{i}", "title": "", "text": f"word{i} and more"} for i in range(3)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "queries.jsonl").write_text(
        "\n".join(json.dumps({"_id": f"q{i}", "text": f"word{i}"}) for i in range(2))
    )
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t1\n")


def composed(*given):
    with ConfigSource() as source:
        return compose("evaluate", ["modes=[bm25]", *given], source).config


def test_the_parts_of_cqadupstack_add_up_to_the_paper_s_counts():
    parts = [official(name) for name in PARTS]
    assert len(parts) == 12
    # table 1 of arXiv:2104.08663: 13,145 queries and 457,199 documents
    assert sum(each.n_queries for each in parts) == 13_145
    assert sum(each.n_docs for each in parts) == 457_199
    assert len({each.name.partition("/")[0] for each in COLLECTIONS}) == 15
    assert [each.name for each in COLLECTIONS if each.split != "test"] == ["msmarco"]
    removed = {each.name for each in COLLECTIONS if each.remove_self_match}
    assert removed == {"msmarco", "fiqa", "arguana", "quora", "fever"}


def test_scifact_has_its_counts(beir_root):
    n_docs = sum(1 for _ in (beir_root / "scifact" / "corpus.jsonl").open())
    judged = {line.split("\t")[0] for line in (beir_root / "scifact" / "qrels" / "test.tsv").open()}
    assert (official("scifact").n_queries, official("scifact").n_docs) == (len(judged - {"query-id"}), n_docs)


def test_beir_is_what_is_there_and_the_rest_is_told(tmp_path, caplog):
    beir = tmp_path / "beir"
    for name, split in (
        ("scifact", "test"),
        ("msmarco", "dev"),
        ("cqadupstack/gis", "test"),
        ("own", "test"),
    ):
        write_collection(beir / name, split)
    config = composed("benchmarks=[own,beir]", f"beir_dir={beir}", f"output_dir={tmp_path / 'out'}")
    check(config, False)
    assert benchmarks_of(config) == ["own", "msmarco", "cqadupstack/gis", "scifact"]
    assert [split_of(config, name) for name in ("msmarco", "scifact")] == ["dev", "test"]
    assert split_of(composed("benchmarks=[msmarco]", f"beir_dir={beir}"), "msmarco") == "dev"
    assert split_of(composed("benchmarks=[msmarco]", "split=test"), "msmarco") == "test"  # as it is typed
    run(config)
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["rows"]
    assert [row["benchmark"] for row in rows] == benchmarks_of(config)
    assert "not evaluated, since they are not there: trec-covid, nfcorpus" in caplog.text
    assert "scifact: has 2 queries and 3 documents, BEIR's scifact has 300 and 5183" in caplog.text
    assert "own: has" not in caplog.text


def test_what_is_missing_is_listed_with_where_to_get_it_and_where_to_put_it(tmp_path):
    write_collection(tmp_path / "own")
    with pytest.raises(UsageError) as error:
        check(composed("benchmarks=[beir]", f"beir_dir={tmp_path}"), False)
    told = str(error.value)
    assert f"not one collection of BEIR is in {tmp_path}" in told
    assert told.count("cqadupstack") == 2  # the whole, not twelve parts; and its archive
    assert "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/<name>.zip" in told
    assert f"unpack it in {tmp_path}" in told
    with pytest.raises(UsageError, match="beir needs beir_dir="):
        check(composed("benchmarks=[beir]"), False)
    with pytest.raises(
        UsageError, match=r"nfcorpus is a collection of BEIR: unpack https://.*/nfcorpus\.zip"
    ):
        check(composed("benchmarks=[nfcorpus]", f"beir_dir={tmp_path}"), False)
    for name in PARTS[1:]:
        write_collection(tmp_path / name)
    assert "cqadupstack/android, quora" in absent_text(tmp_path)  # of a part that is missing, the part


def test_cqadupstack_by_its_name_is_its_parts(tmp_path):
    assert benchmarks_of(composed("benchmarks=[cqadupstack]", "hub=true")) == PARTS
    with pytest.raises(
        UsageError, match=r"not one collection of CQADupStack.*Missing: cqadupstack; get https"
    ):
        check(composed("benchmarks=[cqadupstack]", f"beir_dir={tmp_path}"), False)
    write_collection(tmp_path / PARTS[3])
    assert benchmarks_of(composed("benchmarks=[cqadupstack]", f"beir_dir={tmp_path}")) == [PARTS[3]]
    write_collection(tmp_path / "cqadupstack")  # a folder of that very name is what it says
    assert benchmarks_of(composed("benchmarks=[cqadupstack]", f"beir_dir={tmp_path}")) == ["cqadupstack"]


@pytest.mark.parametrize(
    ("there", "told"),
    [(PARTS[3], ", ".join(PARTS[:3])), ("bright/pony", "bright/biology, bright/earth_science")],
)
def test_the_parts_of_a_group_that_are_not_there_are_told(tmp_path, caplog, there, told):
    write_collection(tmp_path / there)
    group = there.partition("/")[0]
    run(composed(f"benchmarks=[{group}]", f"beir_dir={tmp_path}", f"output_dir={tmp_path / 'out'}"))
    assert f"not evaluated, since they are not there: {told}, " in caplog.text
    assert there not in caplog.text.partition("not there: ")[2].partition(";")[0]


def test_counts_are_compared_on_the_split_that_beir_reports():
    corpus = Corpus(["d"], ["text"])
    benchmark = Benchmark("msmarco", corpus, {"q": "a"}, {"q": {"d": 1}})
    assert difference_text(benchmark, "test") == ""
    assert "BEIR's msmarco has 6980 and 8841823" in difference_text(benchmark, "dev")
    assert difference_text(Benchmark("mine", corpus, {"q": "a"}, {"q": {"d": 1}}), "test") == ""
    assert official("unscifact") is None


def test_the_mean_of_the_parts_of_cqadupstack_is_a_row_of_the_table(capsys):
    row = {
        "mode": "bm25", "model": "bm25", "weights_sha256": None, "n_docs": 10, "missing_embed_token": 0,
        "tokens_per_query": 0.0, "ci95": {"ndcg@10": [0.1, 0.9]},
    }  # fmt: skip
    rows = [
        row
        | {"benchmark": name, "n_queries": n, "seconds_per_query": 0.001 * n}
        | {"metrics": {"ndcg@10": n / 24, "recall@100": 0.5}}
        for n, name in enumerate(PARTS, start=1)
    ]
    (mean,) = cqadupstack_rows([*rows, rows[0] | {"benchmark": "scifact"}])
    # nDCG: (1 + ... + 12) / 24 / 12 = 78 / 288; seconds by queries: (1 + 4 + ... + 144) / 78 = 650 / 78 ms
    assert mean["metrics"]["ndcg@10"] == pytest.approx(78 / 288)
    assert mean["seconds_per_query"] == pytest.approx(0.650 / 78)
    assert (mean["n_queries"], mean["n_docs"], mean["benchmark"]) == (78, 120, "cqadupstack")
    assert cqadupstack_rows(rows[1:]) == []  # a part is missing
    assert cqadupstack_rows([*rows, rows[0]]) == []  # two rows of one part
    print_table(rows)
    assert [cell.strip() for cell in capsys.readouterr().out.splitlines()[-2].split("│")[1:7]] == [
        "cqadupstack", "bm25", "78", "120", "0.271", "",
    ]  # fmt: skip
