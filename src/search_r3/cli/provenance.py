"""What makes a number reproducible, and the table of numbers that says it: `metrics.json`."""

import contextlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from search_r3.cli.command_line import command_line
from search_r3.files import write_json
from search_r3.shipped import IS_CHECKOUT, ROOT

SOURCES = ("src", "conf", "pyproject.toml", "requirements.lock")
"""What a number depends on: where one of these differs from the commit, the commit is `-dirty`."""
PACKAGES = (
    "torch",
    "pytorch-lightning",
    "transformers",
    "tokenizers",
    "peft",
    "faiss-cpu",
    "bm25s",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
    "numpy",
)
"""Those whose versions are recorded."""
ROW_KEYS = ("benchmark", "mode", "model", "n_queries", "n_docs", "metrics")
"""Of a row of metrics.json, those that every row has."""


def provenance(command: str | None = None, seed: int | None = None) -> dict:
    """What makes a number reproducible: the first keys of metrics.json.

    Args:
        command: as the user typed it; this process's command line where None.
        seed: of the run; None where it has none.
    """
    return {
        "command": command or command_line(),
        "commit": commit(),
        "seed": seed,
        "python": platform.python_version(),
        "packages": versions_of(PACKAGES),
    }


def commit() -> str:
    """Commit of this checkout, with `-dirty` where a source, a config or the lock differs from it.

    An installed wheel says its version instead.
    """
    if not IS_CHECKOUT:
        return f"search-r3 {importlib.metadata.version('search-r3')}"

    def git(*arguments: str) -> str | None:
        try:
            answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        except FileNotFoundError:
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    if head is None:
        return "unknown"
    return f"{head}-dirty" if git("status", "--porcelain", "--", *SOURCES) else head


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The version of each of some packages that is installed."""
    versions = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def write_metrics(
    path: Path, rows: Sequence[Mapping], origin: Mapping, training: Mapping | None = None
) -> None:
    """Writes metrics.json.

    Args:
        path: the file.
        rows: one per benchmark and mode; `benchmark, mode, model, n_queries, n_docs, metrics` are required.
        origin: what `provenance` returned.
        training: facts about a training run that belong to no row, under a key of this name.

    Raises:
        ValueError: If a row misses a key, or a number is NaN or infinite.
    """
    for row in rows:
        missing = [key for key in ROW_KEYS if key not in row]
        if missing:
            raise ValueError(f"a row of {path} misses {', '.join(missing)}: {dict(row)}")
    keys = ("command", "commit", "seed", "python", "packages")
    content = {key: origin[key] for key in keys} | {"rows": [dict(row) for row in rows]}
    write_json(path, content | ({"training": dict(training)} if training else {}))
