"""One benchmark in one mode: rank, score, write down, and take up again where it is already written."""

import contextlib
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from search_r3.data.reasonings import check_some, tell_missing
from search_r3.data.types import Benchmark
from search_r3.evaluation.metrics import mean_metrics, per_query_metrics
from search_r3.evaluation.modes import MODES, Mode
from search_r3.evaluation.places import PARTIAL, kept_folder, place_of
from search_r3.evaluation.rankers import NOTHING_CUT, Model, Ranked, Settings, Task, cut_texts
from search_r3.evaluation.ranking import document_embeddings, without_removed
from search_r3.evaluation.results import PER_QUERY, QRELS, REASONING, RUN, sealed
from search_r3.evaluation.significance import bootstrap_interval
from search_r3.evaluation.trec import needs_encoding, with_encoded_ids, write_qrels, write_run
from search_r3.files import json_sha256
from search_r3.records import json_line, shown

_ROW_VERSION = 3  # higher where the same key gives another row, so that no older one is read back
log = logging.getLogger(__name__)


def fingerprint(benchmark: Benchmark) -> str:
    """SHA-256 over documents, queries and judgements."""
    facts = [
        benchmark.corpus.fingerprint,
        dict(benchmark.queries),
        {query: dict(grades) for query, grades in benchmark.qrels.items()},
        benchmark.remove_self_match,
    ]
    if benchmark.excluded:
        facts.append({query: sorted(names) for query, names in benchmark.excluded.items()})
    return json_sha256(facts)


def _write(
    folder: Path,
    asked: Benchmark,
    named: Benchmark,
    mode: str,
    run: Mapping,
    scores: Mapping,
    reasonings: tuple,
) -> None:
    """Writes all files but the row.

    Args:
        folder: is there and empty.
        asked: the collection under the ids that its user gave, which are those of the JSON lines.
        named: the same under the ids of the TREC files, which those of `run`, `scores` and `reasonings` are.
        mode: the tag of the run.
        run: rankings.
        scores: metrics by query.
        reasonings: rows of reasoning.jsonl.
    """
    ids = dict(zip(named.queries, asked.queries, strict=True))
    write_run(folder / RUN, run, mode)
    write_qrels(folder / QRELS, named.qrels)
    per_query = [
        {"query_id": ids[query], "query": named.queries[query], **values} for query, values in scores.items()
    ]
    _write_lines(folder / PER_QUERY, per_query)
    if reasonings:
        _write_lines(folder / REASONING, [row | {"query_id": ids[row["query_id"]]} for row in reasonings])


def _write_lines(path: Path, rows: list[dict]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{json_line(row)}\n" for row in rows)


def limited(benchmark: Benchmark, n_queries: int | None) -> Benchmark:
    """The same documents with the first `n_queries` queries."""
    if n_queries is None:
        return benchmark
    return benchmark.with_queries(list(benchmark.queries)[:n_queries])


def evaluate_benchmark(
    benchmark: Benchmark,
    mode: str | Mode,
    output_dir: str | Path,
    settings: Settings,
    model: Model | None = None,
    base: Model | None = None,
    cache_dir: str | Path = ".cache/embeddings",
    origin: Mapping | None = None,
    reasonings: Mapping[str, str] | None = None,
) -> dict:
    """A row of metrics.json; read back where the same evaluation is already written in `output_dir`.

    Args:
        benchmark: documents, queries, judgements.
        mode: a mode, or the name of one of `MODES`, which `search_r3.evaluation.modes` explains.
        output_dir: `<output_dir>/<benchmark>/<mode>/` is written, whole or not at all; where another
            evaluation is in there, `<mode>-<hash>` beside it. The row's `folder` says which.
        settings: of the evaluation.
        model: the evaluated one, where the mode needs it.
        base: the untuned one, where the mode needs it.
        cache_dir: of document embeddings.
        origin: what `provenance` returned; the row keeps command and commit of the call that measured it.
        reasonings: text by query id, where the mode needs them. Queries without one are asked as they are,
            and a line counts them.

    Raises:
        ValueError: If the mode is unknown, or lacks its model or the reasonings, or a score is not finite.
        DataError: If no query of the collection has a reasoning.
        PlaceError: If the folder holds something that no evaluation wrote.
    """
    mode = known_mode(mode)
    given = {"model": model, "base": base, "reasonings": reasonings}
    for need in NEEDED:
        if need in mode.needs and given[need] is None:
            raise ValueError(f"mode {mode.name} needs {NEEDED[need]}")
    benchmark = limited(benchmark, settings.limit)
    texts = _given_texts(benchmark, reasonings) if "reasonings" in mode.needs else None
    asked = Asked(benchmark, mode, settings, model, base, texts)
    key = asked.key
    found = place_of(Path(output_dir), benchmark.name, mode.name, key)
    folder = found.folder
    place = {"folder": folder.relative_to(output_dir).as_posix()}
    if folder.name != mode.name:
        log.info(
            "%s is of other weights, settings or data; this one is in %s", folder.with_name(mode.name), folder
        )
    if found.row is not None:
        log.info("%s is read back", folder)
        return asked.reading | found.row | place
    if found.problem:
        log.warning("%s. It is done again now, and what was there is kept beside it", found.problem)
    return _evaluated(asked, folder, cache_dir, origin or {}) | place


NEEDED: Mapping[str, str] = {
    "model": "a model folder: model.path=<folder>",
    "base": "the untuned base: base.path=<folder>",
    "reasonings": "a file of texts: reasonings=<jsonl of _id and text>",
}
"""What a mode may need, and how it is given."""


def known_mode(mode: str | Mode) -> Mode:
    """A mode by its name, or itself.

    Raises:
        ValueError: If no mode is called so.
    """
    if isinstance(mode, Mode):
        return mode
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    return MODES[mode]


@dataclass(frozen=True)
class Asked:
    """One evaluation: what is ranked, how, and with what.

    Attributes:
        benchmark: under the ids that its user gave.
        mode: how.
        settings: of the evaluation.
        model: the evaluated one.
        base: the untuned one.
        given: a text for every query, for a mode that needs them.
    """

    benchmark: Benchmark
    mode: Mode
    settings: Settings
    model: Model | None
    base: Model | None
    given: Sequence[str] | None

    @property
    def embeds(self) -> Model | None:
        """The model that embeds the documents."""
        return {"model": self.model, "base": self.base, None: None}[self.mode.embeds]

    @property
    def reading(self) -> dict:
        """What the row says of how the model reads: hash of its prompts and limits, dtype, state; else None.

        A row of before is given them when it is read back: equal keys have equal ones.
        """
        key = {} if self.embeds is None else self.embeds.embedder.document_key
        has_token = self.embeds is not None and self.embeds.embedder.can_reason
        return {
            "prompts_sha256": key.get("prompts"),
            "dtype": str(key["dtype"]).removeprefix("torch.") if "dtype" in key else None,
            "read_state": key.get("read_state", "at") if has_token else None,
        }

    @property
    def key(self) -> dict:
        """What the row depends on; equal keys are one evaluation."""
        mode = self.mode
        key = {
            "version": _ROW_VERSION,
            "name": self.benchmark.name,
            "benchmark": fingerprint(self.benchmark),
            "judged_queries_missing": self.benchmark.judged_queries_missing,
            "settings": asdict(self.settings),
            "weights": None if self.embeds is None else self.embeds.embedder.document_key,
            "base": self.base.embedder.weights_sha256
            if "base" in mode.needs and mode.embeds != "base"
            else None,
        }
        if self.given is not None:
            key["reasonings"] = json_sha256(self.given)
        return key | ({"mode": dict(mode.settings)} if mode.settings else {})


def _evaluated(asked: Asked, folder: Path, cache_dir: str | Path, origin: Mapping) -> dict:
    """Measures a row and writes its folder."""
    benchmark, mode, settings, embeds = asked.benchmark, asked.mode, asked.settings, asked.embeds
    named = _with_readable_ids(benchmark)
    embeddings = None if embeds is None else _embedded(benchmark, embeds, cache_dir)
    found = mode.rank(Task(named, settings, asked.model, asked.base, embeddings, asked.given))
    lexical = f"bm25 ({settings.analyzer}, k1={settings.k1}, b={settings.b})"
    run, removed = without_removed(named, found.run, settings.top_k)
    _check_run(named, run, dict(zip(named.queries, benchmark.queries, strict=True)))
    scores = per_query_metrics(run, named.qrels)
    row = {
        "benchmark": benchmark.name,
        "mode": mode.name,
        "model": lexical if embeds is None else embeds.name,
        "n_queries": len(scores),
        "n_docs": len(benchmark.corpus),
        **_measured(found, scores, settings.seed),
        **found.facts,
        **({"mode_settings": dict(mode.settings)} if mode.settings else {}),
        "self_match_removed": removed,
        "judged_documents_missing": benchmark.judged_documents_missing,
        "judged_queries_missing": benchmark.judged_queries_missing,
        **(NOTHING_CUT if embeds is None else cut_texts(benchmark, embeds.embedder, cache_dir)),
        "ids_encoded": named is not benchmark,
        "weights_sha256": None if embeds is None else embeds.embedder.weights_sha256,
        **asked.reading,
        "command": origin.get("command"),
        "commit": origin.get("commit"),
        "seed": settings.seed,
        **({} if mode.name in MODES else {"colour": mode.colour}),
    }
    with _replaced(folder) as partial:
        _write(partial, benchmark, named, mode.name, run, scores, found.reasonings)
        sealed(partial, asked.key, row)
    return row


def _embedded(benchmark: Benchmark, model: Model, cache_dir: str | Path) -> np.ndarray:
    """Embeddings `[N, D]` of the documents, on disk."""
    how = {"encode": model.encode, "n_processes": model.n_processes, "embeddings": model.embeddings}
    return document_embeddings(benchmark.corpus, model.embedder, cache_dir, **how)


def _with_readable_ids(benchmark: Benchmark) -> Benchmark:
    """The collection under ids that can stand in TREC's files; the same object where they can as they are."""
    if not needs_encoding(benchmark):
        return benchmark
    log.warning(
        "%s: ids hold blanks, which part the fields of run.trec; there, and in qrels.trec beside it, all ids "
        "are percent-encoded",
        benchmark.name,
    )
    return with_encoded_ids(benchmark)


def _check_run(
    benchmark: Benchmark, run: Mapping[str, Mapping[str, float]], names: Mapping[str, str]
) -> None:
    """Stops at a score that is no number; says how many queries retrieved nothing.

    Args:
        benchmark: the collection.
        run: what was retrieved.
        names: of its queries, as the user wrote them.
    """
    for query, found in run.items():
        if not all(map(math.isfinite, found.values())):
            raise ValueError(
                f"{benchmark.name}: a score of query {shown(names[query])} is not finite; nothing is written"
            )
    empty = [query for query in benchmark.qrels if not run.get(query)]
    if empty:
        log.warning(
            "%s: %d of %d queries (the first: %r) retrieved nothing and count 0; run.trec has no line of "
            "them, so trec_eval counts them with -c only",
            benchmark.name, len(empty), len(benchmark.qrels), names[empty[0]],
        )  # fmt: skip


def _given_texts(benchmark: Benchmark, reasonings: Mapping[str, str]) -> list[str]:
    """The text of every query in the order of the queries; empty where there is none.

    Raises:
        DataError: If there is none for any query.
    """
    check_some("reasonings", reasonings, benchmark.queries, benchmark.name)
    tell_missing(f"{benchmark.name}, reasonings", reasonings, benchmark.queries, "they are asked as they are")
    return [reasonings.get(query, "") for query in benchmark.queries]


@contextlib.contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` once it is written; what was there is kept."""
    partial = folder.with_name(f"{folder.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    with contextlib.suppress(OSError):
        folder.rmdir()  # an empty one
    if os.path.lexists(folder):
        log.info("kept %s", kept_folder(folder))
    partial.rename(folder)


def _measured(found: Ranked, scores: Mapping[str, Mapping[str, float]], seed: int) -> dict:
    """The measured part of a row."""
    ndcg = [values["ndcg@10"] for values in scores.values()]
    return {
        "metrics": mean_metrics(scores),
        "ci95": {"ndcg@10": list(bootstrap_interval(ndcg, seed=seed))},
        "missing_embed_token": found.missing,
        "seconds_per_query": found.seconds / len(scores),
        "tokens_per_query": found.tokens / len(scores),
        **({} if found.read is None else {"tokens_read_per_query": found.read / len(scores)}),
    }
