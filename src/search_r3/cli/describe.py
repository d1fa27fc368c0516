"""What every key of conf/ is set to and means, read from the YAML files and the source of their targets.

A key means what the comment beside it says, or the comment above it; where there is none, what the docstring
of the `_target_` says of that argument. Nothing is imported for it, so that `--help` and the reference page
of the documentation, which both show this, cost no more than reading text and cannot differ.
"""

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from search_r3.cli.overrides import TRAINER_NODES, definition, flat_keys, named_in
from search_r3.shipped import CONF

TRAINER = "pytorch_lightning.trainer.trainer.Trainer"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NOT_SHOWN = frozenset({"defaults", "hydra"})


@dataclass(frozen=True)
class DescribedKey:
    """A key of a configuration file.

    Attributes:
        group: config group of the file, as "refresh"; empty for the file of a command.
        option: name of the file, as "candidates" or "train": what `<group>=` takes.
        key: as it is typed on the command line, as "refresh.rule.k".
        default: what the file says, as YAML.
        meaning: one line; empty where neither file nor source says it.
    """

    group: str
    option: str
    key: str
    default: str
    meaning: str


def describe_keys() -> list[DescribedKey]:
    """Every key of every file in conf/, in the order of the files.

    Files of `experiment/` hold only differences and are left out.
    """
    files = [*sorted(CONF.glob("*.yaml")), *sorted(CONF.glob("*/*.yaml"))]
    return [
        each
        for file in files
        if file.parent.name != "experiment"
        for each in describe_file(file, "" if file.parent == CONF else file.parent.name)
    ]


def describe_file(file: Path, group: str, package: str | None = None) -> list[DescribedKey]:
    """The keys of one file.

    Args:
        file: YAML.
        group: that the file is an option of; empty for the file of a command.
        package: where its keys stand in the configuration; None for below the group's name.
    """
    text = file.read_text(encoding="utf-8")
    node = yaml.compose(text, Loader=_LOADER)
    if not isinstance(node, yaml.MappingNode):
        return []
    prefix = group if package is None else package
    lines = text.splitlines()
    found = _described(node, lines, prefix, _Callable(), _targets(file, prefix))
    return [DescribedKey(group, file.stem, key, default, meaning) for key, default, meaning in found]


def key_names(folder: Path, command: str) -> list[str]:
    """The keys of a command's file, of the files that it builds on, and of all options of their groups."""
    files, groups, names = [command], [], []
    for name in files:
        content = _loaded(folder / f"{name}.yaml")
        for each in content.get("defaults") or ():
            if isinstance(each, str):
                files += [each] if each != "_self_" and each not in files else []
            else:
                groups += [group.removeprefix("optional ").partition("@")[0] for group in each]
        names += [key for key in flat_keys(content) if key.partition(".")[0] not in _NOT_SHOWN]
    groups += ["index", "refresh", "reward"] if "stage" in groups else []
    for group in dict.fromkeys(groups):
        for file in sorted(folder.glob(f"{group}/*.yaml")) if group != "experiment" else ():
            content = {key: value for key, value in _loaded(file).items() if key != "defaults"}
            names += flat_keys({group: content})
    return [name for name in names if not re.search(r"(^|\.)_\w+_$", name)]


def _loaded(file: Path) -> dict:
    """The content of a YAML file; nothing where it is missing or is no mapping."""
    content = yaml.load(file.read_text(encoding="utf-8"), Loader=_LOADER) if file.is_file() else None
    return content if isinstance(content, dict) else {}


def headline(file: Path) -> str:
    """The comment that opens a file, in one line; empty where none does."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not re.match(r"# *@package\b", line):
            lines.append(line.lstrip("# "))
    return " ".join(lines)


def _targets(file: Path, prefix: str) -> dict[str, str]:
    """Every `_target_` of a file, and of those beside it that it builds on, by the key of its node."""
    content = _loaded(file)
    found: dict[str, str] = {}
    for base in content.get("defaults") or ():
        if isinstance(base, str) and (beside := file.with_name(f"{base}.yaml")).is_file():
            found |= _targets(beside, prefix)
    for key, value in flat_keys({prefix: content} if prefix else content).items():
        node, _, name = key.rpartition(".")
        if name == "_target_":
            found[node] = str(value)
    return found


@dataclass(frozen=True)
class _Callable:
    """What a node is handed to, and the way from that node to the keys in it."""

    target: str = ""
    path: tuple[str, ...] = ()

    def below(self, name: str) -> "_Callable":
        return _Callable(self.target, (*self.path, name))

    def says(self, name: str) -> str:
        """What its docstring says of an argument, or of the part of one."""
        if not self.target:
            return ""
        return meaning_of(self.target, (*self.path, name))


def _described(
    node: yaml.MappingNode, lines: list[str], key: str, owner: _Callable, targets: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    """Key, default and meaning of every value below a node."""
    children = {str(name.value): (name, value) for name, value in node.value}
    if key in TRAINER_NODES:
        owner = _Callable(TRAINER)
    if key in targets:
        owner = _Callable(targets[key])
    for child, (name, value) in children.items():
        if (not key and child in _NOT_SHOWN) or re.fullmatch("_.*_", child) or child == "defaults":
            continue
        full = f"{key}.{child}" if key else child
        if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
            yield from _described(value, lines, full, owner.below(child), targets)
        else:
            default = _value_text(lines, value)
            yield full, default, _comment(lines, name, value) or owner.says(child)


def _value_text(lines: list[str], node: yaml.Node) -> str:
    """The text of a value, in one line."""
    start, end = node.start_mark, node.end_mark
    if start.line == end.line:
        return lines[start.line][start.column : end.column].strip()
    parts = [lines[start.line][start.column :], *lines[start.line + 1 : end.line]]
    if end.line < len(lines):
        parts.append(lines[end.line][: end.column])
    if isinstance(node, yaml.ScalarNode):
        return " ".join(str(node.value).split())
    items = [re.sub(r"\s+#.*", "", part).strip() for part in parts]
    if isinstance(node, yaml.SequenceNode) and not node.flow_style:
        return f"[{', '.join(item.removeprefix('- ') for item in items if item)}]"
    return " ".join(filter(None, items))


def _comment(lines: list[str], name: yaml.Node, value: yaml.Node) -> str:
    """The comment behind a value, or the lines above its key; a file's first lines are of the file."""
    last = value.end_mark.line if value.end_mark.column else value.end_mark.line - 1
    row = max(name.start_mark.line, last)
    behind = re.search(r"(?:^|\s)#\s*(.*)$", lines[row][value.end_mark.column if last == row else 0 :])
    if behind:
        return behind[1].strip()
    above: list[str] = []
    place = name.start_mark.line - 1
    while place >= 0 and re.match(r"\s*#", lines[place]):
        above.insert(0, lines[place].strip().lstrip("# "))
        place -= 1
    return " ".join(above) if place >= 0 else ""


@cache
def argument_meanings(target: str) -> Mapping[str, str]:
    """What the docstring of a function or class says of each argument; read from its source."""
    node = definition(target)
    if node is None:
        return {}
    found: dict[str, str] = {}
    own = [item for item in ast.iter_child_nodes(node) if isinstance(item, ast.FunctionDef)]
    for part in [node, *(item for item in own if item.name == "__init__")]:
        found |= _arguments_in(ast.get_docstring(part, clean=False) or "")
    return found


def meaning_of(target: str, path: tuple[str, ...]) -> str:
    """What the docstrings say of an argument, or of a part of one.

    The parts of an argument are the attributes of what its docstring refers to: "limits, as `Lengths`".

    Args:
        target: dotted name of a function or class.
        path: name of the argument, and the way below it.

    Returns:
        Empty where nothing is said.
    """
    name, *below = path
    said = argument_meanings(target).get(name, "")
    if not below:
        return _sentence(said)
    reference = re.search(r"\bas `(\w+)`", said)
    other = reference and named_in(target.rpartition(".")[0], reference[1])
    return meaning_of(other, tuple(below)) if other else ""


def _arguments_in(docstring: str) -> dict[str, str]:
    """The entries of the sections `Args` and `Attributes`."""
    found: dict[str, str] = {}
    lines = inspect.cleandoc(docstring).splitlines()
    is_open, name = False, ""
    for line in lines:
        if re.fullmatch(r"(Args|Attributes):", line):
            is_open = True
        elif line and not line[0].isspace():
            is_open = False
        elif is_open and (entry := re.match(r" {4}\**(\w+)(?: \(.*?\))?:\s*(.*)", line)):
            name = entry[1]
            found[name] = entry[2]
        elif is_open and name and line.startswith("     "):
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def _sentence(text: str) -> str:
    """The first sentence, as a line of a table has it: values as YAML writes them, no full stop."""
    text = re.split(r"(?<=[^.\d])\.(?:\s|$)|\s*Default:", text.replace("``", "`"), maxsplit=1)[0]
    text = re.sub(r"\bNone\b", "null", text)
    text = re.sub(r"\b(True|False)\b", lambda match: match[0].lower(), text)
    return re.sub(r":[a-z]+:(?=`)|(?<=`)~", "", text).strip().removesuffix(".")
