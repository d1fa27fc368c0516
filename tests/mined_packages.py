"""Small packages that are mined as installed ones are, and modules of the standard library."""

import random
from itertools import pairwise
from pathlib import Path

import pytest

from search_r3.data.pydocs.docstrings import (
    read_source,
)
from search_r3.data.pydocs.reader import load_pydocs
from search_r3.data.pydocs.settings import STDLIB
from search_r3.data.pydocs.sources import source_files

STDLIB_MODULES = ("argparse", "textwrap", "csv", "statistics", "shutil", "difflib", "email.message", "heapq")
VERBS = "read write parse merge split count filter rotate encode index".split()  # noqa: SIM905
NOUNS = "record matrix header token ledger socket vector frame packet branch".split()  # noqa: SIM905


def write_distribution(site: Path, name: str, version: str, files: dict[str, str]) -> None:
    """An installed distribution as a wheel installer leaves it: files, METADATA and RECORD."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense-Expression: MIT\n"
    )
    for path, source in files.items():
        target = site / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source)
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))


def function_source(seed: int) -> str:
    """A function whose words differ from those of every other seed."""
    verb, noun = VERBS[seed % 10], NOUNS[seed // 10 % 10]
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghij", k=7)) for _ in range(12)]
    body = "\n".join(f"    {left} = {right}({noun}, {seed})" for left, right in pairwise(words))
    return (
        f'def {verb}_{noun}_{seed}({noun}, limit: int = 3) -> list:\n    """{verb.title()} the {noun} of '
        f'ledger number {seed}. More {seed}."""\n{body}\n    return {words[-1]}\n\n\n'
    )


def module_files(package: str, n_modules: int = 60) -> dict[str, str]:
    return {
        f"{package}/m{number}.py": function_source(2 * number) + function_source(2 * number + 1)
        for number in range(n_modules)
    }


def load_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], **options):
    write_distribution(tmp_path / "site", "smallpack", "1.2", files)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    defaults = {"include_stdlib": False, "test_share": 0.3, "validation_share": 0.2, "min_test": 1}
    arguments = {"packages": ["smallpack==1.2"], "cache_dir": tmp_path / "cache"} | defaults | options
    return load_pydocs(**arguments)


def stdlib_sources() -> dict[str, str]:
    files = {file.module: file.path for file in source_files(STDLIB)}
    return {module: read_source(Path(files[module]).read_bytes()) for module in STDLIB_MODULES}
