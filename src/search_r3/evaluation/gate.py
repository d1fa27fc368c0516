"""Which queries need reasoning: the margin of the direct ranking below which it pays, set by validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from search_r3.errors import UsageError
from search_r3.evaluation.fusion import margins
from search_r3.evaluation.metrics import HEADLINE
from search_r3.evaluation.results import RUN, check_files, read_row, verified_scores
from search_r3.evaluation.trec import encoded_id, read_run
from search_r3.files import write_text

ALWAYS = 2.0
"""No two cosines are further apart."""


@dataclass(frozen=True)
class Gate:
    """A threshold and what it does on the queries that it was set on.

    Attributes:
        threshold: of cosine between the first and the second document; reasoning below it.
        score: mean nDCG@10 of all queries, each ranked as the gate says.
        reasoned_share: of the queries.
    """

    threshold: float
    score: float
    reasoned_share: float


def fitted_gate(gaps: Sequence[float], direct: Sequence[float], reasoning: Sequence[float]) -> Gate:
    """The threshold of the best mean score; of equal ones that which reasons least.

    Every threshold that parts the queries otherwise is tried; it lies half-way between two margins.

    Args:
        gaps: of each query, how far the first document of its direct ranking is above the second.
        direct: its score without reasoning.
        reasoning: its score with reasoning.

    Raises:
        ValueError: If there is no query.

    >>> fitted_gate([0.1, 0.3], [0.0, 1.0], [1.0, 0.5])
    Gate(threshold=0.2, score=1.0, reasoned_share=0.5)
    """
    if not gaps:
        raise ValueError("a gate is set on at least one query")
    ordered = sorted(zip(gaps, direct, reasoning, strict=True))
    n_queries, total = len(ordered), sum(direct)
    best = Gate(0.0, total / n_queries, 0.0)
    for n_reasoned, (gap, before, after) in enumerate(ordered, start=1):
        total += after - before
        above = ordered[n_reasoned][0] if n_reasoned < n_queries else ALWAYS
        if gap >= above:
            continue  # equal margins are not parted, and where there is no second document none is unsure
        if total / n_queries > best.score + 1e-12:
            threshold = ALWAYS if n_reasoned == n_queries else (gap + min(above, ALWAYS)) / 2
            best = Gate(threshold, total / n_queries, n_reasoned / n_queries)
    return best


def trade_off(
    gaps: Sequence[float],
    direct: Sequence[float],
    reasoning: Sequence[float],
    shares: Sequence[float] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0),
) -> list[Gate]:
    """What thresholds give that have about these shares of the queries reason, the most unsure first.

    Queries of one margin are not parted, so that a share may be smaller than asked for; each threshold is
    there once. Arguments are those of `fitted_gate`.

    >>> [(gate.reasoned_share, gate.score) for gate in trade_off([0.1, 0.3], [0, 1], [1, 0.5], (0, 0.5, 1))]
    [(0.0, 0.5), (0.5, 1.0), (1.0, 0.75)]
    """
    found: dict[float, Gate] = {}
    ordered = sorted(gaps)
    for share in shares:
        n_reasoned = round(share * len(ordered))
        above = ordered[n_reasoned] if n_reasoned < len(ordered) else float("inf")
        below = ordered[n_reasoned - 1] if n_reasoned else 0.0
        threshold = 0.0 if n_reasoned == 0 else min((below + above) / 2, ALWAYS)
        found[threshold] = scored_gate(threshold, gaps, direct, reasoning)
    return list(found.values())


def scored_gate(
    threshold: float, gaps: Sequence[float], direct: Sequence[float], reasoning: Sequence[float]
) -> Gate:
    """What a threshold gives on queries; the other arguments are those of `fitted_gate`."""
    reasons = [gap < threshold for gap in gaps]
    scores = [
        after if is_unsure else before
        for is_unsure, before, after in zip(reasons, direct, reasoning, strict=True)
    ]
    return Gate(threshold, sum(scores) / len(scores), sum(reasons) / len(reasons))


def held_out_score(
    gaps: Sequence[float], direct: Sequence[float], reasoning: Sequence[float], n_parts: int = 5
) -> float | None:
    """Mean score of queries by a threshold that was set on the others, in `n_parts` turns.

    The score of a fitted threshold on its own queries is flattered by the choice; this one is not. None where
    there are fewer queries than turns. Arguments are those of `fitted_gate`.
    """
    columns = (gaps, direct, reasoning)
    if len(gaps) < n_parts:
        return None
    total = 0.0
    for part in range(n_parts):
        others = [[value for row, value in enumerate(each) if row % n_parts != part] for each in columns]
        own = [list(each[part::n_parts]) for each in columns]
        gate = scored_gate(fitted_gate(*others).threshold, *own)
        total += gate.score * len(own[0])
    return total / len(gaps)


def write_gate(evaluation: str | Path, target: str | Path) -> Gate:
    """Sets the threshold of the mode `auto` on an evaluated collection, and writes it as a file of that mode.

    Its comments say what it was set on, how it scores on queries that it was not set on, and what other
    thresholds would give.

    Args:
        evaluation: the folder of a benchmark in an `output_dir`, with its rows `direct` and `reasoning`.
        target: the file, `mode/auto.yaml` in the folder of `--config-dir`.

    Raises:
        UsageError: If a row is missing or damaged, or the two are not of one model and the same collection.
    """
    folder, target = Path(evaluation), Path(target)
    written = {mode: read_row(folder / mode) for mode in ("direct", "reasoning")}
    for mode, content in written.items():
        check_files(folder / mode, content)
    rows = {mode: content["row"] for mode, content in written.items()}
    scores = {mode: verified_scores(folder / mode, row, HEADLINE) for mode, row in rows.items()}
    keys = [[content["key"].get(name) for name in ("benchmark", "weights")] for content in written.values()]
    if keys[0] != keys[1] or scores["direct"].keys() != scores["reasoning"].keys():
        raise UsageError(
            f"{folder}: direct and reasoning are not of one model and the same documents, queries and "
            "judgements; evaluate both in one command"
        )
    gaps = margins(read_run(folder / "direct" / RUN))
    name = encoded_id if rows["direct"].get("ids_encoded") else str
    queries = list(scores["direct"])
    columns = (
        [gaps.get(name(query), float("inf")) for query in queries],
        [scores["direct"][query] for query in queries],
        [scores["reasoning"][query] for query in queries],
    )
    gate, elsewhere = fitted_gate(*columns), held_out_score(*columns)
    means = {mode: row["metrics"][HEADLINE] for mode, row in rows.items()}
    write_text(
        target,
        f"# Set on {rows['direct']['benchmark']!r}, {len(queries)} queries, weights "
        f"{str(rows['direct'].get('weights_sha256'))[:12]}: nDCG@10 {gate.score:.4f} with "
        f"{100 * gate.reasoned_share:.0f} % reasoned; direct {means['direct']:.4f}, "
        f"reasoning {means['reasoning']:.4f}\n"
        + (
            ""
            if elsewhere is None
            else f"# On queries that it was not set on (five turns): {elsewhere:.4f}\n"
        )
        + f"# nDCG@10 and tokens per query by the share that reasons:\n{_lines(trade_off(*columns), rows)}"
        f"_target_: search_r3.evaluation.modes.Auto\nthreshold: {gate.threshold!r}\n",
    )
    return gate


def _lines(gates: Sequence[Gate], rows: Mapping[str, Mapping]) -> str:
    """Comments of a YAML file, one for each threshold; an unsure query is paid twice."""
    price = {mode: row.get("tokens_per_query", 0.0) for mode, row in rows.items()}
    return "".join(
        f"#   {100 * gate.reasoned_share:3.0f} %  {gate.score:.4f}  "
        f"{price['direct'] + gate.reasoned_share * price['reasoning']:6.1f}  threshold {gate.threshold:.4g}\n"
        for gate in gates
    )
