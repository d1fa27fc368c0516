"""A good collection in BEIR layout, some of whose files a test replaces."""

import gzip
import json
from pathlib import Path

CORPUS = [
    {"_id": "d1", "title": "Wings", "text": "lift of a wing"},
    {"_id": "d2", "title": "", "text": "größe ☃ of\ta snowman"},
    {"_id": "d3", "text": "no title here"},
    {"_id": "d4", "title": "Only a title", "text": ""},
]
QUERIES = [{"_id": f"q{number}", "text": f"query number {number}", "metadata": {}} for number in range(40)]


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def qrels(rows: list[tuple[str, str, int]]) -> str:
    return "query-id\tcorpus-id\tscore\n" + "".join(f"{q}\t{d}\t{grade}\n" for q, d, grade in rows)


def write_collection(folder: Path, compressed: bool = False, **files: str) -> Path:
    """A good collection, some of whose files are replaced: `corpus`, `queries`, or the name of a split."""
    contents = {
        "corpus": lines(CORPUS),
        "queries": lines(QUERIES),
        "train": qrels(
            [(f"q{number}", "d1", 1) for number in range(30)] + [("q0", "d3", 2), ("q0", "d2", 0)]
        ),
        "test": qrels([("q30", "d1", 2), ("q30", "d2", 1), ("q31", "d3", 0)]),
    } | files
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        path = folder / f"{name}.jsonl" if name in ("corpus", "queries") else folder / "qrels" / f"{name}.tsv"
        raw = text.encode("utf-8", "surrogateescape")
        if compressed:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(raw))
        else:
            path.write_bytes(raw)
    return folder


UNMATCHED = {
    "test": qrels(
        [("q30", "d1", 1), ("q30", "gone", 2), ("q31", "lost", 1), ("q32", "d2", 1), ("q99", "d1", 1)]
    )
}
"""Judgements of documents and of queries that the collection lacks."""
