"""Writes docs/configuration.md: every group and key of conf/, its default, its range and what it means.

All of it is read from conf/, from the docstrings of what `_target_` names, and from the table of ranges by
which the commands refuse numbers; a test writes the page again and compares. `make docs` calls this.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import yaml

from search_r3.cli.describe import DescribedKey, describe_keys, headline
from search_r3.cli.number_ranges import leaves
from search_r3.shipped import CONF

PAGE = Path(__file__).with_suffix(".md")
LONGEST = 60
"""Characters of a default; the rest of a longer one stands in the YAML file."""

HEAD = """\
# Every group and key

<!-- Written by docs/configuration.py from conf/ and docstrings. Do not edit. -->

A command line is made of `group=option` and `key=value`. A group picks a file of `conf/<group>/`, a key
changes one value in what the files give. Keys are typed as they stand here. A misspelt key, an unknown option
and a number out of its range are refused before anything is read.

`python -m src.train stage=sft --cfg job` prints what a command line gives, and runs nothing.

A range that is not in a table is any: text, a path, or a value that the meaning lists. A key of a code that
is not ours takes what that code takes.
"""

COMMANDS = """
## Keys of the commands

`python -m src.<command>` reads `conf/<command>.yaml`. `src.tune` and `src.benchmarks.refresh` take those of
`src.train` as well.
"""

ORDER = (
    *("train", "evaluate", "search", "serve", "encode", "export", "tune"),
    *("bench", "bench_refresh", "bench_scale"),
)
"""Commands in the order of the page; a further one comes last."""

GROUPS = {
    "stage": "What is trained: the losses or the policy, batches, optimizer, checkpoints, the trainer.",
    "model": "The model folder, or the base that a new one begins from, and how much of it is tuned.",
    "data": "Training rows, documents, and collections that are held out.",
    "strategy": "Devices and processes, as Lightning's Trainer takes them.",
    "index": "Which search finds candidates among the rows of the live index; `stage=rl` only.",
    "refresh": "Which documents are encoded again at a step, and how many; `stage=rl` only.",
    "normalisation": "How the tokens of a group's rollouts are weighted in the loss; `stage=rl` only.",
    "kl": "Which estimator of KL to the reference model the loss has; `stage=rl` only.",
    "reward": "What a rollout earns for its ranking; `stage=rl` only.",
    "mode": "Ways to rank the documents of an evaluation, which `modes=[...]` names; `src.evaluate` only.",
    "logger": "Where metrics go besides the CSV file of a run.",
    "debug": "Switches of the trainer for finding faults.",
}
"""Groups in the order of the page, with what they are for."""


def page() -> str:
    """The whole page."""
    options: dict[str, dict[str, list[DescribedKey]]] = {}
    for (group, option), rows in groupby(describe_keys(), key=lambda each: (each.group, each.option)):
        options.setdefault(group, {})[option] = list(rows)
    unknown = {path.name for path in CONF.iterdir() if path.is_dir()} - GROUPS.keys() - {"experiment"}
    if unknown:
        raise SystemExit(f"docs/configuration.py: say in GROUPS what {', '.join(sorted(unknown))} is for")
    parts = [HEAD, COMMANDS]
    commands = options.pop("")
    for command in [*ORDER, *(name for name in commands if name not in ORDER)]:
        parts += _option(f"src.{_module(command)}", CONF / f"{command}.yaml", commands[command], {})
    for group in [name for name in GROUPS if (CONF / name).is_dir()]:
        parts.append(f"\n## {group}=\n\n{GROUPS[group]}\n")
        before: dict[str, Sequence[DescribedKey]] = {}
        for file in sorted((CONF / group).glob("*.yaml")):
            rows = options.get(group, {}).get(file.stem, [])
            parts += _option(f"{group}={file.stem}", file, rows, before)
            before[f"{group}={file.stem}"] = rows
    parts.append("\n## experiment=\n\nSettings that belong together; each file holds only differences.\n\n")
    parts += [
        f"- `experiment={file.stem}`: {_cell(headline(file))}\n"
        for file in sorted(CONF.glob("experiment/*.yaml"))
    ]
    return "".join(parts)


def _module(command: str) -> str:
    return command.replace("bench_", "benchmarks.")


def _option(
    title: str, file: Path, rows: Sequence[DescribedKey], before: Mapping[str, Sequence[DescribedKey]]
) -> Iterator[str]:
    """The part of one file; of one that differs little from an earlier one of its group, what differs."""
    yield f"\n### {title}\n\n{_cell(headline(file))}\n"
    alike = _most_alike(rows, before)
    if alike is not None:
        shared = {(row.key, row.default) for row in before[alike]}
        rows = [row for row in rows if (row.key, row.default) not in shared]
        yield f"\nKeys are those of `{alike}`{', with these values:' if rows else '.'}\n"
    if rows:
        ranges = _ranges(file, rows[0].group)
        yield "\n| key | default | range | meaning |\n|---|---|---|---|\n"
        yield from (
            f"| `{row.key}` | {_default(row.default)} | {ranges.get(row.key, '')} | {_cell(row.meaning)} |\n"
            for row in rows
        )


def _most_alike(rows: Iterable[DescribedKey], before: Mapping[str, Sequence[DescribedKey]]) -> str | None:
    """The earlier option with the same keys whose defaults are most alike; None where none has those keys."""
    pairs = {(row.key, row.default) for row in rows}
    keys = {key for key, _ in pairs}
    same = {
        name: len(pairs & {(row.key, row.default) for row in others})
        for name, others in before.items()
        if keys and {row.key for row in others} == keys
    }
    return max(same, key=same.__getitem__) if same else None


def _ranges(file: Path, group: str) -> dict[str, str]:
    """Range in words by key, of the keys that have one."""
    content = _with_bases(file)
    found = leaves({group: content} if group else content)
    return {leaf.key: _cell(str(leaf.range)) for leaf in found if leaf.range is not None}


def _with_bases(file: Path) -> dict:
    """The content of a file on top of that of the files beside it that it builds on."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    whole: dict = {}
    for base in content.pop("defaults", ()):
        if isinstance(base, str) and (beside := file.with_name(f"{base}.yaml")).is_file():
            whole = _merged(whole, _with_bases(beside))
    return _merged(whole, content)


def _merged(under: dict, over: dict) -> dict:
    def value_of(key: str) -> object:
        if key not in over:
            return under[key]
        both = under.get(key), over[key]
        return _merged(*both) if all(isinstance(each, dict) for each in both) else over[key]

    return {key: value_of(key) for key in {**under, **over}}


def _default(text: str) -> str:
    short = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return _cell(f"`{short}`")


def _cell(text: str) -> str:
    """Text that stands in a table as it reads; what is between backticks is code already."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part.replace("<", "&lt;") if place % 2 == 0 else part for place, part in enumerate(parts))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
