"""What `--help` prints: how a command is called, its groups, and a line for every key of what is chosen."""

import shutil
from collections.abc import Iterator, Sequence

from search_r3.cli.config_source import ConfigSource, MissingChoice
from search_r3.cli.describe import DescribedKey, describe_file, headline
from search_r3.cli.entry import Entry
from search_r3.shipped import as_called

LEAST_WIDTH, MOST_WIDTH = 100, 200


def help_text(entry: Entry, source: ConfigSource, overrides: Sequence[str] = ()) -> str:
    """The help of a command.

    Args:
        entry: the command.
        source: where configs are read from.
        overrides: as typed; the keys of the options that they choose are shown, as with `refresh=certified`.
    """
    program = as_called(f"python -m {entry.module or f'src.{entry.config_name}'}")
    groups = source.groups()
    choices = [each for each in overrides if each.partition("=")[0] in groups]
    try:
        parts, is_whole = source.parts(entry.config_name, choices), True
    except MissingChoice:
        parts, is_whole = source.parts(entry.config_name, [*choices, "stage=rl"]), False
    files = [(path, package) for path, package in parts if is_whole or not path.startswith("stage/")]
    used = list(dict.fromkeys(path.partition("/")[0] for path, _ in parts if "/" in path))
    if "stage" in used and "experiment" not in used:
        used.append("experiment")
    if entry.config_name == "evaluate":
        used.append("mode")  # by modes=[...], which names several
    lines = [f"{program} group=option ... key=value ..."]
    if used:
        lines += ["", "groups"]
        width = max(map(len, used))
        lines += [f"  {group:{width}}  {', '.join(groups[group])}" for group in used]
    for path, package in sorted(files, key=lambda file: "/" in file[0]):  # the command's own first
        lines += ["", *_section(source, path, package)]
    if not is_whole:
        lines += ["", f"the keys of a stage: {program} stage=sft --help"]
        lines += ["index, refresh and reward belong to stage=rl"]
    return "\n".join(
        [
            *lines,
            "",
            f"keys of another option:     {program} <group>=<option> --help",
            f"every key, with its value:  {program} ... --cfg job",
            f"a sweep, one job per value: {program} --multirun ... key=1,2,3",
        ]
    )


def _section(source: ConfigSource, path: str, package: str) -> Iterator[str]:
    """The keys of one file, a line each, below what the file is for."""
    file = source.file_of(path)
    group, _, option = path.rpartition("/")
    name = f"{group}={option}" if group else f"keys of {option}"
    yield "  ".join(filter(None, (name, _first(headline(file)) if group else "")))
    yield from _table(describe_file(file, group, package))


def _table(keys: Sequence[DescribedKey]) -> Iterator[str]:
    width = min(max(shutil.get_terminal_size((160, 24)).columns, LEAST_WIDTH), MOST_WIDTH)
    names = [f"  {each.key}={_clipped(each.default, 24)}" for each in keys]
    column = min(max(map(len, names), default=0), 56) + 2
    for name, each in zip(names, keys, strict=True):
        meaning = _clipped(each.meaning, width - max(column, len(name) + 2))
        yield f"{name:{column - 2}}  {meaning}".rstrip()


def _first(text: str) -> str:
    return text.partition(". ")[0].removesuffix(".")


def _clipped(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
