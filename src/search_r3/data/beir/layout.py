"""Collections in BEIR layout: `corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv`, each plain or with `.gz`.

A document is its title and its text joined by one space, as in BEIR and mteb. Every row of every file is
checked when a collection is opened; a bad one is a `DataError` with file, line and rule, and nothing is
repaired.
"""

import os
from pathlib import Path

from search_r3.data.jsonl import DataError

# the data sets whose documents may be their own queries, and where mteb ignores equal ids; none of NanoBEIR
SELF_MATCH_REMOVED = frozenset({"arguana", "fiqa", "fiqa2018", "quora", "fever", "msmarco"})


def collection_name(path: str | Path) -> str:
    """What a collection is called: the last part of its path as it is written.

    A symbolic link keeps its own name, whatever it points to. Where the path ends in no name, that of the
    folder is taken: `.` is the working folder, as the shell calls it.

    Raises:
        DataError: If the folder has no name either, as `/`.

    >>> collection_name("beir/arguana/")
    'arguana'
    """
    name = Path(path).name
    if name == "" and not Path(path).is_absolute():
        shell = Path(os.environ.get("PWD", "/"))  # the system knows the working folder by its target only
        name = (shell if shell.is_dir() and os.path.samefile(shell, ".") else Path.cwd()).name
    elif name == "..":
        name = Path(path).resolve().name
    if not name:
        raise DataError(path, 0, "this folder has no name to call the collection by; give name=")
    return name


def removes_self_match(name: str) -> bool:
    """Whether mteb ignores a document whose id equals the query's id on the data set of this name.

    Of a name with slashes the last part counts.
    """
    plain = name.rpartition("/")[2].casefold().replace("-", "").replace("_", "").removesuffix("retrieval")
    return plain in SELF_MATCH_REMOVED


def available_splits(folder: Path) -> list[str]:
    """Names of the files of judgements in a folder."""
    names = (path.name for path in (folder / "qrels").glob("*.tsv*"))
    return sorted({name.split(".tsv")[0] for name in names if name.endswith((".tsv", ".tsv.gz"))})


def file_in(folder: Path, name: str) -> Path:
    """The plain or the compressed file of this name; the plain one where both are missing, for the error."""
    if not folder.is_dir():
        raise DataError(folder, 0, "no such folder; a folder in BEIR layout is needed")
    compressed = folder / f"{name}.gz"
    return compressed if compressed.is_file() and not (folder / name).is_file() else folder / name


def qrels_file(folder: Path, split: str) -> Path:
    if split not in available_splits(folder):
        found = ", ".join(available_splits(folder)) or "none"
        raise DataError(
            folder / "qrels" / f"{split}.tsv", 0, f"no such split; splits of this folder: {found}"
        )
    return file_in(folder / "qrels", f"{split}.tsv")
