"""A mined data set on disk: rows by split, running text, word counts, the card, and the sum of each file."""

import fcntl
import json
import os
import shutil
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from search_r3.data.cold_start import count_words
from search_r3.data.pydocs.card import card_of, card_text, package_facts
from search_r3.data.pydocs.mining import (
    first_of_each_id,
    mine,
    normal,
    paired,
    row_of,
    running_texts,
    without_duplicates,
)
from search_r3.data.pydocs.settings import SPLITS, STDLIB, Settings
from search_r3.data.pydocs.sources import source_files
from search_r3.files import file_sha256, removal

SUMS = "SHA256SUMS"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, which is made if it is missing; another process waits."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def build(
    folder: Path,
    name: str,
    pinned: Mapping[str, str],
    installed: Mapping[str, str],
    settings: Settings,
    workers: int,
) -> None:
    """Mines and writes a cache folder; it appears under its name only when it is complete.

    Called while the lock of the folder around it is held, so what another mining left unfinished is dead.
    """
    started = time.perf_counter()
    packages = ([STDLIB] if settings.include_stdlib else []) + list(settings.packages)
    files = [file for package in packages for file in source_files(package)]
    records, skipped = mine(files, workers)
    kept, duplicates = without_duplicates(first_of_each_id(records), settings)
    pairs, dropped = paired(kept, settings)
    facts = {
        "packages": package_facts(pinned, installed, settings),
        "files": len(files),
        "files_skipped": skipped,
        "functions": len(records),
        "near_duplicates_removed": duplicates,
        "pairs_dropped": dropped,
    }
    building = folder.with_name(f"{folder.name}.partial")
    for left in (building, *folder.parent.glob(f".{folder.name}-*")):  # hidden ones are of earlier versions
        shutil.rmtree(left, ignore_errors=True)
    building.mkdir()
    try:
        for split in SPLITS:
            _write_lines(building / f"{split}.jsonl", (row_of(record) for record in pairs[split]))
        held_out = {normal(record.function.query) for record in pairs["test"] + pairs["validation"]}
        by_id = sorted(kept["train"], key=lambda record: record.id)
        n_texts = _write_texts(building, running_texts(by_id, held_out, settings.include_undocumented))
        counts = count_words(record.function.document for record in pairs["train"])
        (building / "word_counts.json").write_text(json.dumps(counts))
        seconds = round(time.perf_counter() - started, 1)
        card = card_of(name, settings, pairs, n_texts) | facts | {"seconds": seconds}
        (building / "card.md").write_text(card_text(card))
        (building / "card.json").write_text(json.dumps(card, indent=1))
        _write_sums(building)
        os.rename(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_lines(path: Path, rows: Iterable[object]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def _write_texts(folder: Path, texts: Iterable[str]) -> int:
    offsets = array("Q")
    with (folder / "texts.jsonl").open("wb") as file:
        for text in texts:
            offsets.append(file.tell())
            file.write(json.dumps(text).encode() + b"\n")
    (folder / "texts.offsets").write_bytes(offsets.tobytes())
    return len(offsets)


def _write_sums(folder: Path) -> None:
    """A line per file, as `sha256sum` writes them."""
    lines = [f"{file_sha256(file)}  {file.name}\n" for file in sorted(folder.iterdir())]
    (folder / SUMS).write_text("".join(lines))


def check_sums(folder: Path) -> None:
    """Compares every file of a cache with its sum.

    Raises:
        ValueError: If one is damaged or missing.
    """
    remedy = f"remove the cache, and the next call mines it anew: {removal(folder)}"
    try:
        pairs = [line.split("  ", 1) for line in (folder / SUMS).read_text(encoding="utf-8").splitlines()]
        sums = {name: digest for digest, name in pairs}
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / SUMS}: cannot be read ({error}); {remedy}") from error
    for name in _NAMES:
        try:
            is_whole = sums.get(name) == file_sha256(folder / name)
        except OSError as error:
            raise ValueError(f"{folder / name}: cannot be read ({error.strerror}); {remedy}") from error
        if not is_whole:
            raise ValueError(f"{folder / name}: is damaged, its SHA-256 is not the one in {SUMS}; {remedy}")


_NAMES = (
    *(f"{split}.jsonl" for split in SPLITS),
    "texts.jsonl",
    "texts.offsets",
    "word_counts.json",
    "card.json",
)
"""The files of a cache that are read."""


def read_lines(path: Path) -> list[dict[str, str]]:
    """The rows of a split."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
