"""Runs what the tables of an experiment show: `make reproduce NAME=bm25 BEIR_DIR=beir`.

An experiment that can be made again has a `commands.sh`, which its README shows: a line with the time that it
takes, one for each folder of data that the user has to bring, and the commands. They run one after the other
from the root of the checkout, up to the first that fails, and write below `outputs/reproduce/<name>/`. The
same call again goes on where the commands can.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.markdown import EXPERIMENTS
from experiments.tables import first_paragraph, folders, sections

ROOT = EXPERIMENTS.parent
DATA = {
    "BEIR_DIR": "folder of collections in BEIR layout",
    "ENTAILMENTBANK_DIR": "folder of the EntailmentBank collection",
}
"""What a user may have to bring, by the variable of `make` that names it."""


class Refused(Exception):
    """What was asked for cannot be started; the text says why and what to do, on one line."""


@dataclass(frozen=True)
class Experiment:
    """What a `commands.sh` says.

    Attributes:
        name: of its folder in `experiments/`.
        time: what all commands take together, in words.
        data: what has to be in each folder that the user brings, by variable.
        commands: one line each, as in a shell.
    """

    name: str
    time: str
    data: Mapping[str, Sequence[str]]
    commands: Sequence[str]

    @property
    def question(self) -> str:
        """What its README asks, on one line."""
        readme = (EXPERIMENTS / self.name / "README.md").read_text(encoding="utf-8")
        return first_paragraph(sections(readme)["Question"])


def experiment(name: str) -> Experiment:
    """Reads the `commands.sh` of an experiment."""
    text = (EXPERIMENTS / name / "commands.sh").read_text(encoding="utf-8")
    joined = text.replace("\\\n", " ").splitlines()
    told = [line.removeprefix("# ").split(": ", 1) for line in joined if line.startswith("# ")]
    brought = dict(what.split(" with ") for kind, what in told if kind == "Data")
    data = {variable: needed.split() for variable, needed in brought.items()}
    commands = [" ".join(line.split()) for line in joined if line.strip() and not line.startswith("#")]
    return Experiment(name, dict(told)["Time"], data, commands)


def names() -> list[str]:
    """The experiments that can be made again."""
    return [folder.name for folder in folders() if (folder / "commands.sh").is_file()]


def chosen(name: str, given: Mapping[str, str]) -> Experiment:
    """The experiment of this name, once all that it needs is there.

    Args:
        name: of its folder in `experiments/`.
        given: the user's folders by variable; one that is empty is not given.

    Raises:
        Refused: If there is none of this name, or the data that it needs is not given or not there.
    """
    if name not in names():
        known = name in [folder.name for folder in folders()]
        why = "is kept as it was measured and has no commands.sh" if known else "is no experiment"
        raise Refused(f"NAME={name} {why}; choose from {', '.join(names())}")
    asked = experiment(name)
    for variable, needed in asked.data.items():
        folder, wanted = given.get(variable, ""), ", ".join(needed)
        if not folder:
            raise Refused(
                f"{name} needs {variable}=<{DATA[variable]}, with {wanted}>: "
                f"make reproduce NAME={name} {variable}=<folder>"
            )
        missing = [part for part in needed if not (ROOT / Path(folder).expanduser() / part).exists()]
        if missing:
            raise Refused(f"{variable}={folder} has no {missing[0]}; {name} needs {wanted} in it")
    return asked


def argument_list(command: str, given: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The words of a command, and the variables that are set in front of them, as a shell would have them.

    `$BEIR_DIR` and its like become the user's folders, and `python` the one that runs this.
    """
    words = shlex.split(command)
    filled = [
        re.sub(r"\$(\w+)", lambda found: str(Path(given[found[1]]).expanduser()), word) for word in words
    ]
    n_variables = next(i for i, word in enumerate(filled) if not re.match(r"[A-Z_]+=", word))
    variables = dict(word.split("=", 1) for word in filled[:n_variables])
    program, *rest = filled[n_variables:]
    return [sys.executable if program == "python" else program, *rest], variables


def run(asked: Experiment, given: Mapping[str, str], root: Path = ROOT) -> int:
    """Runs the commands in their order from a folder; returns the exit code of the first that fails, or 0."""
    (root / "outputs" / "reproduce" / asked.name).mkdir(parents=True, exist_ok=True)
    for number, command in enumerate(asked.commands, start=1):
        print(f"\n[{number}/{len(asked.commands)}] {command}", flush=True)
        words, variables = argument_list(command, given)
        code = _exit_code(words, os.environ | variables, root)
        if code:
            print(
                f"reproduce: command {number} of {len(asked.commands)} ended with {code}; "
                "the same make command goes on from there",
                file=sys.stderr,
            )
            return code
    print(f"\nfigures   outputs/reproduce/{asked.name}/\ncompare   experiments/{asked.name}/README.md")
    return 0


def _exit_code(words: Sequence[str], environment: Mapping[str, str], root: Path) -> int:
    """Waits for a command, through signals too: Ctrl-C reaches it by itself, a SIGTERM is passed on."""
    started: list[subprocess.Popen] = []
    handlers = {
        signal.SIGINT: lambda *_: None,
        signal.SIGTERM: lambda *_: [process.terminate() for process in started],
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        started.append(subprocess.Popen(words, cwd=root, env=environment))
        code = started[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code


def listing() -> str:
    """A line for each experiment: its name, the data that it needs, the time that it takes, its question."""
    told = [experiment(name) for name in names()]
    lines = [(asked.name, " ".join(asked.data), asked.time, asked.question) for asked in told]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    shown = [
        "  ".join([*(part.ljust(width) for part, width in zip(line[:3], widths, strict=True)), line[3]])
        for line in lines
    ]
    return "\n".join(["make reproduce NAME=<experiment> [<data>=<folder>], times on 2 CPU cores", "", *shown])


def main(arguments: Sequence[str] | None = None) -> int:
    """Without a name the list; with one its commands, or with `--check` only whether they can start.

    Returns:
        0 where all is done, 2 where it cannot start, else what the command that failed ended with.
    """
    parser = argparse.ArgumentParser(prog="make reproduce", description=__doc__)
    parser.add_argument("name", nargs="?", default="", help="a folder of experiments/")
    parser.add_argument("--check", action="store_true", help="only look whether the commands can start")
    parsed = parser.parse_args(arguments)
    if not parsed.name:
        print(listing())
        return 0
    given = {variable: os.environ.get(variable, "") for variable in DATA}
    try:
        asked = chosen(parsed.name, given)
    except Refused as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 2
    return 0 if parsed.check else run(asked, given)


if __name__ == "__main__":
    sys.exit(main())
