"""The queries of an evaluation that came out worst and best, with what was written and where they rank."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from search_r3.cli.page.markup import Markup, element, joined, section, text_of
from search_r3.cli.page.run_page import rank_change
from search_r3.evaluation.report import mode_label
from search_r3.evaluation.results import QRELS, RUN, check_files, read_row, verified_texts
from search_r3.evaluation.trec import encoded_id, read_qrels, read_run

N_SHOWN = 10
"""Queries of each kind."""

Scores = Mapping[str, float]


def query_parts(rows: Sequence[Mapping], scores: Sequence[Scores | None], level: int) -> Markup:
    """The worst and the best queries of each benchmark, in the row that reads most: see `main_row`."""
    known = [(row, found) for row, found in zip(rows, scores, strict=True) if found is not None]
    parts = []
    for benchmark in dict.fromkeys(row["benchmark"] for row, _ in known):
        its = [(row, found) for row, found in known if row["benchmark"] == benchmark]
        place = main_row([row for row, _ in its])
        parts.append(_benchmark(its[place], _against(its, place), level))
    return joined(parts)


def main_row(rows: Sequence[Mapping]) -> int:
    """Place of the row whose queries are shown: the last one that reasons, else of a model, else the last."""
    for is_wanted in (
        lambda row: row["mode"] == "reasoning",
        lambda row: row.get("weights_sha256") is not None,
        lambda row: True,
    ):
        places = [place for place, row in enumerate(rows) if is_wanted(row)]
        if places:
            return places[-1]
    raise ValueError("there is no row")


def _against(rows: Sequence[tuple[Mapping, Scores]], place: int) -> tuple[Mapping, Scores] | None:
    """The row that ranks are compared with: the same model's direct one, else BM25, on the same queries."""
    main, scores = rows[place]
    others = [(row, found) for row, found in rows if row is not main and found.keys() == scores.keys()]
    for mode, is_same_model in (("direct", True), ("bm25", False)):
        for row, found in others:
            if row["mode"] == mode and (not is_same_model or row["model"] == main["model"]):
                return row, found
    return None


def _benchmark(
    main: tuple[Mapping, Scores], other: tuple[Mapping, Scores] | None, level: int
) -> Markup | None:
    row, scores = main
    queries, written = verified_texts(Path(row["folder"]), row)
    ranks = first_relevant(row)
    before = None if other is None else (other[1], first_relevant(other[0]))
    names = (mode_label(other[0]) if other else "", mode_label(row))

    def hardness(query: str) -> tuple[float, float, str]:
        """First the score; of equal ones those come first that the other row made most of."""
        return scores[query], -(before[0][query] if before else 0.0), query

    def articles(chosen: Sequence[str]) -> Markup:
        return element(
            "div",
            *(
                _query(query, queries.get(query, ""), written.get(query), scores[query], ranks, before, names)
                for query in chosen
            ),
            class_="queries filtered",
        )

    ordered = sorted(scores, key=hardness)
    n = min(N_SHOWN, (len(ordered) + 1) // 2)
    best = list(reversed(ordered[len(ordered) - min(n, len(ordered) - n) :]))
    against = f", in {names[0]} and in {names[1]}" if other else ""
    note = (
        f"{row['benchmark']}, {mode_label(row)}, {len(scores):,} queries by nDCG@10. Ranks are those of the "
        f"first relevant document{against}."
    )
    return joined(
        section("Worst queries", articles(ordered[:n]), note=note, level=level),
        section("Best queries", articles(best), note=note, level=level) if best else None,
    )


def _query(
    query: str,
    text: str,
    written: str | None,
    score: float,
    ranks: Mapping[str, int | str],
    before: tuple[Scores, Mapping[str, int | str]] | None,
    names: tuple[str, str],
) -> Markup:
    if before is None:
        rank = joined(f"nDCG@10 {score:.3f}, rank {ranks[query]}")
    else:
        rank = joined(
            f"nDCG@10 {before[0][query]:.3f} → {score:.3f}, rank in {names[0]} and {names[1]}: ",
            rank_change(before[1][query], ranks[query]),
        )
    return element(
        "article",
        element("p", text_of(text), class_="asked"),
        element("p", rank, class_="ranks"),
        element("p", text_of(written), class_="wrote") if written else None,
        element("p", query, class_="id"),
        class_="query",
    )


def first_relevant(row: Mapping) -> dict[str, int | str]:
    """Rank of the first relevant document of each query, from its files; text where none was retrieved.

    Raises:
        RecordError: If a file of the row is missing or damaged.
    """
    folder = Path(row["folder"])
    check_files(folder, read_row(folder))
    run, qrels = read_run(folder / RUN), read_qrels(folder / QRELS)
    queries, _ = verified_texts(folder, row)
    ranks: dict[str, int | str] = {}
    for query in queries:
        name = encoded_id(query) if row.get("ids_encoded") else query
        grades, found = qrels.get(name, {}), run.get(name, {})
        hits = (place for place, document in enumerate(found, start=1) if grades.get(document, 0) > 0)
        ranks[query] = next(hits, f"beyond {len(found)}" if found else "none")
    return ranks
