"""What a run wrote of its rollouts, read in one pass: the first and the last of the same queries."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from search_r3.data.jsonl import DataError, decode_line, open_lines, parse_object, raw_lines
from search_r3.records import RecordError, shown

MOST_QUERIES = 64
"""Queries of the beginning that are followed through the file."""
MOST_ROLLOUTS = 64
"""Rollouts of a query at a step that are kept."""
LONGEST = 4000
"""Characters of a text that are kept."""
REMEDY = "put back the file that the run wrote, or move it away"


@dataclass(frozen=True)
class Rollout:
    """A line of completions.jsonl."""

    step: int
    query_id: str
    query: str
    reasoning: str
    reward: float
    rank_before: int
    rank_after: int


Group = list[Rollout]
"""The rollouts of a query at a step."""


@dataclass(frozen=True)
class Shown:
    """What is shown of a run's rollouts.

    Attributes:
        pairs: groups of the same query at its first and at its last step.
        first: groups of the first step.
        last: groups of the last step.
    """

    pairs: list[tuple[Group, Group]]
    first: list[Group]
    last: list[Group]


def read_completions(file: Path) -> Shown | None:
    """The first and the last rollouts of a run; None where there is no file or no line in it.

    Its size does not matter: of each query only two groups are kept, and of the queries the first few.

    Raises:
        RecordError: With the line, if one is not a rollout. A last line without an end was cut, and is left
            out.
    """
    if not file.is_file():
        return None
    early: dict[str, Group] = {}
    late: dict[str, Group] = {}
    last: dict[str, Group] = {}
    first_step = None
    for rollout in _rollouts(file):
        name = rollout.query_id
        first_step = rollout.step if first_step is None else first_step
        if name in early or len(early) < MOST_QUERIES:
            _add(early.setdefault(name, []), rollout)
        if name in early and rollout.step > early[name][0].step:
            if name in late and late[name][0].step < rollout.step:
                del late[name]
            _add(late.setdefault(name, []), rollout)
        if last and next(iter(last.values()))[0].step < rollout.step:
            last.clear()
        if name in last or len(last) < MOST_QUERIES:
            _add(last.setdefault(name, []), rollout)
    if first_step is None:
        return None
    pairs = [(early[name], late[name]) for name in early if name in late]
    pairs.sort(key=lambda pair: pair[0][0].step - pair[1][0].step)  # the longest time between first
    first = [group for group in early.values() if group[0].step == first_step]
    return Shown(pairs, first, list(last.values()))


def _add(group: Group, rollout: Rollout) -> None:
    """Adds a rollout of the same step."""
    if len(group) < MOST_ROLLOUTS and (not group or group[0].step == rollout.step):
        group.append(rollout)


def _rollouts(file: Path) -> Iterator[Rollout]:
    try:
        with open_lines(file) as stream:
            for number, raw in raw_lines(stream, file):
                if not raw.endswith(b"\n"):
                    return
                yield _rollout(parse_object(decode_line(raw, file, number), file, number), file, number)
    except DataError as error:
        raise RecordError(file, error.problem, REMEDY) from None


def _rollout(row: Mapping, file: Path, line: int) -> Rollout:
    kinds = {
        "step": (int,), "query_id": (str,), "query": (str,), "reasoning": (str,), "reward": (int, float),
        "rank_before": (int,), "rank_after": (int,),
    }  # fmt: skip
    words = {int: "a whole number", str: "a text", float: "a number"}
    for name, kind in kinds.items():
        if name not in row:
            raise DataError(file, line, f"key {name!r} is missing")
        if not isinstance(row[name], kind) or isinstance(row[name], bool):
            raise DataError(file, line, f"{name} must be {words[kind[-1]]}, got {shown(row[name])}")
    if not math.isfinite(row["reward"]):
        raise DataError(file, line, f"reward must be a finite number, got {row['reward']}")
    values = {name: row[name][:LONGEST] if kind == (str,) else row[name] for name, kind in kinds.items()}
    return Rollout(**values)
