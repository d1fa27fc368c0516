"""What evaluation takes out of a query's ranking is no negative and no rival of it in training either."""

import json
from pathlib import Path

import pytest
import torch

from search_r3.data.beir.benchmark import load_benchmark
from search_r3.data.beir.training import load_beir_training
from search_r3.data.jsonl import DataError
from search_r3.data.mixture import load_mixture
from search_r3.data.negatives import RankRule, mine_hard_negatives
from search_r3.data.queries import one_row_per_query
from search_r3.evaluation.ranking import without_removed
from search_r3.index.backends.bm25 import LexicalIndex
from search_r3.objectives.masks import id_numbers, negatives_mask
from search_r3.stages.sft.collate import collate_sft

WORDS = ["cat", "dog", "sun", "ice", "tea", "oak", "owl", "elm", "fox", "bee"]
TEXTS = [f"the {word} says {WORDS[(number + 1) % 10]}" for number, word in enumerate(WORDS)]
PAIRS = [(f"d{number}", f"d{(number + 1) % 10}") for number in range(9)]
EXCLUDED = "query-id\tcorpus-id\nd0\td5\nd0\td6\nd3\td9\nd77\td1\n"


def written(folder: Path, excluded: str = EXCLUDED) -> Path:
    """A collection whose queries are documents, each with the next one as its positive."""
    rows = [{"_id": f"d{number}", "text": text} for number, text in enumerate(TEXTS)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(lines)
    (folder / "queries.jsonl").write_text(lines)
    judged = "".join(f"{query}\t{document}\t1\n" for query, document in PAIRS)
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    (folder / "excluded.tsv").write_text(excluded)
    return folder


def read(folder: Path, **settings):
    return load_beir_training(folder, validation_share=0.0, test_split=None, **settings)


def query_of(example) -> str:
    return example.id.split("/")[-1].split("\t")[0]


@pytest.mark.parametrize("name", ["arguana", "other"])
def test_rows_exclude_just_the_documents_that_evaluation_takes_out(tmp_path, name):
    folder = written(tmp_path / name)
    data = read(folder)
    everything = {query: dict.fromkeys(data.corpus.ids, 1.0) for query, _ in PAIRS}
    kept, _ = without_removed(load_benchmark(folder, split="train"), everything, k=10)
    assert {query_of(row): row.excluded_ids for row in data.examples} == {
        query: frozenset(data.corpus.ids) - documents.keys() for query, documents in kept.items()
    }
    assert any(row.excluded_ids for row in data.examples)


def test_the_held_out_parts_of_training_exclude_what_evaluation_reads_for_their_split(tmp_path):
    folder = written(tmp_path / "other", EXCLUDED + "d4\td8\nd5\td8\nd5\td9\n")
    for split, judged in {"dev": "d3\td4\t1\nd4\td5\t1\n", "test": "d4\td6\t1\nd5\td6\t1\n"}.items():
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    data = load_beir_training(folder)
    assert {query_of(row): row.excluded_ids for row in data.examples if row.excluded_ids} == {
        "d0": {"d5", "d6"}
    }
    assert (
        data.validation.excluded
        == load_benchmark(folder, split="dev").excluded
        == {"d3": {"d9"}, "d4": {"d8"}}
    )
    assert data.test.excluded == load_benchmark(folder).excluded == {"d4": {"d8"}, "d5": {"d8", "d9"}}


def test_a_document_that_is_judged_relevant_stays_a_positive_of_its_own_query(tmp_path):
    folder = written(tmp_path / "quora")
    with (folder / "qrels" / "train.tsv").open("a") as file:
        file.write("d0\td0\t1\n")
    rows = [row for row in read(folder).examples if query_of(row) == "d0"]
    assert [row.positive_id for row in rows] == ["d1", "d0"]
    assert [row.excluded_ids for row in rows] == [{"d5", "d6"}] * 2


def test_excluding_a_positive_of_a_training_query_is_refused_by_file_and_line(tmp_path):
    folder = written(tmp_path / "other", "query-id\tcorpus-id\nd0\td1\n")
    with pytest.raises(DataError, match=r"excluded\.tsv, line 2: takes out 'd1', which is judged relevant"):
        read(folder)


def test_excluded_rows_that_take_nothing_out_are_counted_aloud(tmp_path, caplog):
    """A header by other names, a query and a document of another version."""
    rows = "query\tdocument\nd0\td5\nd0\td99\nd9\td1\nd88\td99\n"
    folder = written(tmp_path / "other", rows)
    assert load_benchmark(folder, split="train").excluded == {"d0": {"d5"}}
    # d9 is a query that is not judged, so not asked; it is none of another collection
    assert [record.getMessage().partition("excluded.tsv: ")[2] for record in caplog.records] == [
        "2 of 5 rows are of a query without a text (the first: 'query'); they are left out",
        "1 of 5 rows name a document that the corpus lacks (the first: 'd99'); they are left out",
    ]


@pytest.mark.parametrize("read_folder", [read, lambda folder: load_benchmark(folder, split="train")])
def test_excluded_documents_of_no_known_query_are_refused(tmp_path, read_folder):
    """As where the two columns are in the wrong order."""
    folder = written(tmp_path / "other", "query-id\tcorpus-id\nd5\tq0\nd6\tq0\n")
    asked = [{"_id": f"q{number}", "text": text} for number, text in enumerate(TEXTS)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (folder / "qrels" / "train.tsv").write_text("q0\td1\t1\nq1\td2\t1\n")
    with pytest.raises(DataError, match=r"excluded\.tsv: no row is of a query .*the first names 'd5'"):
        read_folder(folder)


def test_mining_takes_no_excluded_document_and_counts_ranks_without_them(tmp_path):
    data = read(written(tmp_path / "arguana"))
    search = LexicalIndex(data.corpus.texts, "english").search
    mined, report = mine_hard_negatives(
        data.examples, search, data.corpus, RankRule(last=3), 9, k=10, progress=False
    )
    for row in mined:
        assert row.excluded_ids.isdisjoint(row.hard_negative_ids)
        assert len(row.hard_negative_ids) == 2  # ranks 1 to 3 hold the positive, which is near by its words
    assert report.excluded == 9 + 3
    assert report.n_mined == 18


def test_no_excluded_document_of_a_batch_is_a_negative_in_the_loss(tmp_path):
    data = read(written(tmp_path / "arguana"))
    batch = collate_sft(data.examples, hard_negatives=0)
    width = max(map(len, batch.relevant_ids))
    relevant = torch.stack([id_numbers((*ids, *ids[:1] * (width - len(ids)))) for ids in batch.relevant_ids])
    mask, _ = negatives_mask(id_numbers(batch.document_ids), torch.tensor(batch.positive_index), relevant)
    for row, example in enumerate(batch.examples):
        allowed = {batch.document_ids[column] for column in mask[row].nonzero()[:, 0].tolist()}
        assert allowed == set(batch.document_ids) - example.excluded_ids
    assert sum(len(row.excluded_ids & set(batch.document_ids)) for row in batch.examples) == 8 + 3


def test_rows_that_are_joined_or_mixed_keep_what_they_exclude(tmp_path):
    data = read(written(tmp_path / "arguana"))
    with_more = [*data.examples, data.examples[0].__class__(
        id="again", query=TEXTS[0], positive=TEXTS[5], positive_id="d5", source="arguana",
        excluded_ids=frozenset({"d7"}),
    )]  # fmt: skip
    first = one_row_per_query(with_more, 2)[0]
    assert first.excluded_ids == {"d0", "d6", "d7"}  # d5 is a positive of the same query
    assert not first.excluded_ids & first.relevant_ids
    mixed = load_mixture({"a": data}).examples[0]
    assert mixed.excluded_ids == {"a/d0", "a/d5", "a/d6"}
