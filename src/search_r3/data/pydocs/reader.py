"""`data=pydocs`: (docstring sentence -> function source) pairs from the standard library and pinned packages.

Built as CodeSearchNet was (arXiv:1909.09436): queries are the first sentences of docstrings, documents are
functions without theirs. Near-duplicates are removed over all splits at once, and the split goes by a hash of
the module's dotted name, so that no module is in two splits and another version of a package changes as few
rows as possible. The result is a pure function of the Python version, the package versions and the settings,
and is cached under a hash of them.
"""

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from search_r3.data.jsonl import LazyTexts, json_string
from search_r3.data.pydocs.cache import build, check_sums, locked, read_lines
from search_r3.data.pydocs.cold_start import reasonings_of
from search_r3.data.pydocs.mining import normal
from search_r3.data.pydocs.settings import (
    SPLITS,
    TRAINING_SPLITS,
    Settings,
    cache_key,
    installed_versions,
    pinned_versions,
)
from search_r3.data.splits import position
from search_r3.data.types import Benchmark, Corpus, Example, TrainingData


def load_pydocs(
    packages: Mapping[str, str] | Sequence[str],
    cache_dir: str | Path = ".cache/pydocs",
    include_stdlib: bool = True,
    test_share: float = 0.08,
    validation_share: float = 0.02,
    min_test: int = 3000,
    max_documents_per_query: int = 8,
    similarity: float = 0.8,
    include_undocumented: bool = True,
    reasoning: Mapping[str, int | bool] | None = None,
    split: str = "all",
    rl_share: float = 0.2,
    workers: int = 2,
    name: str = "pydocs",
) -> TrainingData:
    """The embedded data set, mined at the first call and read from the cache afterwards.

    Args:
        packages: distributions and versions, as a mapping or as `name==version`. Only these are mined,
            whatever else is installed. Another installed version is used, logged as a warning and named in
            the card.
        cache_dir: folder of the caches; one folder below it per key.
        include_stdlib: whether the standard library is mined.
        test_share: share of the modules whose documents are held out for testing.
        validation_share: share of the modules held out for validation.
        min_test: fewest held-out test documents; fewer are an error.
        max_documents_per_query: a sentence that describes more documents than this is boilerplate, and its
            pairs are dropped.
        similarity: Jaccard similarity of word bigrams from which two documents are near-duplicates.
        include_undocumented: whether functions without a usable docstring, of training modules, add to
            `texts`.
        reasoning: limits, as `cold_start_reasoning` has them; None for its defaults.
        split: which training pairs are examples: "sft", "rl" or "all". No module is in both of the first two,
            and "rl" asks no sentence that "sft" has: on pairs that SFT has trained on, a reward measures what
            was memorised. The corpus and the texts are those of all training modules in either case.
        rl_share: share of all modules that are of the "rl" split.
        workers: processes that parse.
        name: of the data set and prefix of its benchmarks.

    Returns:
        Examples with `reasoning`, `relevant_ids` (all documents that the sentence describes) and the
        top-level package as `cluster`; `validation` and `test` with one query per distinct sentence, judged
        relevant for each of its documents, over all documents of their split; `texts` with sentence and
        source, remaining docstrings and undocumented functions of training modules.

    Raises:
        ValueError: If a package is not installed or lists no files, a version is missing, a share is out of
            range, the split is unknown, or fewer than `min_test` test documents are found.
    """
    if split not in TRAINING_SPLITS:
        raise ValueError(f"split must be one of {', '.join(TRAINING_SPLITS)}, got {split!r}")
    pinned = pinned_versions(packages)
    installed = installed_versions(pinned)
    settings = Settings(
        tuple(sorted(pinned)),
        include_stdlib,
        test_share,
        validation_share,
        max_documents_per_query,
        similarity,
        include_undocumented,
    )
    _check_rl_share(rl_share, settings)
    folder = Path(cache_dir) / cache_key(installed, settings)
    if not folder.is_dir():
        with locked(Path(cache_dir)):  # the ranks of one machine build once
            if not folder.is_dir():
                build(folder, name, pinned, installed, settings, workers)
    data = _load(folder, name, dict(reasoning or {}))
    if data.test is None or len(data.test.corpus) < min_test:
        found = len(data.test.corpus) if data.test else 0
        raise ValueError(
            f"{name}: at least min_test={min_test} held-out documents, got {found}; list more packages"
        )
    examples = _part(data.examples, split, rl_share)
    return replace(data, examples=examples, card={**data.card, "split": split, "pairs": len(examples)})


def _check_rl_share(rl_share: float, settings: Settings) -> None:
    if not 0 <= rl_share < 1 - settings.test_share - settings.validation_share:
        raise ValueError(
            f"rl_share must be at least 0 and leave SFT a share beside test_share={settings.test_share} and "
            f"validation_share={settings.validation_share}, got {rl_share}"
        )


def _part(examples: Sequence[Example], split: str, rl_share: float) -> list[Example]:
    """The pairs of a training split; those of "rl" without sentences that "sft" has."""
    if split == "all":
        return list(examples)
    parts: dict[str, list[Example]] = {"sft": [], "rl": []}
    for example in examples:
        is_rl = position(example.id.partition(":")[0]) >= 1 - rl_share
        parts["rl" if is_rl else "sft"].append(example)
    if split == "sft":
        return parts["sft"]
    known = {normal(example.query) for example in parts["sft"]}
    return [example for example in parts["rl"] if normal(example.query) not in known]


def _load(folder: Path, name: str, recipe: dict[str, int | bool]) -> TrainingData:
    """All that a cache holds, with every training pair an example."""
    check_sums(folder)
    rows = {split: read_lines(folder / f"{split}.jsonl") for split in SPLITS}
    train = rows["train"]
    ids = [row["id"] for row in train]
    texts = [row["document"] for row in train]
    relevant: dict[str, list[str]] = {}
    for row in train:
        relevant.setdefault(normal(row["query"]), []).append(row["id"])
    relevant_ids = {query: frozenset(documents) for query, documents in relevant.items()}
    examples = [
        Example(
            id=row["id"],
            query=row["query"],
            positive=row["document"],
            positive_id=row["id"],
            relevant_ids=relevant_ids[normal(row["query"])],
            reasoning=reasoning,
            source=name,
            cluster=row["id"].partition(":")[0].partition(".")[0],
        )
        for row, reasoning in zip(train, reasonings_of(folder, train, recipe), strict=True)
    ]
    offsets = array("Q")
    offsets.frombytes((folder / "texts.offsets").read_bytes())
    return TrainingData(
        name=name,
        corpus=Corpus(ids, texts),
        examples=examples,
        validation=_benchmark(f"{name}-validation", rows["validation"]),
        test=_benchmark(f"{name}-test", rows["test"]),
        texts=LazyTexts(folder / "texts.jsonl", offsets, json_string),
        card=json.loads((folder / "card.json").read_text()),
        weights={name: 1.0},
    )


def _benchmark(name: str, rows: Sequence[dict[str, str]]) -> Benchmark | None:
    """One query per distinct sentence, relevant for each document that it describes; None without rows.

    Query ids start with `q:` so that none equals a document's id.
    """
    if not rows:
        return None
    query_ids: dict[str, str] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for row in rows:
        query_id = query_ids.setdefault(normal(row["query"]), f"q:{row['id']}")
        queries.setdefault(query_id, row["query"])
        qrels.setdefault(query_id, {})[row["id"]] = 1
    corpus = Corpus([row["id"] for row in rows], [row["document"] for row in rows])
    return Benchmark(name, corpus, queries, qrels, remove_self_match=False, holds_code=True)
