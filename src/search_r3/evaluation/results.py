"""The files of an evaluation, read back: every one is checked before a number of it is used.

`row.json` holds the row, what it depends on, size and SHA-256 of each file beside it, and a SHA-256 of all
that. An evaluation from before hashes were written has none; its files must then have the ids and counts that
the row says, finite numbers, and scores that are those of the rankings, whose mean is the row's.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from search_r3.data.jsonl import DataError, numbered_lines, parse_object
from search_r3.evaluation.metrics import METRICS, per_query_metrics
from search_r3.evaluation.modes import MODES
from search_r3.evaluation.trec import read_qrels, read_run
from search_r3.files import file_sha256, json_sha256, json_text, write_text
from search_r3.records import RecordError, read_json, shown, shown_names

ROW_FILE = "row.json"
PER_QUERY, REASONING, RUN, QRELS = "per_query.jsonl", "reasoning.jsonl", "run.trec", "qrels.trec"
FILES = (RUN, QRELS, PER_QUERY, REASONING)
REMEDY = "evaluate it again, with the same output_dir="


def sealed(folder: Path, key: Mapping, row: Mapping) -> None:
    """Writes `row.json`, last of all files of an evaluation: with it the folder is one."""
    files = {name: _facts(folder / name) for name in FILES if (folder / name).is_file()}
    content = {"key": dict(key), "row": dict(row), "files": files}
    write_text(folder / ROW_FILE, json_text(content | {"sha256": json_sha256(content)}))


def _facts(file: Path) -> dict:
    return {"bytes": file.stat().st_size, "sha256": file_sha256(file)}


def read_row(folder: Path) -> dict:
    """What `row.json` in a folder holds: `key`, `row`, and `files` where it has hashes.

    Raises:
        RecordError: If it is missing, damaged, or no row of an evaluation.
    """
    file = folder / ROW_FILE
    content = read_json(file, REMEDY)
    if not isinstance(content.get("key"), dict) or not isinstance(content.get("row"), dict):
        raise RecordError(file, "must hold key and row, each an object", REMEDY)
    if "files" in content or "sha256" in content:
        stated = content.pop("sha256", None)
        if stated != json_sha256(content):
            raise RecordError(file, "is damaged or edited: it does not match its own SHA-256", REMEDY)
    checked_row(content["row"], file, "row")
    return content


def collection_of(row: Mapping) -> str | None:
    """The hash of the documents, queries and judgements that a row was measured on; None of an old row, and
    of one whose folder does not lie beside its table.

    Args:
        row: with its `folder`, where it has one, as seen from the working folder.

    Raises:
        RecordError: As `read_row`.
    """
    folder = Path(row["folder"]) if row.get("folder") else None
    if folder is None or not (folder / ROW_FILE).exists():
        return None
    return read_row(folder)["key"].get("benchmark")


def is_one_collection(one: Mapping, other: Mapping) -> bool:
    """Whether two rows were measured on the same collection, as far as both say; see `collection_of`."""
    return len({collection_of(one), collection_of(other)} - {None}) < 2


def checked_row(row: object, file: Path | str, place: str) -> dict:
    """A row of a table of metrics, of whatever command, if it is one.

    Args:
        row: what was read.
        file: that it stands in.
        place: in the file, as `rows[2]`.

    Raises:
        RecordError: If it is not an object, a key is missing, or a value is of another type or not finite.
    """

    def refuse(rule: str) -> RecordError:
        return RecordError(file, f"{place}{rule}", REMEDY)

    if not isinstance(row, dict):
        raise refuse(f" must be an object, got {shown(row)}")
    for name, kind, rule in (
        ("benchmark", str, "a text"),
        ("mode", str, "a text"),
        ("model", str, "a text"),
        ("n_queries", int, "a whole number"),
        ("n_docs", int, "a whole number"),
        ("metrics", dict, "an object of numbers"),
    ):
        if name not in row:
            raise refuse(f": key {name!r} is missing; it has {shown_names(row)}")
        if not isinstance(row[name], kind) or isinstance(row[name], bool):
            raise refuse(f".{name} must be {rule}, got {shown(row[name])}")
    for name, value in row["metrics"].items():
        if not _is_number(value):
            raise refuse(f".metrics: {shown(name)} must be a finite number, got {shown(value)}")
    if "ci95" in row:
        _check_measured(row, refuse)
    for name in ("folder", "command", "commit"):
        if not isinstance(row.get(name), (str, type(None))):
            raise refuse(f".{name} must be a text, got {shown(row[name])}")
    return row


def _check_measured(row: Mapping, refuse) -> None:
    """What a row of an evaluation has besides: it was measured on queries, with an interval."""
    if not isinstance(row["ci95"], dict):
        raise refuse(f".ci95 must be an object of intervals, got {shown(row['ci95'])}")
    for name, ends in row["ci95"].items():
        if not (isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends))):
            raise refuse(f".ci95: {shown(name)} must be two finite numbers, got {shown(ends)}")
    if row["n_queries"] < 1:
        raise refuse(f".n_queries must be at least 1, got {row['n_queries']}")
    if not isinstance(row.get("mode_settings", {}), dict):
        raise refuse(f".mode_settings must be an object, got {shown(row['mode_settings'])}")
    numbers = ("missing_embed_token", "seconds_per_query", "tokens_per_query", "reasoned_share")
    for name in (*numbers, "tokens_read_per_query", "queries_cut", "documents_cut"):
        if name in row and not _is_number(row[name]):
            raise refuse(f".{name} must be a finite number, got {shown(row[name])}")


def _is_number(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return value.bit_length() <= 64  # a longer one is no float
    return isinstance(value, float) and math.isfinite(value)


def check_files(folder: Path, written: Mapping) -> None:
    """Compares the files beside a row with what it says of them.

    Args:
        folder: of the evaluation.
        written: what `read_row` gave.

    Raises:
        RecordError: If one is missing, or is not as it was written.
    """
    row, files = written["row"], written.get("files")
    if files is None:
        _check_unhashed(folder, row)
        return
    expected = {RUN, QRELS, PER_QUERY} | ({REASONING} if _has_texts(row) else set())
    if not isinstance(files, dict) or not expected <= files.keys() <= set(FILES):
        raise RecordError(folder / ROW_FILE, f"must have the hashes of {', '.join(sorted(expected))}", REMEDY)
    for name, facts in files.items():
        _check_hashed(folder / name, facts)


def _has_texts(row: Mapping) -> bool:
    """Whether the mode of a row leaves a text for every query; of one that is not shipped, no file is due."""
    return row["mode"] in MODES and MODES[row["mode"]].reasons


def _check_hashed(file: Path, facts: Mapping) -> None:
    try:
        found = _facts(file)
    except OSError as error:
        raise RecordError(file, f"cannot be read ({error.strerror})", REMEDY) from None
    if found != facts:
        size = (
            f" ({found['bytes']} bytes, written were {facts['bytes']})"
            if found["bytes"] != facts["bytes"]
            else ""
        )
        raise RecordError(file, f"is damaged or edited: it does not match its SHA-256{size}", REMEDY)


def _check_unhashed(folder: Path, row: Mapping) -> None:
    """Structure and counts of the files of a row that has no hashes; the scores are those of the rankings."""
    scores = {name: read_scores(folder / PER_QUERY, row, name) for name in METRICS}
    run, qrels = read_run(folder / RUN), read_qrels(folder / QRELS)
    if len(qrels) != row["n_queries"]:
        raise RecordError(
            folder / QRELS, f"judges {len(qrels)} queries, its row has {row['n_queries']}", REMEDY
        )
    if unknown := run.keys() - qrels.keys():
        raise RecordError(
            folder / RUN, f"ranks for query {shown(min(unknown))}, which {QRELS} has not", REMEDY
        )
    computed = per_query_metrics(run, qrels).values()  # in the order of per_query.jsonl, under other ids
    for name, values in scores.items():
        for found, (query, value) in zip(computed, values.items(), strict=True):
            if not math.isclose(found[name], value, rel_tol=1e-9, abs_tol=1e-12):
                rule = f"and {QRELS} give query {shown(query)} another {name} than {PER_QUERY}"
                raise RecordError(folder / RUN, rule, REMEDY)
    if _has_texts(row):
        ids = [line.get("query_id") for line in _objects(folder / REASONING)]
        if ids != list(scores[METRICS[0]]):
            raise RecordError(folder / REASONING, f"has other queries than {PER_QUERY}", REMEDY)


def _objects(file: Path) -> list[dict]:
    try:
        return [parse_object(text, file, line) for line, text in numbered_lines(file)]
    except DataError as error:
        raise RecordError(file, error.problem, REMEDY) from None
    except OSError as error:
        raise RecordError(file, f"cannot be read ({error.strerror})", REMEDY) from None


def read_scores(file: Path, row: Mapping, metric: str) -> dict[str, float]:
    """A metric by query id, of a file `per_query.jsonl`.

    Args:
        file: a line per query.
        row: what the file must agree with: it has as many queries, and their mean is the row's.
        metric: its name.

    Raises:
        RecordError: If the file is missing or damaged, or does not agree.
    """
    scores: dict[str, float] = {}
    for number, line in enumerate(_objects(file), start=1):
        query, value = line.get("query_id"), line.get(metric)
        if not isinstance(query, str) or not _is_number(value):
            raise RecordError(
                file, f"row {number}: query_id must be a text and {metric} a finite number", REMEDY
            )
        if query in scores:
            raise RecordError(file, f"row {number}: query {shown(query)} occurs for the second time", REMEDY)
        scores[query] = float(value)
    if len(scores) != row["n_queries"]:
        raise RecordError(file, f"has {len(scores)} queries, its row has {row['n_queries']}", REMEDY)
    mean, stated = math.fsum(scores.values()) / len(scores), row["metrics"].get(metric)
    if stated is None or not math.isclose(mean, stated, rel_tol=1e-9, abs_tol=1e-12):
        raise RecordError(file, f"has a mean {metric} of {mean:.6g}, its row says {shown(stated)}", REMEDY)
    return scores


def verified_scores(folder: Path, row: Mapping, metric: str) -> dict[str, float]:
    """As `read_scores`, of an evaluation's folder; by its hash where `row.json` beside it has one.

    Raises:
        RecordError: If the file is missing or damaged, or does not agree with the row.
    """
    if (folder / ROW_FILE).exists():
        facts = read_row(folder).get("files", {}).get(PER_QUERY)
        if facts is not None:
            _check_hashed(folder / PER_QUERY, facts)
    return read_scores(folder / PER_QUERY, row, metric)


def verified_texts(folder: Path, row: Mapping) -> tuple[dict[str, str], dict[str, str]]:
    """The queries of an evaluation, and what was written about each; the latter empty for a mode without.

    Returns:
        The query, and the reasoning, by query id.

    Raises:
        RecordError: If a file is missing or damaged, or has other queries than the row.
    """
    files = read_row(folder).get("files", {}) if (folder / ROW_FILE).exists() else {}
    queries = {line.get("query_id"): line.get("query") for line in _objects(folder / PER_QUERY)}
    if not (_has_texts(row) or (folder / REASONING).exists()):
        return _texts(folder / PER_QUERY, queries), {}
    file = folder / REASONING
    if REASONING in files:
        _check_hashed(file, files[REASONING])
    written = {line.get("query_id"): line.get("reasoning") for line in _objects(file)}
    if written.keys() != queries.keys():
        raise RecordError(file, f"has other queries than {PER_QUERY}", REMEDY)
    return _texts(folder / PER_QUERY, queries), _texts(file, written)


def _texts(file: Path, by_query: Mapping) -> dict[str, str]:
    for query, text in by_query.items():
        if not isinstance(query, str) or not isinstance(text, str | None):
            raise RecordError(file, f"query {shown(query)}: ids and texts must be texts", REMEDY)
    return {query: text for query, text in by_query.items() if text is not None}
