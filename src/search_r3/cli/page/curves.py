"""The charts of a training run: which columns of its metrics.csv stand together, under which words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search_r3.cli.logged_columns import Column
from search_r3.cli.page.charts import Series, line_chart
from search_r3.cli.page.markup import Markup, element, section
from search_r3.cli.page.tables import folded, table


@dataclass(frozen=True)
class Panel:
    """A chart.

    Attributes:
        title: what is measured, with its unit.
        pattern: the columns in it, whole names; the group is the name of the curve.
        note: what a reader may not know.
    """

    title: str
    pattern: str
    note: str = ""


PANELS: Mapping[str, tuple[Panel, ...]] = {
    "Validation": (
        Panel("nDCG@10", r"val/(\w+)/ndcg@10"),
        Panel("recall@100", r"val/(\w+)/recall@100"),
        Panel("MRR@10", r"val/(\w+)/mrr@10"),
        Panel("Tokens of a reasoning", r"val/(reasoning_tokens)"),
        Panel("Reasonings that end with the embed token, share", r"val/(has_embed_token)"),
    ),
    "Reward": (
        Panel(
            "Reward",
            r"train/(reward|reward_best|reward_ranking)",
            "mean over rollouts; the best of each group",
        ),
        Panel("Spread in a group (standard deviation)", r"train/(reward_spread)"),
        Panel("Groups without spread, share", r"train/(groups_without_spread)", "they teach nothing"),
        Panel("Rank of the positive is first, share", r"train/(rank_first)"),
    ),
    "Loss": (
        Panel("Loss", r"train/(loss)"),
        Panel("Token loss (SFT)", r"train/(sft)", "nats per token of the supervised answer"),
        Panel("InfoNCE", r"train/info_nce_?(\w*)", "nats"),
        Panel("Triplet margin", r"train/triplet_?(\w*)"),
        Panel("Contrastive term", r"train/(contrastive)"),
        Panel("KL to the model before this stage", r"train/(kl)", "nats per token"),
    ),
    "Policy": (
        Panel("Entropy", r"train/(entropy)", "nats per token"),
        Panel("Tokens of a rollout", r"train/(n_tokens)"),
        Panel("Rollouts without the embed token, share", r"train/(missing_embed_token)"),
        Panel("Clipped tokens, share", r"train/(clip_share_low|clip_share_high)"),
        Panel("Ratio to the policy that sampled", r"train/(ratio)"),
    ),
    "Optimizer": (
        Panel("Learning rate", r"train/(learning_rate)"),
        Panel("Norm of the gradient", r"train/(grad_norm)"),
    ),
    "Live index": (
        Panel("Documents encoded and moved per step", r"train/index/(documents_encoded|documents_moved)"),
        Panel("Age of the served rows", r"train/index/(age_\w+)", "steps since a row was encoded"),
        Panel(
            "Drift of rows that were encoded again", r"train/index/(drift_\w+)", "1 - cosine of old and new"
        ),
        Panel(
            "Agreement with fresh rows, share of rollouts",
            r"train/index/audit/(identical_rewards|advantage_sign_agreement|stated_coverage)",
        ),
        Panel("Reward on served rows less that on fresh ones", r"train/index/audit/(mean_difference)"),
        Panel("Documents over the budget", r"train/index/(documents_over_budget)"),
    ),
    "Speed": (
        Panel("Pairs per second", r"throughput/(pairs_per_s)"),
        Panel("Tokens per second", r"throughput/(tokens_per_s)"),
        Panel("Seconds of a step by part", r"train/seconds/(\w+)"),
    ),
}
"""Charts by heading. A column of none of them stands in the table of all columns at the end."""

LEDGER: tuple[tuple[str, str], ...] = (
    ("documents encoded", "documents_encoded"),
    ("share of corpus", "share_of_corpus"),
    ("mean age", "age_mean"),
    ("age of 99 %", "age_p99"),
    ("largest age", "age_largest"),
    ("identical rewards", "audit/identical_rewards"),
    ("same side of the mean", "audit/advantage_sign_agreement"),
    ("Kendall's tau", "audit/kendall_tau"),
    ("mean difference", "audit/mean_difference"),
)
"""Columns of the staleness ledger, below train/index/."""


MOST_AUDITS = 40
"""Rows of the ledger."""
WHOLE = frozenset(f"train/index/{key}" for _, key in LEDGER)
"""Columns whose value at the very step of an audit is needed."""


def evenly(values: Sequence[int], most: int) -> list[int]:
    """At most so many of the values, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[place * (len(values) - 1) // (most - 1)] for place in range(most)]


def charts(columns: Mapping[str, Column], level: int) -> list[Markup | None]:
    """A section for each heading under which the run has logged something."""
    parts = []
    for heading, panels in PANELS.items():
        drawn = [_chart(panel, columns) for panel in panels]
        inner = [each for each in drawn if each is not None]
        ledger = _ledger(columns, level) if heading == "Live index" else None
        grid = element("div", *inner, class_="charts") if inner else None
        parts.append(section(heading, grid, ledger, level=level))
    return parts


def _chart(panel: Panel, columns: Mapping[str, Column]) -> Markup | None:
    series, n_not_finite = [], 0
    for name, column in columns.items():
        match = re.fullmatch(panel.pattern, name)
        if match:
            label = match[1] or panel.title
            series.append(Series(label.replace("_", " "), column.points))
            n_not_finite += column.n_not_finite
    lost = f"{n_not_finite} values are not finite and not drawn" if n_not_finite else ""
    return line_chart(panel.title, series, note="; ".join(filter(None, (panel.note, lost))))


def _ledger(columns: Mapping[str, Column], level: int) -> Markup | None:
    """A row per audit: what refreshing had cost by then, how old rows were, and whether rewards agreed."""
    found = {key: column.by_step for _, key in LEDGER if (column := columns.get(f"train/index/{key}"))}
    audits = sorted({step for key, values in found.items() if key.startswith("audit/") for step in values})
    if not audits:
        return None
    chosen = evenly(audits, MOST_AUDITS)
    rows = [[str(step), *(_shown(found.get(key, {}).get(step)) for _, key in LEDGER)] for step in chosen]
    left_out = f" {len(chosen)} of {len(audits)} audits are shown." if len(chosen) < len(audits) else ""
    names = ["step", *(name for name, _ in LEDGER)]
    return section(
        "Staleness ledger",
        table(names, rows, "staleness ledger", numbers=names),
        note="At each audit the same rollouts are rewarded on freshly encoded documents. Encoded documents "
        f"and ages are those of that step.{left_out}",
        level=level + 1,
    )


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def all_columns(columns: Mapping[str, Column]) -> Markup | None:
    """What every column began and ended at, folded away."""
    rows = []
    for name, column in sorted(columns.items()):
        points = column.points
        values = [value for _, value in points]
        ends = (
            [f"{value:.6g}" for value in (values[0], values[-1], min(values), max(values))]
            if values
            else [""] * 4
        )
        rows.append([name, str(column.n), *ends, str(column.n_not_finite or "")])
    names = ("column", "values", "first", "last", "lowest", "highest", "not finite")
    found = table(names, rows, "all columns of metrics.csv", numbers=names[1:])
    return None if found is None else folded(f"All {len(rows)} columns of metrics.csv", found)
