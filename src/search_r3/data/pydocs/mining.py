"""From files to functions, near-duplicates removed, and from functions to pairs and running text."""

import gc
import multiprocessing
import multiprocessing.context
import multiprocessing.pool
import signal
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from search_r3.data.pydocs.docstrings import Mined, is_generated, mine_functions, read_source
from search_r3.data.pydocs.duplicates import NearDuplicates, bands, shingles
from search_r3.data.pydocs.settings import SPLITS, Settings, split_of
from search_r3.data.pydocs.sources import SourceFile
from search_r3.progress import Progress


@dataclass(frozen=True, slots=True)
class Record:
    """A mined function with where it comes from and what near-duplicates are found by."""

    package: str
    module: str
    function: Mined
    shingles: np.ndarray
    bands: np.ndarray

    @property
    def id(self) -> str:
        return f"{self.module}:{self.function.name}"


def _mine_file(file: SourceFile) -> tuple[str, list[Record]]:
    """(why the file was skipped or "", its functions)."""
    try:
        source = read_source(Path(file.path).read_bytes())
        if is_generated(source):
            return "generated", []
        functions = list(mine_functions(source))
    except (SyntaxError, ValueError, RecursionError):
        return "not parsable", []
    records = []
    for function in functions:
        hashes = shingles(function.document)
        records.append(Record(file.package, file.module, function, hashes, bands(hashes)))
    return "", records


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _pool(context: multiprocessing.context.BaseContext, workers: int) -> multiprocessing.pool.Pool:
    """Processes that end without a word when this one, which hears Ctrl-C and SIGTERM for all, ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # held back until each has its own handlers
    try:
        return context.Pool(workers, _hear_no_interruption)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hear_no_interruption() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    gc.freeze()  # else every collection goes through all that was imported before the fork


@contextmanager
def _uncollected() -> Iterator[None]:
    """No collection of cycles: what is kept within has none, and is not gone through again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def mine(files: Sequence[SourceFile], workers: int) -> tuple[list[Record], dict[str, int]]:
    """Functions of all files in the order of the files, and how many files were skipped, by reason."""
    records: list[Record] = []
    skipped: Counter[str] = Counter()
    # forking shares the imported packages; elsewhere than on Linux it is not safe
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    bar = Progress(len(files), "pydocs: parsing", "files")
    with bar, _uncollected(), _pool(context, max(1, workers)) as pool:
        for reason, found in pool.imap(_mine_file, files, chunksize=16):
            bar.update()
            if reason:
                skipped[reason] += 1
            records.extend(found)
    return records, dict(sorted(skipped.items()))


def without_duplicates(records: Sequence[Record], settings: Settings) -> tuple[dict[str, list[Record]], dict]:
    """Records by split, near-duplicates removed over all of them, and the counts of what was removed.

    Held-out splits come first and, within a split, documented functions before others, so that a held-out
    document stays and what repeats it in training goes.
    """
    by_split: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for record in records:
        by_split[split_of(record.module, settings.test_share, settings.validation_share)].append(record)
    kept: dict[str, list[Record]] = {split: [] for split in SPLITS}
    removed: Counter[str] = Counter()
    near = NearDuplicates(settings.similarity)
    with Progress(len(records), "pydocs: near-duplicates", "functions") as bar:
        for split in SPLITS:
            for record in sorted(by_split[split], key=lambda record: (not record.function.query, record.id)):
                bar.update()
                if near.add(record.shingles, record.bands) is None:
                    kept[split].append(record)
                else:
                    removed["documented" if record.function.query else "other"] += 1
    return kept, dict(sorted(removed.items()))


def normal(query: str) -> str:
    """What two sentences have in common that ask the same."""
    return query.casefold().rstrip(".!? ")


def paired(kept: Mapping[str, list[Record]], settings: Settings) -> tuple[dict[str, list[Record]], dict]:
    """Pairs by split: boilerplate queries and queries that a split above holds are left out, and counted."""
    counts = Counter(
        normal(record.function.query) for split in SPLITS for record in kept[split] if record.function.query
    )
    pairs: dict[str, list[Record]] = {}
    dropped: Counter[str] = Counter()
    above: set[str] = set()
    for split in SPLITS:
        pairs[split] = []
        for record in kept[split]:
            query = normal(record.function.query)
            if not query:
                continue
            if counts[query] > settings.max_documents_per_query:
                dropped["boilerplate query"] += 1
            elif query in above:
                dropped["query of a held-out split"] += 1
            else:
                pairs[split].append(record)
        above.update(normal(record.function.query) for record in pairs[split])
    return pairs, dict(sorted(dropped.items()))


def running_texts(
    records: Iterable[Record], held_out_queries: Collection[str], include_undocumented: bool
) -> Iterator[str]:
    """Running text of training functions: docstring before source, as it is to be written from a sentence.

    A function whose sentence is a held-out query is left out with it.
    """
    for record in records:
        function = record.function
        if function.query and normal(function.query) in held_out_queries:
            continue
        if function.query:
            yield f"{function.query}\n{function.document}"
            if function.rest:
                yield f"{function.query}\n{function.rest}"
        elif include_undocumented:
            yield f"{function.rest}\n{function.document}" if function.rest else function.document


def first_of_each_id(records: Iterable[Record]) -> list[Record]:
    """Two distributions may own one module path; the first listed wins."""
    return list({record.id: record for record in reversed(list(records))}.values())[::-1]


def row_of(record: Record) -> dict[str, str]:
    """A line of the file of a split."""
    function = record.function
    return {
        "id": record.id,
        "package": record.package,
        "query": function.query,
        "document": function.document,
    }
