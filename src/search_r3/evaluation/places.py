"""Where an evaluation writes, and the rows that earlier ones have written there.

Every evaluation has a folder of its own, `<output_dir>/<benchmark>/<mode>`. Where another one (other weights,
settings, judgements or documents) has that folder already, it is `<mode>-<hash>`, the hash being of all that
the evaluation depends on. Nothing that another evaluation wrote is ever replaced.
"""

import itertools
import json
import logging
import os
import posixpath
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from search_r3.errors import UsageError
from search_r3.evaluation.modes import MODES
from search_r3.evaluation.results import FILES, ROW_FILE, check_files, checked_row, read_row
from search_r3.files import json_sha256
from search_r3.records import RecordError, checked, read_json

PARTIAL = ".partial"
_UNSAFE = re.compile(r'[<>:"\\|?*%]|[. ]+$')  # what some file system cannot have in a name, and our own %
_RESERVED = frozenset({"metrics.json", "metrics.png", "config.yaml", "provenance.json", "status.json"})
_LONGEST = 150
log = logging.getLogger(__name__)


class PlaceError(UsageError, ValueError):
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
    return json_sha256(content)[:8]


@dataclass(frozen=True)
class Place:
    """Where an evaluation stands.

    Attributes:
        folder: of the evaluation.
        row: that it has written there, with files that are as they were written; None where it is to be done.
        problem: why what lies in the folder cannot be used; empty where nothing does, or it is in order.
    """

    folder: Path
    row: dict | None = None
    problem: str = ""


def place_of(output_dir: Path, benchmark: str, mode: str, key: Mapping) -> Place:
    """The folder of an evaluation, and what it has written there.

    A folder in which nothing but files of an evaluation lie, and which is damaged, is taken for this one's:
    what is in it is kept when it is replaced.

    Args:
        output_dir: of the command.
        benchmark: its name.
        mode: one of `MODES`.
        key: all that the row depends on; `version` says which form the row has.

    Raises:
        PlaceError: If neither the folder nor the one with the hash may be taken.
    """
    root = output_dir / folder_name(benchmark)
    root = root.with_name(_told_apart(root, benchmark))
    facts = json.loads(json.dumps(key))
    version = facts.pop("version")
    folders = (root / mode, root / f"{mode}-{_digest(facts)}")
    places = [place for folder in folders if (place := _place_at(folder, facts, version)) is not None]
    if not places:
        raise PlaceError(f"{folders[-1]} holds something else than an evaluation; give another output_dir=")
    return next((place for place in places if place.row is not None), places[0])


def _place_at(folder: Path, facts: Mapping, version: int) -> Place | None:
    """The evaluation of these facts in a folder; None where something else is in there."""
    earlier = folder.with_name(f"{folder.name}.old{PARTIAL}")
    if earlier.is_dir() and not os.path.lexists(folder):
        earlier.rename(folder)  # killed while it was replaced
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return Place(folder)
    try:
        written = read_row(folder)
    except RecordError as error:
        return Place(folder, problem=str(error)) if _is_left_by_evaluation(folder) else None
    known = dict(written["key"])
    its_version = known.pop("version", None)
    if its_version != version:
        is_older = all(facts.get(name) == value for name, value in known.items())
        return Place(folder, problem=f"{folder / ROW_FILE}: is of an older form") if is_older else None
    if known != facts:
        return None
    try:
        check_files(folder, written)
    except RecordError as error:
        return Place(folder, problem=str(error))
    return Place(folder, written["row"])


def _is_left_by_evaluation(folder: Path) -> bool:
    """Whether a folder holds files of an evaluation and nothing else."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return set(os.listdir(folder)) <= {ROW_FILE, *FILES}


def kept_folder(folder: Path) -> Path:
    """Moves a folder that will be replaced to `<name>_before_<n>` beside it, and returns that."""
    numbered = (folder.with_name(f"{folder.name}_before_{number}") for number in itertools.count(1))
    target = next(path for path in numbered if not os.path.lexists(path))
    folder.rename(target)
    return target


def _told_apart(folder: Path, benchmark: str) -> str:
    """The folder's name; with a hash where a sibling's differs by case only, as `ArguAna` and `arguana`."""
    siblings = os.listdir(folder.parent) if folder.parent.is_dir() else ()
    if any(name != folder.name and name.casefold() == folder.name.casefold() for name in siblings):
        return f"{folder.name}~{_digest(benchmark)}"
    return folder.name


def rows_on_disk(output_dir: Path) -> list[dict]:
    """Rows of all evaluations in an output folder, each with its `folder` in there; the oldest first.

    So a row is known though the command was killed before it had written metrics.json. A `row.json` that is
    damaged is told and left out.
    """
    found = []
    patterns = ("*/*/**", "*/**/*")  # a benchmark's name may have any number of slashes; only * follows links
    files = {file for pattern in patterns for file in output_dir.glob(f"{pattern}/{ROW_FILE}")}
    for file in sorted(files):
        place = file.parent.relative_to(output_dir).as_posix()
        if re.search(r"_before_[0-9]+$", place) or place.endswith(PARTIAL):
            continue
        try:
            row = read_row(file.parent)["row"]
        except RecordError as error:
            log.warning("left out of the table: %s", error)
            continue
        if _is_place_of(place, row):
            found.append((file.stat().st_mtime, place, {**row, "folder": place}))
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
    if not os.path.lexists(metrics_file):
        return []
    try:
        content = read_json(metrics_file)
        rows = checked(metrics_file, content, "rows", lambda rows: isinstance(rows, list), "a list")
        rows = [dict(checked_row(row, metrics_file, f"rows[{n}]")) for n, row in enumerate(rows)]
        if "training" in content or not all("ci95" in row for row in rows):
            raise RecordError(metrics_file, "holds rows of a training run")
    except RecordError as error:
        raise PlaceError(
            f"{metrics_file} is there and is none that src.evaluate wrote, so no rows are added to it "
            f"({error.problem}); give another output_dir= or metrics_file=, or move the file away: the rows "
            "of this folder are read from beside it"
        ) from None
    for row in rows:
        row.setdefault("folder", f"{row['benchmark']}/{row['mode']}")
        for name in ("command", "commit", "seed"):
            row.setdefault(name, content.get(name))
    return rows


def added(earlier: Sequence[Mapping], new: Sequence[Mapping]) -> list[dict]:
    """The earlier rows, without those of folders that the new ones are of, and then the new ones."""
    folders = {row["folder"] for row in new}
    return [dict(row) for row in earlier if row["folder"] not in folders] + [dict(row) for row in new]


def with_rows_on_disk(rows: Sequence[Mapping], on_disk: Sequence[Mapping], file: Path) -> list[dict]:
    """Rows of a table with those that lie beside it: first the ones that it lacks, then its own.

    Where both have a folder's row, the one beside the table is taken, which has a checksum; a difference is
    told.

    Args:
        rows: of the table.
        on_disk: what `rows_on_disk` found.
        file: the table, for the message.
    """
    beside = {row["folder"]: dict(row) for row in on_disk}
    known = {row["folder"] for row in rows}
    for row in rows:
        other = beside.get(row["folder"], row)
        if any(other.get(name, value) != value for name, value in row.items()):
            log.warning(
                "%s: the row of %s is not as %s has it, and is taken from there",
                file,
                row["folder"],
                ROW_FILE,
            )
    lacking = [row for folder, row in beside.items() if folder not in known]
    return [*lacking, *(beside.get(row["folder"], dict(row)) for row in rows)]
