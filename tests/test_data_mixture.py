"""Mixtures: ids stay apart, weights are checked, collections are joined."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.utils import instantiate

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.data.beir.benchmark import load_benchmark
from search_r3.data.mixture import load_mixture
from search_r3.data.triples import load_triples
from search_r3.data.types import Benchmark, Corpus, Example, TrainingData
from search_r3.errors import UsageError


def triples(tmp_path: Path, name: str, n: int) -> TrainingData:
    path = tmp_path / f"{name}.jsonl"
    rows = [
        {"query": f"{name} {i}", "positive": f"document {i}", "hard_negatives": [f"other {i}"]}
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_triples(str(path), name=name, validation_share=0.2)


def test_ids_of_two_sources_stay_apart_and_point_at_their_texts(tmp_path):
    left, right = triples(tmp_path, "left", 30), triples(tmp_path, "right", 50)
    assert left.corpus.ids[0] == right.corpus.ids[0]  # equal texts have equal ids: a collision to keep apart
    graded = replace(left.examples[0], grades=((left.examples[0].positive_id, 2.0),))
    data = load_mixture({"a": replace(left, examples=[graded, *left.examples[1:]]), "b": right})
    assert data.examples[0].grades == ((data.examples[0].positive_id, 2.0),)
    assert len(data.corpus) == len(data.corpus.row_of) == len(left.corpus) + len(right.corpus)
    assert len({row.id for row in data.examples}) == len(left.examples) + len(right.examples)
    for row in data.examples:
        assert data.corpus.texts[data.corpus.row_of[row.positive_id]] == row.positive
        assert [data.corpus.texts[data.corpus.row_of[i]] for i in row.hard_negative_ids] == list(
            row.hard_negatives
        )
        assert row.positive_id in row.relevant_ids
        assert (
            row.positive_id.split("/")[0] == row.source == {"left": "a", "right": "b"}[row.query.split()[0]]
        )
    assert len(data.texts) == len(left.texts) + len(right.texts)
    assert list(data.texts)[len(left.texts)] == right.texts[0]


def test_further_positives_of_a_row_are_documents_of_the_joined_corpus(tmp_path):
    code, web = triples(tmp_path, "code", 30), triples(tmp_path, "web", 30)
    first, second, *_ = web.examples
    both = replace(first, more_positives=(second.positive,), more_positive_ids=(second.positive_id,))
    data = load_mixture({"code": code, "web": replace(web, examples=[both])})

    (example,) = (row for row in data.examples if row.more_positives)
    (document,) = example.more_positive_ids
    assert data.corpus.texts[data.corpus.row_of[document]] == second.positive


def test_weights_default_to_the_numbers_of_examples_and_sum_to_one(tmp_path):
    left, right = triples(tmp_path, "left", 30), triples(tmp_path, "right", 50)
    total = len(left.examples) + len(right.examples)
    assert load_mixture({"a": left, "b": right}).weights["a"] == pytest.approx(len(left.examples) / total)
    assert load_mixture({"a": left, "b": right}, {"b": 1, "a": 3}).weights == {"a": 0.75, "b": 0.25}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1.0}, r"exactly the sources \['a', 'b'\], got \['a'\]"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, "exactly the sources"),
        ({"a": 1.0, "b": 0.0}, "weights.b must be a positive number"),
        ({"a": float("nan"), "b": 1.0}, "weights.a must be a positive number"),
        ({"a": "2", "b": 1.0}, "weights.a must be a positive number"),
    ],
)
def test_wrong_weights_are_refused(tmp_path, weights, message):
    with pytest.raises(ValueError, match=message):
        load_mixture({"a": triples(tmp_path, "left", 9), "b": triples(tmp_path, "right", 9)}, weights)


def test_a_mixture_needs_sources_with_plain_names(tmp_path):
    with pytest.raises(ValueError, match="at least one source"):
        load_mixture({"a": None})
    with pytest.raises(ValueError, match="slash"):
        load_mixture({"a/b": triples(tmp_path, "left", 9)})


def test_held_out_collections_are_joined_query_by_query(tmp_path):
    left, right = triples(tmp_path, "left", 60), triples(tmp_path, "right", 60)
    data = load_mixture({"a": left, "b": right, "gone": None})
    assert len(data.validation.queries) == len(left.validation.queries) + len(right.validation.queries)
    for query_id, grades in data.validation.qrels.items():
        number = data.validation.queries[query_id].split()[1]
        (document,) = grades
        corpus = data.validation.corpus
        assert corpus.texts[corpus.row_of[document]] == f"document {number}"
        assert document.split("/")[0] == query_id.split("/")[0]
    assert data.test is None
    assert not data.validation.remove_self_match


def test_what_another_source_holds_out_is_neither_trained_on_nor_validated_with(tmp_path, caplog):
    corpus = Corpus(["1"], ["x"])

    def source(trained: list[str], validated: list[str], tested: list[str]) -> TrainingData:
        def held_out(texts: list[str]) -> Benchmark | None:
            queries = {f"q{number}": text for number, text in enumerate(texts)}
            return Benchmark("t", corpus, queries, {q: {"1": 1} for q in queries}) if texts else None

        rows = [Example(text, text, "x", "1") for text in trained]
        return TrainingData("t", corpus, rows, validation=held_out(validated), test=held_out(tested))

    first = source(["own", "tested there", "validated there"], ["both", "mine"], ["tested here"])
    second = source(["theirs", " tested here\n"], ["validated there"], ["tested there ", "both"])
    data = load_mixture({"a": first, "b": second})

    assert [row.id for row in data.examples] == ["a/own", "b/theirs"]
    assert sorted(data.validation.queries.values()) == ["mine", "validated there"]
    assert sorted(data.test.queries.values()) == ["both", "tested here", "tested there "]
    assert data.weights == {"a": 0.5, "b": 0.5}  # of the rows that are left
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "2 training queries of a are held out by others and left out",
        "1 validation queries of a are held out by others and left out",
        "1 training queries of b are held out by others and left out",
    ]
    with pytest.raises(ValueError, match=r"^sources\.a: no training row is left: other sources hold out"):
        load_mixture({"a": source(["both"], [], []), "b": second})


def test_self_matches_stay_where_their_source_keeps_them():
    def source(remove_self_match: bool) -> TrainingData:
        corpus = Corpus(["1", "2"], ["x", "y"])
        test = Benchmark("t", corpus, {"1": "q"}, {"1": {"1": 1, "2": 1}}, remove_self_match)
        return TrainingData("t", corpus, [], test=test)

    joined = load_mixture({"removes": source(True), "keeps": source(False)}, {"removes": 1, "keeps": 1}).test
    assert joined.remove_self_match
    same = [query for query in joined.queries if query in joined.corpus.row_of]
    assert same == ["removes/1"]
    assert joined.qrels["keeps/q:1"] == {"keeps/1": 1, "keeps/2": 1}


def test_the_configuration_mixes_sources_of_its_own_group(tmp_path):
    folder = tmp_path / "collection"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "one"}\n{"_id": "d2", "text": "two"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "first"}\n{"_id": "q2", "text": "second"}\n')
    (folder / "qrels" / "train.tsv").write_text("q1\td1\t1\n")
    (folder / "qrels" / "test.tsv").write_text("q2\td2\t1\n")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "a", "positive": "b", "hard_negatives": ["c"]}\n')
    overrides = [
        "stage=sft",
        "data=mixture",
        "+data@data.sources.mine=triples",
        "data.sources.pydocs=null",
        "~data.weights.pydocs",
        f"data.sources.beir.path='{folder}'",
        "data.sources.beir.validation_share=0",
        f"data.sources.mine.files=['{rows}']",
        "data.sources.mine.validation_share=0",
    ]
    with ConfigSource() as source:
        config = compose("train", [*overrides, "+data.weights.mine=3"], source).config
        with pytest.raises(UsageError, match=r"there is no key data\.weights\.mina\. Did you mean .*\.mine"):
            compose("train", [*overrides, "+data.weights.mina=3"], source)
    data = instantiate(config.data)
    assert data.weights == {"beir": 0.25, "mine": 0.75}
    assert {row.source for row in data.examples} == {"beir", "mine"}
    assert data.test.queries == {"beir/q:q2": load_benchmark(folder).queries["q2"]}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.sources.pydocs=null"],
            r"^data\.weights\.pydocs: data\.sources\.pydocs is taken away; give ~data\.weights\.pydocs too$",
        ),
        (["~data.weights.beir"], r"data\.weights\.beir is missing: give \+data\.weights\.beir=<number>"),
        (
            [
                "+data@data.sources.more=mixture",
                "+data.weights.more=1",
                "data.sources.more.sources.pydocs=null",
            ],
            r"data\.sources\.more\.weights\.pydocs: data\.sources\.more\.sources\.pydocs is taken away",
        ),
    ],
)
def test_weights_that_do_not_go_with_the_sources_are_refused_as_the_command_is_read(overrides, message):
    paths = [
        "data.sources.beir.path=a",
        *(["data.sources.more.sources.beir.path=a"] if len(overrides) > 1 else []),
    ]
    with ConfigSource() as source:
        with pytest.raises(UsageError, match=message):
            compose("train", ["stage=sft", "data=mixture", *overrides, *paths], source)
        given = ["stage=sft", "data=mixture", "data.sources.pydocs=null", "data.weights=null"]
        assert compose("train", [*given, "data.sources.beir.path=a"], source).config.data.weights is None
