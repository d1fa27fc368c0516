"""Which queries need reasoning: the margin of the direct ranking below which it pays, set by validation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from search_r3.errors import UsageError
from search_r3.evaluation.fusion import margins
from search_r3.evaluation.results import RUN, check_files, read_row, verified_scores
from search_r3.evaluation.trec import encoded_id, read_run
from search_r3.files import write_text

HEADLINE = "ndcg@10"
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


def write_gate(evaluation: str | Path, target: str | Path) -> Gate:
    """Sets the threshold of the mode `auto` on an evaluated collection, and writes it as a file of that mode.

    Args:
        evaluation: the folder of a benchmark in an `output_dir`, with its rows `direct` and `reasoning`.
        target: the file, `mode/auto.yaml` in the folder of `--config-dir`.

    Raises:
        UsageError: If a row is missing or damaged, or the two are not of one model and the same queries.
    """
    folder, target = Path(evaluation), Path(target)
    written = {mode: read_row(folder / mode) for mode in ("direct", "reasoning")}
    for mode, content in written.items():
        check_files(folder / mode, content)
    rows = {mode: content["row"] for mode, content in written.items()}
    scores = {mode: verified_scores(folder / mode, row, HEADLINE) for mode, row in rows.items()}
    is_one_model = len({row.get("weights_sha256") for row in rows.values()}) == 1
    if not is_one_model or scores["direct"].keys() != scores["reasoning"].keys():
        raise UsageError(f"{folder}: direct and reasoning are not of one model and the same queries")
    gaps = margins(read_run(folder / "direct" / RUN))
    name = encoded_id if rows["direct"].get("ids_encoded") else str
    queries = list(scores["direct"])
    gate = fitted_gate(
        [gaps.get(name(query), float("inf")) for query in queries],
        [scores["direct"][query] for query in queries],
        [scores["reasoning"][query] for query in queries],
    )
    means = {mode: row["metrics"][HEADLINE] for mode, row in rows.items()}
    write_text(
        target,
        f"# Set on {rows['direct']['benchmark']!r}, {len(queries)} queries, weights "
        f"{str(rows['direct'].get('weights_sha256'))[:12]}: nDCG@10 {gate.score:.4f} with "
        f"{100 * gate.reasoned_share:.0f} % reasoned; direct {means['direct']:.4f}, "
        f"reasoning {means['reasoning']:.4f}\n"
        f"_target_: search_r3.evaluation.modes.Auto\nthreshold: {gate.threshold!r}\n",
    )
    return gate
