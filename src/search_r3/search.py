"""Searches a corpus: `python -m src.search model.path=<folder> corpus=<folder or JSONL> query="..."`.

The reasoning is shown as it is written, then the documents, direct and reasoned side by side. Without
`query=` it asks in a loop; queries that are piped in are read line by line, and what is piped out is JSONL.
"""

import codecs
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig, ListConfig

from search_r3.cli.command import entry_point
from search_r3.cli.entry import Entry
from search_r3.cli.last_resort import run_command
from search_r3.cli.overrides import refuse_unknown
from search_r3.cli.searching import check_searched, opened
from search_r3.errors import UsageError
from search_r3.evaluation.modes import SEARCH_MODES
from search_r3.records import json_line

if TYPE_CHECKING:
    from search_r3.api import SearchR3

FORMATS = ("table", "jsonl")


def check(config: DictConfig, is_sweep: bool) -> None:
    """Refuses what cannot be searched, before anything is loaded.

    Raises:
        UsageError: With what to give.
    """
    if is_sweep:
        raise UsageError("src.search answers queries; --multirun does not apply")
    if not isinstance(config.modes, ListConfig) or not config.modes:
        raise UsageError(f"modes={config.modes}: a list is needed, as modes=[direct,reasoning]")
    for mode in config.modes:
        refuse_unknown(f"modes: {mode}", mode, SEARCH_MODES)
    check_searched(config, [mode for mode in config.modes if mode == "reasoning"])
    if config.format is not None:
        refuse_unknown(f"format={config.format}", config.format, FORMATS)
    if config.query is not None and not str(config.query).strip():
        raise UsageError("query= is empty; leave it out to be asked")


def run(config: DictConfig) -> None:
    """Loads the model and the corpus, then answers every query."""
    is_table = config.format == "table" or (config.format is None and sys.stdout.isatty())
    searcher = opened(config)
    for query in _queries(config.query):
        if is_table:
            _show(searcher, query, config)
        else:
            print(json_line(_answer(searcher, query, config), is_ascii=not _writes_utf8()), flush=True)


def _writes_utf8() -> bool:
    """Whether every character can be written as it is; else JSON has its escape."""
    return codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"


def _queries(given: str | None) -> Iterator[str]:
    """The query of the command, else those of standard input; empty lines are passed over."""
    if given is not None:
        yield str(given)
        return
    if not sys.stdin.isatty():
        yield from _piped()
        return
    while True:
        try:
            query = input("query> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if query:
            yield query


def _piped() -> Iterator[str]:
    """The lines of standard input, which must be UTF-8.

    Raises:
        UsageError: With the number of a line that is not.
    """
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            query = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise UsageError(f"standard input, line {number}: is not UTF-8 ({error.reason})") from None
        if query:
            yield query


def _answer(searcher: "SearchR3", query: str, config: DictConfig) -> dict:
    """What a query found, as a JSON object: each mode with its documents, best first."""
    found = {mode: searcher.search(query, config.k, mode, config.max_new_tokens) for mode in config.modes}
    is_cut = any(each.is_cut for each in found.values())
    return {"query": query, "query_is_cut": is_cut} | {mode: each.as_dict() for mode, each in found.items()}


def _show(searcher: "SearchR3", query: str, config: DictConfig) -> None:
    """The reasoning as it is written, and the documents of all modes side by side."""
    from search_r3.cli.hits import Screen

    screen = Screen()
    screen.ask(query)
    found = {}
    for mode in config.modes:
        said = screen.say if mode == "reasoning" else None
        found[mode] = searcher.search(query, config.k, mode, config.max_new_tokens, said)
    first = next(iter(found.values()))
    if first.is_cut:
        screen.warn(f"the query is longer than {searcher.embedder.limit('query')}: it was not read whole")
    names = [hit.id for each in found.values() for hit in each.hits]
    ranks, _ = searcher.ranks(first.embedding[None], names)
    screen.show(list(found.values()), dict(zip(names, ranks[0].tolist(), strict=True)))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; `argv` is what follows its name, else the process's own."""
    return entry_point(Entry("search", run, check, is_recorded=False), argv)


if __name__ == "__main__":
    run_command(main)
