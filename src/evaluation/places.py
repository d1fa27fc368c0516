"""Where an evaluation writes, and the rows that earlier ones have written there.

Every evaluation has a folder of its own, `<output_dir>/<benchmark>/<mode>`. Where another one (other weights,
settings, judgements or documents) has that folder already, it is `<mode>-<hash>`, the hash being of all that
the evaluation depends on. Nothing that another evaluation wrote is ever replaced.
"""

import hashlib
import json
import os
import posixpath
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from src.evaluation.modes import MODES

ROW_FILE = "row.json"
PARTIAL = ".partial"
_UNSAFE = re.compile(r'[<>:"\\|?*%]|[. ]+$')  # what some file system cannot have in a name, and our own %
_RESERVED = frozenset({"metrics.json", "metrics.png", "config.yaml", "provenance.json", "status.json"})
_LONGEST = 150


class PlaceError(ValueError):
    """What is already at the place where an evaluation would write cannot be read, or is something else."""


def collection_path(name: str) -> str:
    """A collection's path inside `beir_dir`, in one way of writing it: this is its name.

    Raises:
        ValueError: If it leads outside, or nowhere.

    >>> collection_path("./cqadupstack//android/")
    'cqadupstack/android'
    """
    path = posixpath.normpath(name)
    if path.startswith(("/", "../")) or path in (".", ".."):
        raise ValueError(f"{name!r} is no folder inside beir_dir; name one as in benchmarks=[scifact]")
    return path


def folder_name(benchmark: str) -> str:
    """A benchmark's name as a path below the output folder: slashes stay, unsafe characters are encoded.

    No part of it after the first is called as a mode's folder may be, and none of them as a file of the run.

    >>> folder_name("cqadupstack/android"), folder_name("what?"), folder_name("a/bm25")
    ('cqadupstack/android', 'what%3F', 'a/%62m25')
    """
    parts = [_part(part) for part in benchmark.split("/")]
    for number, part in enumerate(parts):
        is_mode = number > 0 and any(part == mode or part.startswith(f"{mode}-") for mode in MODES)
        if is_mode or part.casefold() in _RESERVED or part.casefold().endswith((PARTIAL, ".log")):
            parts[number] = f"%{ord(part[0]):02x}{part[1:]}"
    return "/".join(parts)


def _part(text: str) -> str:
    text = _UNSAFE.sub(lambda match: "".join(f"%{ord(one):02X}" for one in match[0]), text)
    # file systems differ in whether they tell composed characters from decomposed ones
    safe = "".join(
        one if one.isprintable() and unicodedata.is_normalized("NFC", one) else quote(one, safe="")
        for one in text
    )
    if not unicodedata.is_normalized("NFC", safe):
        safe = quote(safe, safe="%")
    if len(safe.encode()) > _LONGEST:
        safe = f"{safe.encode()[:_LONGEST].decode(errors='ignore')}~{_digest(text)}"
    return safe or "%"


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def place_of(output_dir: Path, benchmark: str, mode: str, key: Mapping) -> tuple[Path, dict | None]:
    """The folder of an evaluation, and the row that it has written there.

    Args:
        output_dir: of the command.
        benchmark: its name.
        mode: one of `MODES`.
        key: all that the row depends on; `version` says which form the row has.

    Returns:
        The folder, and the row; None where the folder is not there, or holds the row in an older form.

    Raises:
        PlaceError: If neither the folder nor the one with the hash may be taken.
    """
    root = output_dir / folder_name(benchmark)
    root = root.with_name(_told_apart(root, benchmark))
    facts = json.loads(json.dumps(key))
    version = facts.pop("version")
    folders = (root / mode, root / f"{mode}-{_digest(facts)}")
    for folder in folders:
        if not folder.exists():
            return folder, None
        written = _written(folder)
        if written is None:
            continue
        known = dict(written["key"])
        its_version = known.pop("version", None)
        if known == facts or (its_version != version and all(facts.get(k) == v for k, v in known.items())):
            return folder, written["row"] if its_version == version else None
    raise PlaceError(f"{folders[-1]} holds something else than an evaluation; give another output_dir=")


def _told_apart(folder: Path, benchmark: str) -> str:
    """The folder's name; with a hash where a sibling's differs by case only, as `ArguAna` and `arguana`."""
    siblings = os.listdir(folder.parent) if folder.parent.is_dir() else ()
    if any(name != folder.name and name.casefold() == folder.name.casefold() for name in siblings):
        return f"{folder.name}~{_digest(benchmark)}"
    return folder.name


def _written(folder: Path) -> dict | None:
    """What `row.json` holds; None where the folder is none of an evaluation that came to its end."""
    try:
        written = json.loads((folder / ROW_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_whole = isinstance(written, dict) and isinstance(written.get("key"), dict) and "row" in written
    return written if is_whole else None


def rows_on_disk(output_dir: Path) -> list[dict]:
    """Rows of all evaluations in an output folder, each with its `folder` in there; the oldest first.

    So a row is known though the command was killed before it had written metrics.json.
    """
    found = []
    for depth in (2, 3, 4):
        for file in output_dir.glob("/".join(["*"] * depth) + f"/{ROW_FILE}"):
            written = _written(file.parent)
            place = file.parent.relative_to(output_dir).as_posix()
            if written and _is_place_of(place, written["row"]):
                found.append((file.stat().st_mtime, place, {**written["row"], "folder": place}))
    return [row for _, _, row in sorted(found, key=lambda one: one[:2])]


def _is_place_of(place: str, row: Mapping) -> bool:
    root, _, leaf = place.rpartition("/")
    is_leaf = re.fullmatch(rf"{re.escape(row['mode'])}(-[0-9a-f]{{8}})?", leaf)
    return bool(
        is_leaf and re.fullmatch(rf"{re.escape(folder_name(row['benchmark']))}(~[0-9a-f]{{8}})?", root)
    )


def seen_from(place: Path, folder: Path | str) -> str:
    """The relative path from one folder to another, with slashes."""
    return Path(os.path.relpath(folder, place)).as_posix()


def earlier_rows(metrics_file: Path) -> list[dict]:
    """Rows that a metrics.json of evaluations holds; none where there is no file.

    A row from before rows said so gets the folder and the origin that it had then.

    Raises:
        PlaceError: If the file is something else, which must not be replaced.
    """
    if not metrics_file.exists():
        return []
    try:
        content = json.loads(metrics_file.read_text(encoding="utf-8"))
        rows = [dict(row) for row in content["rows"]]
        is_ours = "training" not in content and all("ci95" in row for row in rows)
    except (OSError, ValueError, TypeError, KeyError):
        is_ours = False
    if not is_ours:
        raise PlaceError(
            f"{metrics_file} is there and is none that src.evaluate wrote, so no rows are added to it; give "
            "another output_dir= or metrics_file="
        )
    for row in rows:
        row.setdefault("folder", f"{row['benchmark']}/{row['mode']}")
        for name in ("command", "commit", "seed"):
            row.setdefault(name, content.get(name))
    return rows


def added(earlier: Sequence[Mapping], new: Sequence[Mapping]) -> list[dict]:
    """The earlier rows, without those of folders that the new ones are of, and then the new ones."""
    folders = {row["folder"] for row in new}
    return [dict(row) for row in earlier if row["folder"] not in folders] + [dict(row) for row in new]
