"""Several data sets as one, each with a sampling weight; a batch is drawn from one source.

Ids are prefixed by their source, so that equal ids of different data sets stay apart.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from search_r3.data.jsonl import ConcatTexts
from search_r3.data.queries import asked_texts, unasked
from search_r3.data.types import Benchmark, Corpus, Example, TrainingData

_LOG = logging.getLogger(__name__)


def load_mixture(
    sources: Mapping[str, TrainingData | None],
    weights: Mapping[str, float] | None = None,
    name: str = "mixture",
) -> TrainingData:
    """Joins data sets.

    The corpora are searched as one, in training as in the held-out collections, which are joined in the same
    way. A training query that another source holds out, for validation or testing, is left out, and so is one
    of validation that another source tests on; queries are compared by their text, without blanks around it.

    Args:
        sources: data set by the name of the source; None entries are left out, so that a configuration can
            take a source away.
        weights: share of the batches that comes from each source, up to a factor; None for the numbers of
            examples.
        name: of the mixture.

    Returns:
        Examples with `source` set to the names; `weights` that sum to 1; ids `<source>/<id>`, and
        `<source>/q:<id>` for held-out queries of sources that keep self-matches.

    Raises:
        ValueError: If there is no source, a name holds a slash, the weights do not name exactly the sources
            or are not positive, or all training queries of a source are held out by others.
    """
    present = _apart({key: data for key, data in sources.items() if data is not None}, name)
    if not present:
        raise ValueError("sources: a mixture needs at least one source")
    if wrong := [key for key in present if "/" in key or not key]:
        raise ValueError(f"sources: a name must not be empty or hold a slash, got {wrong[0]!r}")
    checked = _checked_weights(present, weights)
    parts = list(present.items())
    return TrainingData(
        name=name,
        corpus=_joined_corpora([(key, data.corpus) for key, data in parts]),
        examples=[_prefixed(key, example) for key, data in parts for example in data.examples],
        validation=_joined(f"{name}-validation", [(key, data.validation) for key, data in parts]),
        test=_joined(f"{name}-test", [(key, data.test) for key, data in parts]),
        texts=ConcatTexts([data.texts for _, data in parts]),
        card={
            "name": name,
            "weights": checked,
            "examples": {key: len(data.examples) for key, data in parts},
            "sources": {key: dict(data.card) for key, data in parts},
        },
        weights=checked,
    )


def _apart(sources: Mapping[str, TrainingData], name: str) -> dict[str, TrainingData]:
    """The sources without the queries that others hold out; a warning counts those of each."""
    found = {}
    for key, data in sources.items():
        others = [other for it, other in sources.items() if it != key]
        tested = asked_texts(*(other.test for other in others))
        examples, n_trained = unasked(
            data.examples, tested | asked_texts(*(other.validation for other in others))
        )
        if n_trained and not examples:
            raise ValueError(f"sources.{key}: no training row is left: other sources hold out all queries")
        validation, n_validated = _untested(data.validation, tested)
        for n, kind in ((n_trained, "training"), (n_validated, "validation")):
            if n:
                _LOG.warning(
                    "%s: %d %s queries of %s are held out by others and left out", name, n, kind, key
                )
        found[key] = replace(data, examples=examples, validation=validation)
    return found


def _untested(validation: Benchmark | None, tested: frozenset[str]) -> tuple[Benchmark | None, int]:
    """A collection without the queries that are tested on, None if none is left, and how many those are."""
    if validation is None:
        return None, 0
    kept = [query for query, text in validation.queries.items() if text.strip() not in tested]
    return (validation.with_queries(kept) if kept else None), len(validation.queries) - len(kept)


def _checked_weights(
    sources: Mapping[str, TrainingData], weights: Mapping[str, float] | None
) -> dict[str, float]:
    """Weights that sum to 1, in the order of the sources."""
    given = dict(weights) if weights else {key: len(data.examples) for key, data in sources.items()}
    if given.keys() != sources.keys():
        raise ValueError(f"weights must name exactly the sources {sorted(sources)}, got {sorted(given)}")
    for key, weight in given.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 0 < weight < float("inf"):
            raise ValueError(f"weights.{key} must be a positive number, got {weight!r}")
    total = sum(given.values())
    return {key: given[key] / total for key in sources}


def _prefixed(key: str, example: Example) -> Example:
    return replace(
        example,
        id=f"{key}/{example.id}",
        positive_id=f"{key}/{example.positive_id}",
        more_positive_ids=tuple(f"{key}/{document}" for document in example.more_positive_ids),
        hard_negative_ids=tuple(f"{key}/{document}" for document in example.hard_negative_ids),
        relevant_ids=frozenset(f"{key}/{document}" for document in example.relevant_ids),
        excluded_ids=frozenset(f"{key}/{document}" for document in example.excluded_ids),
        grades=tuple((f"{key}/{document}", grade) for document, grade in example.grades),
        source=key,
        cluster=f"{key}/{example.cluster}" if example.cluster else "",
    )


def _joined_corpora(corpora: Iterable[tuple[str, Corpus]]) -> Corpus:
    parts = list(corpora)
    ids = [f"{key}/{document}" for key, corpus in parts for document in corpus.ids]
    return Corpus(ids, ConcatTexts([corpus.texts for _, corpus in parts]))


def _joined(name: str, benchmarks: Sequence[tuple[str, Benchmark | None]]) -> Benchmark | None:
    """One collection of several. A query keeps its document's id only where self-matches are removed.

    The flag holds for the whole collection, so a source without it gets query ids that match no document.
    """
    present = [(key, benchmark) for key, benchmark in benchmarks if benchmark is not None]
    if not present:
        return None
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    excluded: dict[str, frozenset[str]] = {}
    for key, benchmark in present:
        prefix = f"{key}/" if benchmark.remove_self_match else f"{key}/q:"
        for query_id, grades in benchmark.qrels.items():
            queries[prefix + query_id] = benchmark.queries[query_id]
            qrels[prefix + query_id] = {f"{key}/{document}": grade for document, grade in grades.items()}
        for query_id, names in benchmark.excluded.items():
            excluded[prefix + query_id] = frozenset(f"{key}/{document}" for document in names)
    corpus = _joined_corpora([(key, benchmark.corpus) for key, benchmark in present])
    n_unasked = sum(benchmark.judged_queries_missing for _, benchmark in present)
    removes_self_match = any(benchmark.remove_self_match for _, benchmark in present)
    holds_code = all(benchmark.holds_code for _, benchmark in present)
    return Benchmark(name, corpus, queries, qrels, removes_self_match, n_unasked, holds_code, excluded)
