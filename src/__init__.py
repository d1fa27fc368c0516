"""Launchers: `python -m src.train` runs `search_r3.train` of the package that `make setup` installs."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path


def launch(name: str) -> None:
    """Runs a command of the package and ends the process; refuses where the package is not this checkout's.

    Args:
        name: of the module below `search_r3`.
    """
    here = Path(__file__).resolve().parent
    spec = importlib.util.find_spec("search_r3")
    if spec is None or spec.origin is None:
        found = f"{sys.executable} has no search_r3"
    elif Path(spec.origin).resolve() != here / "search_r3" / "__init__.py":
        found = f"{sys.executable} has the search_r3 of {Path(spec.origin).parent}"
    else:
        main = importlib.import_module(f"search_r3.{name}").main
        importlib.import_module("search_r3.cli.last_resort").run_command(main)
    python = os.path.relpath(here.parent / ".venv" / "bin" / "python")
    sys.exit(f"error: {found}. Install this checkout, `make setup`, and run {python} -m src.{name} ...")
