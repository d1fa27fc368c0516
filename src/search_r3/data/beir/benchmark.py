"""A test collection from a folder in BEIR layout."""

import logging
from collections.abc import Mapping
from pathlib import Path

from search_r3.data.beir.documents import load_corpus, load_queries
from search_r3.data.beir.layout import collection_name, file_in, qrels_file, removes_self_match
from search_r3.data.beir.qrels import EXCLUDED, Qrels, load_excluded, load_qrels
from search_r3.data.types import Benchmark, Corpus

_LOG = logging.getLogger(__name__)


def load_benchmark(
    path: str | Path,
    name: str | None = None,
    split: str = "test",
    remove_self_match: bool | None = None,
    allow_empty_documents: bool = True,
    allow_unmatched_judgements: bool = False,
    in_memory_mib: int = 256,
    holds_code: bool = False,
) -> Benchmark:
    """A test collection from a folder in BEIR layout.

    Args:
        path: the folder.
        name: of the benchmark; None for the folder's name as `path` writes it (`collection_name`).
        split: the file of judgements, `qrels/<split>.tsv`.
        remove_self_match: None for mteb's default by name: true for ArguAna, FiQA, Quora, FEVER and MS MARCO.
        allow_empty_documents: whether a document without title and text is kept. Several public collections
            have such, and their published scores count them; a warning says how many there are.
        allow_unmatched_judgements: whether `split` may judge a document that the corpus lacks, or a query
            that the queries file lacks, as ArguAna and others do as published. Such a document is never found
            and counts among the relevant ones (ideal gain, recall), as it does where trec_eval is given the
            judgements. Such a query cannot be asked and is left out. A warning counts either.
        in_memory_mib: a larger uncompressed corpus file stays on disk and is read by row.
        holds_code: whether the documents are source code, whose identifiers BM25 then splits.

    Returns:
        All documents, and the queries that have a judgement in `split`, whatever its grade. A query or a
        document may be without a letter; a warning counts them. A file `excluded.tsv` in the folder, of query
        id and document id, names documents that are taken out of a query's ranking.

    Raises:
        DataError: If a file is missing or a row is bad.
    """
    folder = Path(path)
    name = name or collection_name(folder)
    corpus = load_corpus(file_in(folder, "corpus.jsonl"), allow_empty_documents, in_memory_mib)
    queries = load_queries(file_in(folder, "queries.jsonl"), allow_empty=True)
    file = qrels_file(folder, split)
    judged = load_qrels(file, queries, corpus, allow_unmatched_judgements)
    if n_without := sum(max(grades.values()) <= 0 for grades in judged.grades.values()):
        _LOG.warning(
            "%s: %d of %d queries have no document of a grade above 0 and count 0",
            file, n_without, len(judged.grades),
        )  # fmt: skip
    is_removed = removes_self_match(name) if remove_self_match is None else remove_self_match
    excluded = load_excluded(file_in(folder, EXCLUDED), queries, [judged.grades], corpus)
    return benchmark_of(name, corpus, queries, judged, excluded, is_removed, holds_code)


def benchmark_of(
    name: str,
    corpus: Corpus,
    queries: Mapping[str, str],
    qrels: Qrels,
    excluded: Mapping[str, frozenset[str]],
    remove_self_match: bool,
    holds_code: bool,
) -> Benchmark | None:
    """The judged queries over a corpus; None where nothing is judged.

    A warning counts the queries whose own document is taken out and is judged relevant.

    Args:
        name: of the benchmark.
        corpus: all documents.
        queries: text by query id, judged or not.
        qrels: judgements.
        excluded: by query id, as `load_excluded` gives them; of queries that are not judged, too.
        remove_self_match: whether a document whose id equals the query's id is taken out of the ranking.
        holds_code: whether the documents are source code.
    """
    if not qrels.grades:
        return None
    asked = {query: queries[query] for query in qrels.grades}
    if n_own := remove_self_match and sum(grades.get(query, 0) > 0 for query, grades in qrels.grades.items()):
        _LOG.warning(
            "%s: of %d of %d queries the document of the same id is judged relevant; it is taken out of "
            "their ranking and counts as not found (remove_self_match=false leaves it there)",
            name, n_own, len(asked),
        )  # fmt: skip
    own = {query: names for query, names in excluded.items() if query in asked}
    n_unknown = qrels.n_unknown_queries
    return Benchmark(name, corpus, asked, qrels.grades, remove_self_match, n_unknown, holds_code, own)


def removed_documents(
    query: str, corpus: Corpus, remove_self_match: bool, excluded: Mapping[str, frozenset[str]]
) -> frozenset[str]:
    """The documents that evaluation takes out of a query's ranking: its own, and those excluded by name.

    Args:
        query: its id.
        corpus: all documents.
        remove_self_match: whether a document whose id equals the query's id is taken out.
        excluded: by query id, as `load_excluded` gives them.
    """
    own = {query} if remove_self_match and query in corpus.row_of else frozenset()
    return excluded.get(query, frozenset()) | own
