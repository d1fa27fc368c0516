"""Runs a refresh rule on a replayed drift: index and environment of a run, with a look-up as encoder."""

import resource
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from search_r3.benchmarks.drift import CHUNK, Replay
from search_r3.index.backends.base import MakeIndex
from search_r3.index.exact_rank import Positives, Shard, exact_ranking
from search_r3.index.ledger import Refreshed, age_counts, step_record
from search_r3.index.rules.base import Refresh, StepQueries
from search_r3.index.served import LiveIndex
from search_r3.objectives.rewards import Reward
from search_r3.stages.rl.statistics import Seconds

PARTS = ("search", "refresh", "ledger", "scoring", "commit")
"""Seconds that count as cost; `encode` is a look-up and stands for the model, `audit` is no cost."""


@dataclass(frozen=True)
class Task:
    """A rule on a replay.

    Attributes:
        replay: the corpus.
        base: `[N, D]` its rows at the first recorded step, to start from.
        make_index: backend.
        settings: rule and schedule.
        reward: every rollout counts as ended by the embed token.
        n_steps: replayed after the first recorded one.
        folder: of the store; it is removed afterwards.
    """

    replay: Replay
    base: np.ndarray
    make_index: MakeIndex
    settings: Refresh
    reward: Reward
    n_steps: int
    folder: Path


def replayed(task: Task) -> Iterator[dict[str, float]]:
    """A line per step.

    Yields:
        The ledger's line under `index/`, as a run of stage=rl logs it; `seconds/<part>`; and under
        `memory/`, in bytes: `rows`, `ages`, `journal` and `saved` on disk, `peak_resident` of this process
        since the rule began, pages of mapped files included.
    """
    recording = task.replay.recording
    task.settings.rule.reward_reads(task.reward.reads.best_wrong, task.reward.reads.cut_off)
    forget_peak()
    index = LiveIndex.create(
        task.folder, {"replay": str(recording.folder.resolve())}, task.base, task.make_index, task.settings,
        chunk_size=CHUNK, step=recording.steps[0], overwrite=True,
    )  # fmt: skip
    try:
        for step in recording.steps[1 : task.n_steps + 1]:
            yield _step(task, index, step)
    finally:
        index.close()
        shutil.rmtree(task.folder)


def _step(task: Task, index: LiveIndex, step: int) -> dict[str, float]:
    recording = task.replay.recording
    queries, seconds = recording.queries(step), Seconds(torch.device("cpu"))
    encode = partial(task.replay.vectors, step)  # a look-up stands for the model of the step
    with seconds.part("search"):
        n_candidates = index.settings.rule.n_candidates
        if n_candidates:  # what `refresh` would do, but under a clock of its own
            queries = replace(queries, candidates=index.search(queries.vectors, n_candidates)[1])
    with seconds.part("refresh"):
        line = index.refresh(step, queries, encode)
    with seconds.part("ledger"):  # once more, under its own clock
        n_encoded = int(line["documents_encoded"])
        zeros = np.zeros(n_encoded, np.float32)
        step_record(age_counts(index.encoded_at, step), Refreshed(np.arange(n_encoded), zeros, 0, 0.0, 0))
    with seconds.part("scoring"):
        served = rewards(queries, recording.group_size, index.rows, task.reward)
    if index.settings.is_audit_step(step):
        with seconds.part("audit"):
            line |= index.audit(
                step, queries, served,
                lambda rows: rewards(queries, recording.group_size, rows, task.reward), encode,
            )  # fmt: skip
    memory = _sizes(task.folder)
    with seconds.part("commit"):
        index.commit(index.state_dict())
    found = seconds.by_part | {"encode": line["encode_seconds"]}
    found["refresh"] = max(found["refresh"] - found["encode"] - found["ledger"], 0.0)
    return (
        {f"index/{name}": value for name, value in line.items()}
        | {f"seconds/{name}": value for name, value in found.items()}
        | {f"memory/{name}": float(value) for name, value in (memory | _sizes(task.folder, "saved")).items()}
        | {"memory/peak_resident": float(_peak())}
    )


def rewards(queries: StepQueries, group_size: int, rows: np.ndarray, reward: Reward) -> np.ndarray:
    """`[B, G]` what the rollouts earn on rows `[N, D]`, by the environment's exact rank."""
    vectors = torch.from_numpy(np.ascontiguousarray(queries.vectors)).unflatten(0, (-1, group_size))
    positives = torch.from_numpy(np.ascontiguousarray(queries.positives[::group_size]))
    ranking = exact_ranking(vectors, Positives(positives, (positives >= 0).float()), Shard(rows))
    return reward(ranking, torch.ones(vectors.shape[:2], dtype=torch.bool)).total.numpy()


def _sizes(folder: Path, only: str | None = None) -> dict[str, int]:
    """Bytes of a store's files by what they are for."""
    sizes = dict.fromkeys(("rows", "ages", "journal", "saved") if only is None else (only,), 0)
    names = {"rows.f32": "rows", "ages.bin": "ages"}
    for path in folder.rglob("*"):
        is_saved = any(part.startswith("state-") for part in path.relative_to(folder).parts)
        name = "journal" if path.name.startswith("journal-") else names.get(path.name)
        name = "saved" if is_saved else name
        if name in sizes and path.is_file():
            sizes[name] += path.stat().st_size
    return sizes


def forget_peak() -> None:
    """Lets the largest resident size count from now on, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    """Largest resident size in bytes since `forget_peak`, or of the process."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
