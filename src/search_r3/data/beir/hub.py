"""Public collections from the Hugging Face hub: fetched at a pinned revision, written once in BEIR layout.

The hub keeps them in several layouts: `corpus.jsonl`, or parquet files in `corpus/`; judgements as
`qrels/<split>.jsonl`, `.tsv` or parquet, there or in a data set of their own. BRIGHT has `documents/` and
`examples/`, whose rows hold a query, the ids of its gold documents, and of those to leave out. What is
fetched stays in the hub's own cache (HF_HOME), where HF_HUB_OFFLINE=1 finds it; what is evaluated is the
folder that is written from it.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from search_r3.data.beir.hub_sources import BRIGHT, SOURCES
from search_r3.data.beir.qrels import EXCLUDED
from search_r3.data.jsonl import DAMAGED_GZIP, DataError, checked_text, numbered_lines, parse_object
from search_r3.errors import UsageError, first_line
from search_r3.folders import empty_part, give_name
from search_r3.records import clipped, shown

_ROWS = ("{}.jsonl", "{}.jsonl.gz", "{}/*.jsonl", "{}/*.parquet")
_JUDGED = ("qrels/*.tsv", "*.tsv", "qrels/*.jsonl", "qrels/*.parquet", "data/*.parquet", "default/*.parquet")
_NONE = "N/A"
"""What BRIGHT writes where no document is left out."""
_AT_ONCE = 1024
"""Rows of a parquet file that are in memory."""


class HubError(UsageError):
    """A collection cannot be had from the hub; the message says why.

    Attributes:
        is_unreachable: whether the hub did not answer at all, so that it need not be asked again.
    """

    is_unreachable = False


def from_hub(name: str, root: str | Path, copy: Path | None = None, is_offline: bool = False) -> Path:
    """The folder in BEIR layout of a collection of `SOURCES`; it is fetched where it is not there.

    Args:
        name: as "scifact", "cqadupstack/gis" or "bright/biology".
        root: where such folders are; one is named after the collection and its revision.
        copy: of the data set, which is read instead of the hub's.
        is_offline: takes what is in the hub's cache and asks nobody.

    Raises:
        HubError: If the hub cannot be reached, or does not have the files.
        DataError: If a row is not of the expected form.
    """
    source = SOURCES[name]
    where = source.revision if copy is None else hashlib.sha256(str(copy.absolute()).encode()).hexdigest()
    target = Path(root) / f"{name.replace('/', '_')}@{where[:12]}"
    if (target / "qrels").is_dir():
        return target
    if name in BRIGHT:
        kind, _, task = name.partition("/")
        documents = "documents" if kind == "bright" else "long_documents"
        wanted = [f"{documents}/{task}-*", f"examples/{task}-*"]
        fetched = copy or _fetched(source.repository, source.revision, wanted, is_offline)
        return written(target, bright_files(fetched, task, documents))
    rows = [pattern.format(kind) for kind in ("corpus", "queries") for pattern in _ROWS]
    fetched = _fetched(source.repository, source.revision, [*rows, *_JUDGED], is_offline)
    judged = fetched
    if source.judgements is not None:
        judged = _fetched(*source.judgements, [*_JUDGED], is_offline)
    return written(target, beir_files(fetched, judged))


def _fetched(repository: str, revision: str, patterns: list[str], is_offline: bool) -> Path:
    """The files of a data set at a commit, in the hub's cache.

    Raises:
        HubError: If they are not there and cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells each of its attempts
    try:
        folder = snapshot_download(
            repository,
            repo_type="dataset",
            revision=revision,
            allow_patterns=patterns,
            local_files_only=is_offline,
        )
    except (
        HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, OSError, ValueError,
    ) as error:  # fmt: skip
        reason = clipped(first_line(error), 160)
        told = HubError(f"{repository} at {revision[:12]} cannot be fetched ({reason})")
        told.is_unreachable = getattr(error, "response", None) is None
        raise told from error
    return Path(folder)


def written(target: Path, files: Mapping[str, Iterable[str]]) -> Path:
    """Writes a collection's files, whole or not at all, line by line.

    Args:
        target: its folder.
        files: lines by path in the folder.
    """
    part = empty_part(target)
    for name, lines in files.items():
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        with (part / name).open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
    give_name(part, target)
    return target


def beir_files(source: Path, judged: Path) -> dict[str, Iterable[str]]:
    """Lines of a collection in BEIR layout, of what the hub has of it.

    Args:
        source: with the documents and queries.
        judged: with the judgements, the same folder or another one.

    Raises:
        HubError: If a kind of file is not there.
    """
    splits: dict[str, list[Path]] = {}
    for file in _found(judged, _JUDGED, "judgements"):
        splits.setdefault(file.name.partition(".")[0].partition("-0")[0], []).append(file)
    return {
        "corpus.jsonl": (_document(row, file) for file, row in _rows(source, "corpus")),
        "queries.jsonl": (_query(row, file) for file, row in _rows(source, "queries")),
        **{f"qrels/{split}.tsv": _judgements(files) for split, files in splits.items()},
    }


def bright_files(source: Path, task: str, documents: str = "documents") -> dict[str, Iterable[str]]:
    """Lines of a collection in BEIR layout with `excluded.tsv`, of a snapshot of BRIGHT.

    Args:
        source: the snapshot.
        task: as "biology".
        documents: or "long_documents", whose gold ids are others.

    Raises:
        HubError: If a file is not there.
        DataError: If a row is not of the expected form.
    """
    gold = "gold_ids" if documents == "documents" else "gold_ids_long"
    files = _found(source, (f"{documents}/{task}-*",), f"{documents} of {task}")
    examples = []
    for file in _found(source, (f"examples/{task}-*",), f"examples of {task}"):
        for row in _read(file):
            if not all(isinstance(row.get(name), list) for name in (gold, "excluded_ids")):
                raise DataError(file, 0, f"an example must have lists {gold} and excluded_ids")
            examples.append({**row, "text": row.get("query")} | {"file": file})
    judged = (f"{row['id']}\t{name}\t1" for row in examples for name in dict.fromkeys(row[gold]))
    out = (
        f"{row['id']}\t{name}"
        for row in examples
        for name in dict.fromkeys(row["excluded_ids"])
        if name != _NONE
    )
    return {
        "corpus.jsonl": (
            _document({"id": row.get("id"), "text": row.get("content")}, file)
            for file in files
            for row in _read(file)
        ),
        "queries.jsonl": (_query(row, row["file"]) for row in examples),
        "qrels/test.tsv": ["query-id\tcorpus-id\tscore", *judged],
        EXCLUDED: ["query-id\tcorpus-id", *out],
    }


def _found(folder: Path, patterns: Iterable[str], what: str) -> list[Path]:
    """The files of the first pattern that there are files of.

    Raises:
        HubError: If there are none.
    """
    for pattern in patterns:
        if files := sorted(folder.glob(pattern)):
            return files
    raise HubError(f"{folder}: there are no {what} ({', '.join(patterns)})")


def _rows(folder: Path, kind: str) -> Iterator[tuple[Path, dict]]:
    for file in _found(folder, [pattern.format(kind) for pattern in _ROWS], kind):
        for row in _read(file):
            yield file, row


def _read(file: Path) -> Iterator[dict]:
    """Rows of a file of JSON lines, or of parquet, of which a part is in memory."""
    if file.suffix == ".parquet":
        from pyarrow.lib import ArrowException
        from pyarrow.parquet import ParquetFile

        try:
            for batch in ParquetFile(file).iter_batches(_AT_ONCE):
                yield from batch.to_pylist()
        except (ArrowException, OSError) as error:
            raise DataError(file, 0, f"no whole parquet file ({clipped(error)})") from error
        return
    try:
        for line, text in numbered_lines(file):
            yield parse_object(text, file, line)
    except DAMAGED_GZIP as error:
        raise DataError(file, 0, f"the gzip stream is damaged ({clipped(error)})") from error


def _id(row: Mapping, file: Path) -> str:
    """The id of a document or query, as a text that can stand in a table."""
    value = row.get("_id", row.get("id"))
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(file, 0, f"a row must have an _id or id, got {shown(value)}")
    if any(character in str(value) for character in "\t\r\n"):
        raise DataError(file, 0, f"an id must not hold tabs or line ends, got {shown(value)}")
    return checked_text(str(value), "an id", file, 0)


def _text(row: Mapping, key: str, file: Path) -> str:
    """The text under a key; empty where the row has none."""
    return checked_text(row.get(key) or "", f"{key!r} of {shown(_id(row, file))}", file, 0, may_be_empty=True)


def _document(row: Mapping, file: Path) -> str:
    return json.dumps(
        {"_id": _id(row, file), "title": _text(row, "title", file), "text": _text(row, "text", file)},
        ensure_ascii=False,
    )


def _query(row: Mapping, file: Path) -> str:
    return json.dumps({"_id": _id(row, file), "text": _text(row, "text", file)}, ensure_ascii=False)


def _judgements(files: Iterable[Path]) -> Iterator[str]:
    """Lines of a file of judgements; a tab-separated one stays as it is."""
    yield "query-id\tcorpus-id\tscore"
    for file in files:
        if file.suffix == ".tsv":
            lines = (text for _, text in numbered_lines(file))
            yield from (text for text in lines if text.split("\t")[0].strip() != "query-id")
            continue
        for row in _read(file):
            query, document, grade = (row.get(name) for name in ("query-id", "corpus-id", "score"))
            is_whole = isinstance(grade, int) or (isinstance(grade, float) and grade.is_integer())
            if query is None or document is None or not is_whole:
                raise DataError(
                    file, 0, f"a judgement must have query-id, corpus-id and score: {shown(str(row))}"
                )
            yield f"{query}\t{document}\t{int(grade)}"
