"""This process's command as it was typed, and the one that goes on with what it began."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from search_r3.shipped import IS_CHECKOUT


def command_line() -> str:
    """This process's command, quoted for a shell."""
    return shlex.join([*program(), *sys.argv[1:]])


def program() -> list[str]:
    """What this process's command begins with: how Python was given the module, or the script."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return ["python", "-m", spec.name.removesuffix(".__main__")] if spec else ["python", sys.argv[0]]


def resume_command(folder: Path, keys: Sequence[str] = ()) -> str:
    """The command that goes on with the training run in a folder.

    Args:
        folder: of the run.
        keys: further ones, as `trust=[my_rules]`. Where this process was given `--config-dir`, so is that.
    """
    begin = program()
    if sys.argv[1:2] == ["train"]:
        begin.append("train")  # of the console script
    elif not begin[-1].endswith(".train"):  # a search, whose trials are runs
        begin = ["python", "-m", "src.train" if IS_CHECKOUT else "search_r3.train"]
    configs: list[str] = []
    for place, argument in enumerate(sys.argv):
        if argument in ("--config-dir", "-cd"):
            configs += sys.argv[place : place + 2]
        elif argument.startswith("--config-dir="):
            configs.append(argument)
    return shlex.join([*begin, *configs, f"resume={folder}", *keys])
