"""What a run under a refresh rule cost and how well its rewards agreed: rows, tables and pictures.

Everything is read from what the run logged (csv/metrics.csv), nothing is measured here. The first step is
left out of costs: its rows are those that the run started from, and the first step of a process is slow.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from search_r3.evaluation.colours import COLOURS
from search_r3.files import removal

MODEL_PARTS = ("sampling", "update", "encode")
"""Seconds of the model's own arithmetic: rollouts, forward and backward, documents."""

INDEX_PARTS = ("refresh", "search", "scoring", "table", "rest")
"""All other seconds: `refresh` without the encoder is rule, rows and ledger; `rest` is data and logging."""

AGREEMENT = ("identical_rewards", "mean_abs_difference", "advantage_sign_agreement")


@dataclass(frozen=True)
class Measured:
    """A run under one rule.

    Attributes:
        row: of metrics.json: what `row_of` says.
        seconds: per step by part, audits left out; those of `MODEL_PARTS` and `INDEX_PARTS`.
        n_steps: of the run.
        n_audits: that the agreement is a mean of.
        median_documents: encoded at a step; the mean in `row` has the steps before a rule is calibrated too.
        audit_documents: encoded for audits alone, per step; no cost of any rule but `certified`.
        coverage: for `certified` the interval of the observed coverage, else None.
    """

    row: dict[str, str | float | None]
    seconds: dict[str, float]
    n_steps: int
    n_audits: int
    median_documents: float
    audit_documents: float
    coverage: tuple[float, float] | None

    @property
    def other_share(self) -> float:
        """Share of a step that is not the model's own arithmetic."""
        return sum(self.seconds[part] for part in INDEX_PARTS) / sum(self.seconds.values())


def logged_steps(run: Path) -> tuple[list[dict[str, float]], float | None]:
    """What a run logged.

    Args:
        run: folder of a finished run of stage=rl; one that was resumed has several files.

    Returns:
        A dictionary for each step from 0 on, without `train/`; and the last `val/reasoning/ndcg@10`, None
        where nothing was validated.

    Raises:
        ValueError: If there are fewer than two steps, or one is missing, as after a kill -9.
    """
    by_step: dict[int, dict[str, float]] = {}
    ndcg = None
    parts = sorted((run / "csv").glob("metrics_before_*.csv"), key=lambda path: path.stat().st_mtime)
    for path in [*parts, run / "csv" / "metrics.csv"]:
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                values = {name: float(value) for name, value in line.items() if value}
                ndcg = values.get("val/reasoning/ndcg@10", ndcg)
                if "train/seconds/sampling" in values:
                    by_step[int(values["step"])] = {k.removeprefix("train/"): v for k, v in values.items()}
    if len(by_step) < 2 or sorted(by_step) != list(range(len(by_step))):
        raise ValueError(
            f"{run}: its log has {len(by_step)} steps, {sorted(by_step)[:1]} to {sorted(by_step)[-1:]}, and "
            f"should have all of at least two; run it anew: {removal(run)}"
        )
    return [by_step[step] for step in range(len(by_step))], ndcg


def measured(rule: str, run: Path, batch_size: int) -> Measured:
    """Reads a run.

    Args:
        rule: its name in the table.
        run: its folder.
        batch_size: `B`, queries per step.

    Raises:
        ValueError: If its log is not whole, or was made without `stage.callbacks.throughput` at every step.
    """
    steps, ndcg = logged_steps(run)
    later = steps[1:]
    timed = [step for step in later if "throughput/pairs_per_s" in step]  # not the first of a process
    if not timed:
        raise ValueError(f"{run}: seconds per step were not logged; set stage.callbacks.throughput as here")
    audits = scheduled_audits(steps)
    seconds = [_seconds(step, batch_size) for step in timed]
    mean_seconds = {part: _mean([each[part] for each in seconds]) for part in seconds[0]}
    documents = [step["index/documents_encoded"] for step in later]
    stated, observed, interval = coverage(steps)
    row = row_of(rule, later, audits, sum(mean_seconds.values())) | {"ndcg@10": ndcg}
    if stated is not None:
        row |= {"stated_coverage": stated, "observed_coverage": observed}
    return Measured(
        row=row,
        seconds=mean_seconds,
        n_steps=len(steps),
        n_audits=len(audits),
        median_documents=sorted(documents)[len(documents) // 2],
        audit_documents=sum(step["index/audit/documents_encoded"] for step in audited(later)) / len(later),
        coverage=interval,
    )


def row_of(
    rule: str,
    steps: Sequence[Mapping[str, float]],
    audits: Sequence[Mapping[str, float]],
    seconds_per_step: float,
) -> dict[str, str | float | None]:
    """Cost over some steps and agreement over some audits, from the ledger's lines under `index/`.

    Returns:
        `rule, docs_per_step, share_of_corpus, seconds_per_step, identical_rewards, mean_abs_difference,
        kendall_tau, advantage_sign_agreement`; None where no audit says it. All audits have equally many
        rollouts; tau is weighted by the groups that have one.
    """
    found = {name: [audit[f"index/audit/{name}"] for audit in audits] for name in AGREEMENT}
    with_tau = [audit for audit in audits if "index/audit/kendall_tau" in audit]
    groups = sum(audit["index/audit/groups_compared"] for audit in with_tau)
    tau = sum(audit["index/audit/kendall_tau"] * audit["index/audit/groups_compared"] for audit in with_tau)
    return {
        "rule": rule,
        "docs_per_step": _mean([step["index/documents_encoded"] for step in steps]),
        "share_of_corpus": _mean([step["index/share_of_corpus"] for step in steps]),
        "seconds_per_step": seconds_per_step,
        "identical_rewards": _mean(found["identical_rewards"]),
        "mean_abs_difference": _mean(found["mean_abs_difference"]),
        "kendall_tau": tau / groups if groups else None,
        "advantage_sign_agreement": _mean(found["advantage_sign_agreement"]),
    }


def scheduled_audits(steps: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    """The steps that were audited, but for those at which a rule without a band yet encoded everything."""
    return [step for step in audited(steps) if not math.isinf(step.get("index/band", 0.0))]


def audited(steps: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    """The steps that were compared with a full re-encode."""
    return [step for step in steps if "index/audit/seconds" in step]


def coverage(
    steps: Sequence[Mapping[str, float]],
) -> tuple[float | None, float | None, tuple[float, float] | None]:
    """Stated coverage, the observed one and its 95 % interval; None for a rule that states none.

    The ledger adds up over the audits of a calibrated rule; without one, nothing was observed.
    """
    stating = [step for step in audited(steps) if "index/audit/stated_coverage" in step]
    if not stating:
        return None, None, None
    last = {name.removeprefix("index/audit/"): value for name, value in stating[-1].items()}
    if "observed_coverage" not in last:
        return last["stated_coverage"], None, None
    interval = last["observed_coverage_low"], last["observed_coverage_high"]
    return last["stated_coverage"], last["observed_coverage"], interval


def _seconds(step: Mapping[str, float], batch_size: int) -> dict[str, float]:
    """Seconds of a step by part; the audit is left out."""
    logged = {name.removeprefix("seconds/"): v for name, v in step.items() if name.startswith("seconds/")}
    whole = batch_size / step["throughput/pairs_per_s"]
    rest = max(whole - sum(logged.values()), 0.0)
    encode = step["index/encode_seconds"]
    found = logged | {"refresh": max(logged["refresh"] - encode, 0.0), "encode": encode, "rest": rest}
    return {part: found[part] for part in (*MODEL_PARTS, *INDEX_PARTS)}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


# ---- for readers


def print_tables(runs: Sequence[Measured], n_documents: int) -> None:
    """Agreement against cost, and seconds by part."""
    print_agreement([run.row for run in runs], n_documents)
    counts = {
        str(run.row["rule"]): {
            "not the model": f"{run.other_share:.1%}",
            "median documents": f"{run.median_documents:,.0f}",
            "audit documents": f"{run.audit_documents:,.0f}",
        }
        for run in runs
    }
    print_seconds({str(run.row["rule"]): run.seconds for run in runs}, counts)
    for run in runs:
        if run.coverage is not None:
            low, high = run.coverage
            Console(width=150).print(
                f"{run.row['rule']}: stated coverage {run.row['stated_coverage']:.3f}, observed "
                f"{run.row['observed_coverage']:.3f} (95 % interval {low:.3f} to {high:.3f}, as of "
                "independent rollouts)"
            )


def print_agreement(rows: Sequence[Mapping], n_documents: int) -> None:
    """A line per rule: what it encodes, and how its rewards agree with those of a full re-encode."""
    table = Table(title=f"agreement with a full re-encode of {n_documents:,} documents")
    table.add_column("rule")
    names = ("docs/step", "share", "s/step", "identical", "mean |diff|", "tau", "sign", "nDCG@10")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["rule"],
            f"{row['docs_per_step']:,.0f}",
            f"{row['share_of_corpus']:.3%}",
            _cell(row.get("seconds_per_step"), 2),
            _cell(row["identical_rewards"], 4),
            _cell(row["mean_abs_difference"], 6),
            _cell(row["kendall_tau"], 4),
            _cell(row["advantage_sign_agreement"], 4),
            _cell(row.get("ndcg@10"), 4),
        )
    Console(width=150).print(table)


def print_seconds(seconds: Mapping[str, Mapping[str, float]], more: Mapping[str, Mapping[str, str]]) -> None:
    """Seconds per step by rule and part, and further columns by rule."""
    first = next(iter(seconds))
    table = Table(title="seconds per step by part, audits left out")
    table.add_column("rule")
    for name in (*seconds[first], *more[first]):
        table.add_column(name, justify="right")
    for rule, parts in seconds.items():
        table.add_row(rule, *(f"{value:.3f}" for value in parts.values()), *more[rule].values())
    Console(width=150).print(table)


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def write_picture(
    rows: Sequence[Mapping], seconds: Mapping[str, Mapping[str, float]], path: Path, title: str
) -> Path:
    """Agreement against the share of the corpus that is encoded per step, and seconds by part, as PNG.

    Args:
        rows: a row per rule, as in metrics.json.
        seconds: rule to part to seconds; the same parts for all.
        path: the file.
        title: above both.

    Returns:
        The file.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    known = [row for row in rows if row["identical_rewards"] is not None]
    shares = [max(row["share_of_corpus"], 1e-7) for row in known]  # a rule may have encoded nothing
    for name, marker, colour in (
        ("identical_rewards", "o", COLOURS["blue"]),
        ("advantage_sign_agreement", "^", COLOURS["vermilion"]),
    ):
        left.scatter(
            shares, [row[name] for row in known], marker=marker, color=colour, label=name.replace("_", " ")
        )
    for share, row in zip(shares, known, strict=True):
        at = (share, row["identical_rewards"])
        left.annotate(row["rule"], at, (4, -10), textcoords="offset points", fontsize=8)
    left.set_xscale("log")
    left.axhline(0.99, color=COLOURS["grey"], linewidth=0.8, linestyle="--")
    left.axvline(0.01, color=COLOURS["grey"], linewidth=0.8, linestyle="--")
    left.set(xlabel="share of the corpus encoded per step", ylabel="share of rollouts")
    left.legend(frameon=False, fontsize=8)
    names, start = list(seconds), [0.0] * len(seconds)
    for part, colour in zip(next(iter(seconds.values())), COLOURS.values(), strict=False):
        values = [seconds[name][part] for name in names]
        right.barh(names, values, left=start, color=colour, label=part)
        start = [before + value for before, value in zip(start, values, strict=True)]
    right.invert_yaxis()
    right.set_xlabel("seconds per step")
    right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
