"""The page of evaluations: tables, pictures, and what was written about each query."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import build_embedder
from test_compare import ORIGIN, evaluated

from search_r3.cli.provenance import write_metrics
from search_r3.data.types import Benchmark, Corpus
from search_r3.errors import UsageError
from search_r3.evaluation.gate import write_gate
from search_r3.evaluation.modes import Auto, FusedReasoning, Reasoning
from search_r3.evaluation.places import rows_on_disk
from search_r3.evaluation.rankers import Model
from search_r3.models.folder import load_embedder, save_embedder
from search_r3.report import main
from tests.html_pages import page_of

WORDS = ("add", "count", "drop", "each", "find", "give", "hold", "into", "join", "keep", "list", "map")


def functions(n: int = 12) -> Benchmark:
    """Queries whose document is among those with one of their words."""
    texts = [f"def {WORDS[i]}_{WORDS[(i * 5 + 1) % n]}(x): return x" for i in range(n)]
    queries = {f"q {i}": f"{WORDS[i]} <b>{WORDS[(i * 5 + 1) % n]}" for i in range(n)}
    return Benchmark(
        "functions",
        Corpus([f"d{i}" for i in range(n)], texts),
        queries,
        {f"q {i}": {f"d{i}": 1} for i in range(n)},
    )


@pytest.fixture(scope="module")
def evaluation(nano_folder, tmp_path_factory) -> Path:
    """Four modes on one benchmark; read only."""
    model = Model("nano", load_embedder(nano_folder))
    folder = tmp_path_factory.mktemp("evaluation") / "out"
    return evaluated(folder, model, [functions()], modes=("bm25", "direct", "reasoning", "hybrid"))


def test_the_rows_of_an_evaluation_are_those_of_its_file(evaluation, tmp_path):
    page = page_of(tmp_path, evaluation)

    rows = json.loads((evaluation / "metrics.json").read_text())["rows"]
    shown = page.section("Results").rows()
    assert [each["mode"] for each in shown] == ["bm25", "direct", "reasoning", "hybrid"]
    for row, its in zip(rows, shown, strict=True):
        for heading, name in (("nDCG@10", "ndcg@10"), ("recall@100", "recall@100"), ("MRR@10", "mrr@10")):
            assert float(its[heading]) == pytest.approx(row["metrics"][name], abs=5e-5)
        low, high = row["ci95"]["ndcg@10"]
        assert its["95 %"] == f"{low:.3f} to {high:.3f}"
        assert float(its["written"]) == pytest.approx(row["tokens_per_query"], abs=0.05)
        assert (its["queries"], its["documents"]) == ("12", "12")


def test_the_picture_has_a_point_for_each_row_at_its_price(evaluation, tmp_path):
    page = page_of(tmp_path, evaluation)

    rows = json.loads((evaluation / "metrics.json").read_text())["rows"]
    (picture,) = page.section("Quality against price").every("svg", "chart")
    circles = {each.text.split(":")[0]: each.attributes for each in picture.every("circle")}
    drawn = [
        row
        for row in rows
        if row["metrics"]["ndcg@10"] >= 0.5 * max(each["metrics"]["ndcg@10"] for each in rows)
    ]
    assert len(drawn) >= 2
    assert circles.keys() == {row["mode"] for row in drawn}
    places = [float(circles[row["mode"]]["cx"].rstrip("%")) for row in drawn]
    prices = [np.log1p(row["tokens_per_query"]) for row in drawn]
    slope, offset = np.polyfit(prices, places, 1)
    assert slope * np.array(prices) + offset == pytest.approx(places, abs=0.02)
    heights = [float(circles[row["mode"]]["cy"]) for row in drawn]
    assert np.argsort(heights).tolist() == np.argsort([-row["metrics"]["ndcg@10"] for row in drawn]).tolist()


def test_queries_are_shown_with_their_reasoning_and_their_ranks(evaluation, tmp_path):
    page = page_of(tmp_path, evaluation)

    place = evaluation / "functions" / "reasoning"
    lines = [json.loads(line) for line in (place / "per_query.jsonl").open()]
    written = {
        row["query_id"]: row["reasoning"] for row in map(json.loads, (place / "reasoning.jsonl").open())
    }
    worst, best = page.section("Worst queries"), page.section("Best queries")
    ids = [[each.text for each in part.every("p", "id")] for part in (worst, best)]
    assert len(ids[0]) + len(ids[1]) == 12
    scores = {line["query_id"]: line["ndcg@10"] for line in lines}
    assert max(scores[name] for name in ids[0]) <= min(scores[name] for name in ids[1])
    assert [scores[name] for name in ids[0]] == sorted(scores[name] for name in ids[0])
    for article in [*worst.every("article"), *best.every("article")]:
        (name,) = (each.text for each in article.every("p", "id"))
        (ranks,) = (each.text for each in article.every("p", "ranks"))
        expected = [rank_of(evaluation / "functions" / mode, name) for mode in ("direct", "reasoning")]
        assert ranks.endswith(f"rank in direct and reasoning: {expected[0]} → {expected[1]}")
        assert f"→ {scores[name]:.3f}," in ranks
        said = [each.text for each in article.every("p", "wrote")]
        assert said == ([written[name]] if written[name] else [])
        assert functions().queries[name] in article.text


def rank_of(folder: Path, query: str) -> str:
    """The rank of a query's document in run.trec, whose ids have %20 for a blank."""
    for line in (folder / "run.trec").read_text().splitlines():
        name, _, document, rank, _, _ = line.split()
        if name.replace("%20", " ") == query and document == f"d{query.split()[1]}":
            return rank
    return "beyond"


def test_differences_are_those_that_the_command_prints(evaluation, tmp_path, capsys):
    shown = page_of(tmp_path, evaluation).section("Differences").rows()

    printed = capsys.readouterr().out
    assert [(each["this"], each["less"]) for each in shown] == [
        ("reasoning", name) for name in ("bm25", "direct", "hybrid")
    ]
    for each in shown:
        low, high = (float(end) for end in each["95 %"].split(" to "))
        assert f"{float(each['difference']):+.3f}" in printed
        assert low <= float(each["difference"]) <= high
        assert float(each["p"]) <= float(each["p (Holm)"]) <= 1


def test_rows_of_two_evaluations_that_are_called_alike_have_the_name_of_theirs(evaluation, tmp_path):
    other = shutil.copytree(evaluation, tmp_path / "other")

    page = page_of(tmp_path, evaluation, other)

    modes = [each["mode"] for each in page.section("Results").rows()]
    assert modes == [
        f"{mode} ({name})"
        for name in (evaluation.name, "other")
        for mode in ("bm25", "direct", "reasoning", "hybrid")
    ]


def test_a_table_that_was_copied_without_its_folders_is_shown_alone(evaluation, tmp_path):
    shutil.copy(evaluation / "metrics.json", tmp_path / "metrics.json")

    page = page_of(tmp_path, tmp_path / "metrics.json")

    assert page.headings[1:] == ["Results", "Quality against price"]


def test_a_file_of_an_evaluation_that_was_changed_is_refused(evaluation, tmp_path):
    folder = shutil.copytree(evaluation, tmp_path / "copied")
    file = folder / "functions" / "reasoning" / "run.trec"
    file.write_text(file.read_text().replace("d1 ", "d2 ", 1))

    with pytest.raises(UsageError, match=r"run\.trec: is damaged or edited"):
        page_of(tmp_path, folder)


def test_a_dial_of_written_tokens_is_a_row_and_a_point_for_each_of_its_places(nano_folder, tmp_path):
    model = Model("nano", load_embedder(nano_folder))
    modes = [
        "bm25",
        "direct",
        Reasoning(limit=1),
        Reasoning(limit=3),
        FusedReasoning(n=2),
        Auto(threshold=2.0),
    ]
    folder = evaluated(tmp_path / "out", model, [functions()], modes=modes)
    rows = json.loads((folder / "metrics.json").read_text())["rows"]
    encoder, queries = model.embedder.encoder, list(functions().queries.values())

    def read(prompts: list[list[int]]) -> float:
        return sum(map(len, prompts)) / len(queries)

    direct, prompt = read(encoder.queries(queries)) - 1, read(encoder.reasoning_prompts(queries))
    expected = [0, direct, prompt, prompt, 2 * prompt, direct + prompt]
    assert [row["tokens_read_per_query"] for row in rows] == pytest.approx(expected, rel=1e-12)
    written = [row["tokens_per_query"] for row in rows]
    assert written[:2] == [0, 1]
    assert written[2] <= 1 + 1  # a token of text, and the embed token
    assert written[2] < written[3] <= 3 + 1

    page = page_of(tmp_path, folder)

    names = [
        "bm25",
        "direct",
        "reasoning up to 1",
        "reasoning up to 3",
        "fused-reasoning of 2",
        "auto below 2.0",
    ]
    shown = page.section("Results").rows()
    assert [each["mode"] for each in shown] == names
    assert [float(each["read"]) for each in shown] == pytest.approx(expected, abs=0.05)
    drawn = {each.text.split(":")[0] for each in page.section("Quality against price").every("circle")}
    best = max(row["metrics"]["ndcg@10"] for row in rows)
    high = {name for name, row in zip(names, rows, strict=True) if row["metrics"]["ndcg@10"] >= 0.5 * best}
    assert drawn == high


def test_what_two_models_wrote_about_a_query_stands_together(evaluation, tmp_path):
    folder = save_embedder(build_embedder(seed=5), tmp_path / "models" / "second", {})
    model = Model(str(folder), load_embedder(folder))
    other = evaluated(tmp_path / "out", model, [functions()], modes=["reasoning", Reasoning(limit=2)])

    page = page_of(tmp_path, evaluation, other)

    first = evaluation / "functions" / "reasoning" / "reasoning.jsonl"
    second = other / "functions" / "reasoning" / "reasoning.jsonl"
    texts = [
        {row["query_id"]: row["reasoning"] for row in map(json.loads, file.open())}
        for file in (first, second)
    ]
    assert texts[0] != texts[1]
    for article in page.section("Worst queries").every("article"):
        (name,) = (each.text for each in article.every("p", "id"))
        ranks = [rank_of(file.parent, name) for file in (first, second)]
        said = [
            f"{model}, rank {rank}: {its[name]}"
            for model, rank, its in zip(("nano", "second"), ranks, texts, strict=True)
        ]
        expected = [words for words, its in zip(said, texts, strict=True) if its[name]]
        assert [each.text for each in article.every("p", "wrote")] == expected


def test_rows_of_documents_that_changed_between_two_evaluations_are_not_compared(
    nano_folder, tmp_path, caplog
):
    """Of the same name, with the same queries and judgements, in the folder of the same evaluation."""
    model, before = Model("nano", load_embedder(nano_folder)), functions()
    corpus = Corpus([*before.corpus.ids, "new"], [*before.corpus.texts, "def more(): pass"])
    out = tmp_path / "out"
    evaluated(out, model, [before], modes=("direct",))
    evaluated(out, model, [replace(before, corpus=corpus)], modes=("reasoning",))
    write_metrics(out / "metrics.json", rows_on_disk(out), ORIGIN)

    page = page_of(tmp_path, out)

    assert f"{out}/functions/direct, which has other documents or judgements" in caplog.text
    assert "p (Holm)" not in page.text
    assert "rank in direct" not in page.text
    assert len(page.section("Results").rows()) == 2
    assert main(["--runs", str(out)]) == 0
    assert "which has other queries or documents in run 1" in caplog.text
    with pytest.raises(UsageError, match="not of one model and the same documents, queries and judgements"):
        write_gate(out / "functions", tmp_path / "mode" / "auto.yaml")
