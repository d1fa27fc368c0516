"""The queries of an evaluation that came out worst and best, with what was written and where they rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from search_r3.cli.page.markup import Markup, element, joined, section, text_of
from search_r3.cli.page.run_page import rank_change
from search_r3.evaluation.results import QRELS, RUN, check_files, is_one_collection, read_row, verified_texts
from search_r3.evaluation.trec import encoded_id, read_qrels, read_run

N_SHOWN = 10
"""Queries of each kind."""

Scores = Mapping[str, float]


def query_parts(
    rows: Sequence[Mapping],
    scores: Sequence[Scores | None],
    names: Mapping[str, str],
    labels: Mapping[str, str],
    level: int,
) -> Markup:
    """The worst and the best queries of each benchmark, in the row that reads most: see `main_row`.

    Args:
        rows: of evaluations.
        scores: nDCG@10 by query id of each; rows without are left out.
        names: of the models by their folder.
        labels: of the modes by the folder of a row.
        level: of the headings.
    """
    known = [(row, found) for row, found in zip(rows, scores, strict=True) if found is not None]
    parts = []
    for benchmark in dict.fromkeys(row["benchmark"] for row, _ in known):
        its = [(row, found) for row, found in known if row["benchmark"] == benchmark]
        place = main_row([row for row, _ in its])
        parts.append(_benchmark(its[place], _against(its, place), _earlier(its, place), names, labels, level))
    return joined(parts)


@dataclass(frozen=True)
class Wrote:
    """What was written about each query in a row, and where its first relevant document stood then."""

    name: str
    texts: Mapping[str, str]
    ranks: Mapping[str, int | str]


def _earlier(rows: Sequence[tuple[Mapping, Scores]], place: int) -> Mapping | None:
    """The last row before this one in which another model reasons about the same queries."""
    main, scores = rows[place]
    found = [
        row
        for row, its in rows[:place]
        if row["mode"] == main["mode"] == "reasoning"
        and row["model"] != main["model"]
        and its.keys() == scores.keys()
        and is_one_collection(row, main)
    ]
    return found[-1] if found else None


def main_row(rows: Sequence[Mapping]) -> int:
    """Place of the row whose queries are shown: the last one that reasons, else of a model, else the last."""
    for is_wanted in (
        lambda row: row["mode"] == "reasoning" and not row.get("mode_settings"),
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
    others = [
        (row, found)
        for row, found in rows
        if row is not main and found.keys() == scores.keys() and is_one_collection(row, main)
    ]
    for mode, is_same_model in (("direct", True), ("bm25", False)):
        for row, found in others:
            if row["mode"] == mode and (not is_same_model or row["model"] == main["model"]):
                return row, found
    return None


def _benchmark(
    main: tuple[Mapping, Scores],
    other: tuple[Mapping, Scores] | None,
    earlier: Mapping | None,
    models: Mapping[str, str],
    labels: Mapping[str, str],
    level: int,
) -> Markup | None:
    row, scores = main
    queries, texts = verified_texts(Path(row["folder"]), row)
    ranks = first_relevant(row)
    wrote = [Wrote(models.get(row["model"], row["model"]), texts, ranks)]
    if earlier is not None:
        before_it = verified_texts(Path(earlier["folder"]), earlier)[1]
        name = models.get(earlier["model"], earlier["model"])
        wrote.insert(0, Wrote(name, before_it, first_relevant(earlier)))
    before = None if other is None else (other[1], first_relevant(other[0]))
    label = labels[row["folder"]]
    names = (labels[other[0]["folder"]] if other else "", label)

    def hardness(query: str) -> tuple[float, float, str]:
        """First the score; of equal ones those come first that the other row made most of."""
        return scores[query], -(before[0][query] if before else 0.0), query

    def articles(chosen: Sequence[str]) -> Markup:
        return element(
            "div",
            *(_query(query, queries.get(query, ""), wrote, scores[query], before, names) for query in chosen),
            class_="queries filtered",
        )

    ordered = sorted(scores, key=hardness)
    n = min(N_SHOWN, (len(ordered) + 1) // 2)
    best = list(reversed(ordered[len(ordered) - min(n, len(ordered) - n) :]))
    against = f", in {names[0]} and in {names[1]}" if other else ""
    note = (
        f"{row['benchmark']}, {label}, {len(scores):,} queries by nDCG@10. Ranks are those of the "
        f"first relevant document{against}."
    )
    return joined(
        section("Worst queries", articles(ordered[:n]), note=note, level=level),
        section("Best queries", articles(best), note=note, level=level) if best else None,
    )


def _query(
    query: str,
    text: str,
    wrote: Sequence[Wrote],
    score: float,
    before: tuple[Scores, Mapping[str, int | str]] | None,
    names: tuple[str, str],
) -> Markup:
    rank = wrote[-1].ranks[query]
    if before is None:
        told = joined(f"nDCG@10 {score:.3f}, rank {rank}")
    else:
        told = joined(
            f"nDCG@10 {before[0][query]:.3f} → {score:.3f}, rank in {names[0]} and {names[1]}: ",
            rank_change(before[1][query], rank),
        )
    said = [(each.name, each.ranks[query], each.texts.get(query)) for each in wrote]
    has_names = len(said) > 1
    return element(
        "article",
        element("p", text_of(text), class_="asked"),
        element("p", told, class_="ranks"),
        *(
            element("p", _writer(name, place) if has_names else None, text_of(words), class_="wrote")
            for name, place, words in said
            if words
        ),
        element("p", query, class_="id"),
        class_="query",
    )


def _writer(name: str, rank: int | str) -> Markup:
    return element("span", f"{name}, rank {rank}: ", class_="values")


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
