"""The part of a page that a training run has."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from omegaconf import OmegaConf

from search_r3.cli.command_line import resume_command
from search_r3.cli.logged_columns import Column, read_columns
from search_r3.cli.page.completions import Group, Rollout, read_completions
from search_r3.cli.page.curves import WHOLE, all_columns, charts
from search_r3.cli.page.markup import Markup, element, joined, section, text_of
from search_r3.cli.page.tables import facts, folded, table
from search_r3.cli.run_report import measured_rows
from search_r3.cli.run_status import read_status, seconds_taken, state_of
from search_r3.evaluation.metrics import METRICS
from search_r3.records import read_config, read_json_if_there

N_PAIRS, N_ROLLOUTS = 6, 4
"""Queries, and rollouts of each, that are shown before and after."""


def run_parts(folder: Path, level: int = 2) -> Markup:
    """State, facts, validation, curves and rollouts of a run; what it does not have is left out.

    Args:
        folder: of the run.
        level: of its headings.

    Raises:
        RecordError: If a record of it is damaged.
    """
    columns = read_columns(folder / "csv" / "metrics.csv", whole=WHOLE)
    return joined(
        _notice(folder, columns),
        _facts(folder, columns),
        section("Results on validation", _validation(folder), level=level),
        charts(columns, level),
        _rollouts(folder, level),
        all_columns(columns),
    )


def stage_of(folder: Path) -> str | None:
    """The stage of a run; None where its configuration does not say."""
    file = folder / "config.yaml"
    config = read_config(file) if file.is_file() else OmegaConf.create()
    return _text(OmegaConf.select(config, "stage.name", throw_on_resolution_failure=False))


def state_mark(folder: Path) -> Markup | None:
    """The state of a run as a label."""
    state = state_of(folder)
    return element("span", state, class_=f"state {state}") if state else None


def _notice(folder: Path, columns: Mapping[str, Column]) -> Markup | None:
    """What a reader must know of a run that has not come to its end."""
    state, status = state_of(folder), read_status(folder)
    if state in (None, "finished"):
        return None
    step = reached(columns)
    sofar = "nothing has been logged yet" if step is None else f"what follows ends with step {step:,}"
    words = {
        "running": f"This run was still going when this page was written: {sofar}.",
        "interrupted": f"This run was interrupted: {sofar}. To go on: ",
        "failed": f"This run failed: {sofar}. To go on: ",
        "pruned": f"This trial was pruned: {sofar}.",
        "skipped": "This run was skipped.",
    }[state]
    command = element("code", resume_command(folder)) if words.endswith(": ") else None
    error = element("p", text_of(status["error"])) if status.get("error") and state != "interrupted" else None
    return element("div", element("p", words, command), error, class_="notice")


def reached(columns: Mapping[str, Column]) -> int | None:
    """The last step that was logged."""
    ends = [points[-1][0] for column in columns.values() if (points := column.points)]
    return max(ends, default=None)


def _facts(folder: Path, columns: Mapping[str, Column]) -> Markup | None:
    origin, status = read_json_if_there(folder / "provenance.json"), read_status(folder)
    card = read_json_if_there(folder / "data_card.json")
    config = read_config(folder / "config.yaml") if (folder / "config.yaml").is_file() else OmegaConf.create()

    def setting(key: str) -> str | None:
        value = OmegaConf.select(config, key, throw_on_resolution_failure=False)
        return None if value is None else str(value)

    step, steps = reached(columns), setting("stage.trainer.max_steps")
    begun = setting("model.path") or setting("model.name") or _choice(origin, "model")
    pairs = [
        ("command", _code(origin.get("command"))),
        ("stage", setting("stage.name")),
        ("last step logged", None if step is None else f"{step:,} (limit {steps})" if steps else f"{step:,}"),
        ("began", _time(status.get("started"))),
        ("took", duration(status)),
        ("model at the start", begun),
        ("data", card.get("name")),
        ("strategy", _choice(origin, "strategy")),
        ("seed", _text(origin.get("seed"))),
        ("commit", _code(origin.get("commit"))),
        ("machine", status.get("host")),
        ("Python", _text(origin.get("python"))),
    ]
    packages = origin.get("packages")
    more = None
    if isinstance(packages, dict) and packages:
        more = folded("Packages", facts((str(name), str(version)) for name, version in packages.items()))
    return joined(facts(pairs), more)


def _choice(origin: Mapping, group: str) -> str | None:
    choices = origin.get("choices")
    return _text(choices.get(group)) if isinstance(choices, dict) else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _code(value: object) -> Markup | None:
    return None if value is None else element("code", str(value))


def _time(text: str | None) -> str | None:
    try:
        return None if text is None else f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return text


def duration(status: Mapping) -> str | None:
    """From start to end of a run, in words; None where it has not ended."""
    taken = seconds_taken(status)
    if taken is None:
        return None
    seconds = round(taken)
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min" if seconds >= 5400 else f"{seconds / 60:.0f} min"


def _validation(folder: Path) -> Markup | None:
    """The rows of a run's metrics.json."""
    shown = [
        [row["benchmark"], row["mode"], str(row["n_queries"]), str(row["n_docs"])]
        + [f"{row['metrics'][name]:.4f}" if name in row["metrics"] else "" for name in METRICS]
        for row in measured_rows(folder)
        if any(name in row["metrics"] for name in METRICS)
    ]
    names = ("collection", "mode", "queries", "documents", *METRICS)
    return table(names, shown, "results on validation", numbers=names[2:])


def _rollouts(folder: Path, level: int) -> Markup | None:
    """The same queries early and late; of a run that showed none twice, its first and its last ones."""
    found = read_completions(folder / "completions.jsonl")
    if found is None:
        return None
    if found.pairs:
        note = "What the policy wrote about the same queries at two steps, the best rewards first."
        shown = [_query(early[0], (early, late)) for early, late in found.pairs[:N_PAIRS]]
    else:
        note = "No query was recorded at two steps; these are the first ones and the last ones."
        first, last = found.first, found.last
        is_one_step = first[0][0].step == last[0][0].step
        groups = first[:N_PAIRS] if is_one_step else [*first[: N_PAIRS // 2], *last[: N_PAIRS // 2]]
        if is_one_step:
            note = f"Recorded at step {first[0][0].step} only."
        shown = [_query(group[0], (group,)) for group in groups]
    kind = "rollouts" if found.pairs else "queries"
    inner = element("div", *shown, class_=f"{kind} filtered")
    return section("Rollouts before and after", inner, note=note, level=level)


def _query(asked: Rollout, groups: Sequence[Group]) -> Markup:
    return element(
        "article",
        element("p", text_of(asked.query), class_="asked"),
        element("p", asked.query_id, class_="id"),
        element("div", *map(_group, groups), class_="sides"),
        class_="query",
    )


def _group(group: Group) -> Markup:
    mean = sum(each.reward for each in group) / len(group)
    best = sorted(group, key=lambda each: -each.reward)[:N_ROLLOUTS]
    of = f"{len(best)} of {len(group)} rollouts" if len(group) > len(best) else f"{len(group)} rollouts"
    heading = f"step {group[0].step:,}: mean reward {mean:.3f}, {of}"
    return element("div", element("h4", heading), *map(_rollout, best))


def _rollout(rollout: Rollout) -> Markup:
    return element(
        "div",
        element("span", f"{rollout.reward:.3f}", class_="earned"),
        text_of(rollout.reasoning or "(nothing)"),
        element("span", "rank ", rank_change(rollout.rank_before, rollout.rank_after), class_="ranks"),
        class_="rollout",
    )


def rank_change(before: int | str, after: int | str) -> Markup:
    """Two ranks, coloured where the second is better or worse; text stands for one that was not found."""
    places = [each if isinstance(each, int) else 1 << 60 for each in (before, after)]
    kind = "better" if places[1] < places[0] else "worse" if places[1] > places[0] else None
    return joined(f"{before} → ", element("span", str(after), class_=kind))
