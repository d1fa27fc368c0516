"""The part of a page that a sweep, a search or several runs have: a table, and settings against results."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from search_r3.cli.logged_columns import Column, read_columns
from search_r3.cli.page.charts import Axis, Series, line_chart, parallel
from search_r3.cli.page.markup import Content, Markup, element, joined, section, text_of
from search_r3.cli.page.run_page import duration, state_mark
from search_r3.cli.page.scales import number, scale_of
from search_r3.cli.page.tables import Cell, table
from search_r3.cli.run_report import measured_rows
from search_r3.cli.run_status import read_status
from search_r3.evaluation.metrics import HEADLINE
from search_r3.records import read_config, read_json_if_there

MOST_AXES, MOST_JOBS = 8, 400
"""Settings and jobs of the parallel view."""
MOST_CURVES = 12
"""Jobs of a chart of curves."""
NOT_SETTINGS = ("output_dir", "metrics_file", "resume", "if_exists", "trust", "hydra")
"""Keys that say where a job is written, and not what it does."""


@dataclass(frozen=True)
class Job:
    """A run of a sweep.

    Attributes:
        folder: of the run.
        settings: values by key.
        results: value by the name of what was measured.
        error: why it failed.
        took: from start to end.
    """

    folder: Path
    settings: Mapping[str, object]
    results: Mapping[str, float]
    error: str | None
    took: str | None


def job_folders(sweep: Path) -> list[Path]:
    """The jobs of a sweep or search, in their order: the numbered folders with a status."""
    found = [path for path in sweep.iterdir() if path.name.isdigit() and (path / "status.json").is_file()]
    return sorted(found, key=lambda path: int(path.name))


def sweep_parts(folders: Sequence[Path], level: int = 2) -> Markup:
    """A table of jobs, a line for each through its settings to what it came to, and curves of all.

    Raises:
        RecordError: If a record is damaged.
    """
    set_by_any = _keys(folders)
    jobs = [_job(folder, set_by_any) for folder in folders]
    if not jobs:
        return joined()
    keys = _varied(jobs)
    metrics = list(dict.fromkeys(name for job in jobs for name in job.results))
    return joined(
        section("Jobs", _table(jobs, keys, metrics), note=_states(jobs), level=level),
        section("Settings and results", _parallel(jobs, keys, metrics), note=_PARALLEL, level=level),
        section("Curves of all jobs", _curves(jobs), level=level),
    )


_PARALLEL = (
    "A line is a job; the more of the last axis it reached, the stronger its colour. Pointing at it names it."
)


def _job(folder: Path, keys: Sequence[str]) -> Job:
    status, origin = read_status(folder), read_json_if_there(folder / "provenance.json")
    choices = origin.get("choices")
    choices = choices if isinstance(choices, dict) else {}
    config = OmegaConf.create()
    if (folder / "config.yaml").is_file():
        config = read_config(folder / "config.yaml")
    settings = {key: choices.get(key, _setting(config, key)) for key in keys}
    return Job(folder, settings, _results(folder), status.get("error"), duration(status))


def _setting(config: DictConfig, key: str) -> object:
    try:
        value = OmegaConf.select(config, key)
    except OmegaConfBaseException:  # a reference to something that is not there
        return None
    return str(value) if OmegaConf.is_config(value) else value


def _keys(folders: Sequence[Path]) -> list[str]:
    """Keys that the command of any job set, without those that say where it is written."""
    found: dict[str, None] = {}
    for folder in folders:
        overrides = read_json_if_there(folder / "provenance.json").get("overrides")
        for text in overrides if isinstance(overrides, list) else ():
            key = str(text).lstrip("+~").partition("=")[0]
            if key.split(".")[0] not in NOT_SETTINGS:
                found[key] = None
    return list(found)


def _results(folder: Path) -> dict[str, float]:
    """What a job came to: nDCG@10 by mode, else the last validation, else the last reward or loss."""
    rows = measured_rows(folder)
    several = len({row["benchmark"] for row in rows}) > 1
    found = {
        " ".join([*([row["benchmark"]] if several else []), row["mode"], HEADLINE]): row["metrics"][HEADLINE]
        for row in rows
        if HEADLINE in row["metrics"]
    }
    columns = _main_columns(folder)
    for name in [name for name in columns if name.startswith("val/")]:
        found.setdefault(f"{name.split('/')[1]} {HEADLINE}", columns[name].points[-1][1])
    for name in ("train/reward", "train/loss"):
        if not found and name in columns:
            found[name] = columns[name].points[-1][1]
    return found


def _main_columns(folder: Path) -> dict[str, Column]:
    def is_main(name: str) -> bool:
        return name in ("train/reward", "train/loss") or (name.startswith("val/") and name.endswith(HEADLINE))

    columns = read_columns(folder / "csv" / "metrics.csv", is_main)
    return {name: column for name, column in columns.items() if column.points}


def _varied(jobs: Sequence[Job]) -> list[str]:
    """Keys whose value is not that of all jobs."""
    return [key for key in jobs[0].settings if len({_plain(job, key) for job in jobs}) > 1]


def _plain(job: Job, key: str) -> str:
    """A value as text, in which the job's own folder has no name."""
    value = job.settings.get(key)
    return "" if value is None else str(value).replace(str(job.folder), "<folder>")


def _states(jobs: Sequence[Job]) -> str:
    states = [read_status(job.folder).get("state", "not started") for job in jobs]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _table(jobs: Sequence[Job], keys: Sequence[str], metrics: Sequence[str]) -> Markup | None:
    rows: list[list[Content | Cell]] = [
        [
            job.folder.name,
            state_mark(job.folder),
            *(_plain(job, key) for key in keys),
            *(f"{job.results[name]:.4f}" if name in job.results else "" for name in metrics),
            job.took or "",
            text_of(job.error, 300) if job.error else "",
        ]
        for job in jobs
    ]
    numbers = [key for key in keys if all(_is_number(job.settings.get(key)) for job in jobs)]
    columns = ("job", "state", *keys, *metrics, "took", "error")
    return table(columns, rows, "jobs", numbers=(*numbers, *metrics))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _parallel(jobs: Sequence[Job], keys: Sequence[str], metrics: Sequence[str]) -> Markup | None:
    counts = {name: sum(name in job.results for job in jobs) for name in metrics}
    if not keys or not metrics or max(counts.values()) < 2:
        return None
    main = max(reversed(metrics), key=counts.__getitem__)
    shown = [job for job in jobs if main in job.results][:MOST_JOBS]
    results = [job.results[main] for job in shown]
    lower = main == "train/loss"
    order = np.argsort(
        np.argsort([-value if lower else value for value in results], kind="stable"), kind="stable"
    )
    levels = [min(4, int(5 * place / len(shown))) for place in order.tolist()]
    axes = [_axis(key, [job.settings.get(key) for job in shown], shown) for key in keys[: MOST_AXES - 1]]
    axes.append(_axis(main, results, shown))
    names = [
        ", ".join(
            [f"job {job.folder.name}", *(f"{key}={_plain(job, key)}" for key in keys), f"{main} {value:.4f}"]
        )
        for job, value in zip(shown, results, strict=True)
    ]
    return parallel(axes, names, levels)


def _axis(name: str, values: Sequence[object], jobs: Sequence[Job]) -> Axis:
    """Numbers at their place, logarithmic where they span a factor of twenty; all else evenly spaced."""
    short = name.rpartition(".")[2]
    if all(map(_is_number, values)) and len(set(values)) > 1:
        is_log = min(values) > 0 and max(values) / min(values) >= 20
        placed = [math.log10(value) if is_log else float(value) for value in values]
        scale = scale_of(placed, margin=0.0)
        distinct = sorted(set(values)) if len(set(values)) <= 5 else None
        marks = distinct or ([10.0**tick for tick in scale.ticks] if is_log else scale.ticks)
        at = [scale.at(math.log10(mark) if is_log else mark) for mark in marks]
        told = [
            (place, number(mark)) for place, mark in zip(at, marks, strict=True) if -0.01 <= place <= 1.01
        ]
        return Axis(short, [scale.at(value) for value in placed], told)
    texts = [
        _plain(job, name) if name in job.settings else str(value)
        for job, value in zip(jobs, values, strict=True)
    ]
    distinct = list(dict.fromkeys(texts))
    at = {text: place / max(1, len(distinct) - 1) for place, text in enumerate(distinct)}
    marks = (
        [(at[text], text if len(text) <= 18 else f"…{text[-17:]}") for text in distinct]
        if len(distinct) <= 12
        else []
    )
    return Axis(short, [at[text] for text in texts], marks)


def _curves(jobs: Sequence[Job]) -> Markup | None:
    """Each main column of all jobs in one chart, of the first few jobs."""
    by_name: dict[str, list[Series]] = {}
    for job in jobs[:MOST_CURVES]:
        for name, column in _main_columns(job.folder).items():
            by_name.setdefault(name, []).append(Series(f"job {job.folder.name}", column.points))
    note = f"the first {MOST_CURVES} jobs" if len(jobs) > MOST_CURVES else ""
    drawn = [line_chart(name, series, note=note) for name, series in sorted(by_name.items())]
    return element("div", *drawn, class_="charts") if drawn else None
