"""`data=pydocs`: docstring summaries and the functions they describe, mined on the user's machine.

Pairs are made as CodeSearchNet's were (arXiv:1909.09436): the first sentence of a docstring is the query, the
function without any docstring is the document. The split is by module, through a hash of the module's name
alone, so it is the same for every Python and package version. Near-duplicates are removed on content across
the whole set, held-out rows being kept before training rows.
"""

import ast
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import sysconfig
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from src.data.near_duplicates import drop_near_duplicates
from src.data.reasoning import cold_start_reasoning, identifier_words
from src.data.types import Benchmark, Corpus, Example, TrainingData

# Part of the cache key: raise it when what is mined changes.
MINING_VERSION = 1
STDLIB = "stdlib"
_SKIPPED_PARTS = {
    "test",
    "tests",
    "testing",
    "site-packages",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "_vendor",
    "vendor",
}
_LICENCE = (
    "Documents are source code of the packages named here, each under its own open-source licence. They are "
    "mined on this machine from installed packages and are not redistributed."
)
log = logging.getLogger(__name__)


class MissingPackageError(ValueError):
    """A package that the configuration names is not installed."""


@dataclass(frozen=True)
class Pair:
    """One function: where it stands, what describes it, what it says."""

    id: str
    package: str
    module: str
    query: str
    document: str
    docstring: str
    reasoning: str = ""


def clean_sentence(docstring: str) -> str:
    """First sentence of a docstring as one plain line; markup of roles and literals is taken off."""
    paragraph = re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0]
    line = " ".join(paragraph.split())
    line = re.sub(r":[\w:+.-]+:`~?([^`<]+?)(?:\s*<[^>]*>)?`", r"\1", line)
    line = line.replace("`", "").replace("*", "")
    return re.split(r"(?<=[.!?])\s", line, maxsplit=1)[0].strip()


def _docstring_nodes(function: ast.AST) -> Iterator[ast.Expr]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in ast.walk(function):
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
            yield node.body[0]


def _document(function: ast.FunctionDef, lines: Sequence[str]) -> str | None:
    """Source without docstrings, dedented; None where a docstring shares its line with code."""
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    dropped: set[int] = set()
    for node in _docstring_nodes(function):
        before = lines[node.lineno - 1].encode()[: node.col_offset].strip()
        after = lines[node.end_lineno - 1].encode()[node.end_col_offset :].strip()
        if before or after:
            return None
        dropped.update(range(node.lineno, node.end_lineno + 1))
    kept = [lines[n - 1].rstrip() for n in range(first, function.end_lineno + 1) if n not in dropped]
    return textwrap.dedent("\n".join(line for line in kept if line))


def mine_source(
    source: str, module: str, package: str, min_query_words: int, max_query_words: int
) -> list[Pair]:
    """Pairs of one file; a file that is not valid Python has none.

    A function is left out where its summary is shorter or longer than asked for, or where fewer than eight
    words remain of its body.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    lines = source.splitlines()
    pairs = []
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or len(node.body) < 2:
            continue
        docstring = ast.get_docstring(node)
        if docstring is None or not docstring.isascii():
            continue
        query = clean_sentence(docstring)
        if not min_query_words <= len(query.split()) <= max_query_words:
            continue
        document = _document(node, lines)
        if document is None or len(identifier_words(document)) < len(identifier_words(node.name)) + 8:
            continue
        try:
            ast.parse(document)
        except SyntaxError:
            continue
        pairs.append(Pair(f"{module}.{node.name}:{node.lineno}", package, module, query, document, docstring))
    return pairs


def _mine_file(task: tuple[str, str, str], min_query_words: int, max_query_words: int) -> list[Pair]:
    path, module, package = task
    try:
        source = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return []
    return mine_source(source, module, package, min_query_words, max_query_words)


def _module_name(relative: Path) -> str:
    parts = list(relative.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files(packages: Iterable[str]) -> list[tuple[str, str, str]]:
    """(path, module, package) of the standard library and of installed distributions, sorted.

    Raises:
        MissingPackageError: If a distribution is not installed.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found = [(path, path.relative_to(root), STDLIB) for path in root.rglob("*.py")]
    for package in packages:
        try:
            distribution = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError as error:
            raise MissingPackageError(
                f"data.packages names {package}, which is not installed; run `make setup`, "
                "or leave it out of data.packages"
            ) from error
        files = [Path(str(file)) for file in distribution.files or [] if str(file).endswith(".py")]
        found += [(Path(str(distribution.locate_file(file))), file, package) for file in files]
    return sorted(
        (str(path), _module_name(relative), package)
        for path, relative, package in found
        if not _SKIPPED_PARTS & set(relative.parts) and ".." not in relative.parts
    )


def split_of(module: str, test_share: float, validation_share: float) -> str:
    """The split of a module, by a hash of its name: "test", "validation" or "train"."""
    digest = hashlib.blake2b(module.encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    if place < test_share:
        return "test"
    return "validation" if place < test_share + validation_share else "train"


def _mine(files: Sequence[tuple[str, str, str]], settings: Mapping[str, int], workers: int) -> list[Pair]:
    work = partial(_mine_file, **settings)
    pairs: dict[str, Pair] = {}
    with (
        ProcessPoolExecutor(workers) as pool,
        tqdm(total=len(files), desc="mine pydocs", unit="file") as bar,
    ):
        for found in pool.map(work, files, chunksize=32):
            bar.update()
            for pair in found:
                pairs.setdefault(pair.id, pair)
    return list(pairs.values())


def _cache_key(facts: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, list[Pair]]:
    splits: dict[str, list[Pair]] = {"test": [], "validation": [], "train": []}
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            splits[row.pop("split")].append(Pair(**row))
    return splits


def _write(path: Path, splits: Mapping[str, Sequence[Pair]]) -> None:
    partial_path = path.with_name(f"{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial_path.open("w", encoding="utf-8") as file:
        for split, pairs in splits.items():
            for pair in pairs:
                file.write(json.dumps({"split": split, **asdict(pair)}) + "\n")
    partial_path.replace(path)


def _same_query(pairs: Sequence[Pair]) -> dict[str, frozenset[str]]:
    """Ids of the documents by query text, letter case and closing stop aside: they all answer it."""
    groups: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        groups[pair.query.lower().rstrip(".")].add(pair.id)
    return {query: frozenset(ids) for query, ids in groups.items()}


def _benchmark(name: str, pairs: Sequence[Pair]) -> Benchmark:
    relevant = _same_query(pairs)
    return Benchmark(
        name=name,
        corpus=Corpus([pair.id for pair in pairs], [pair.document for pair in pairs]),
        queries={f"q:{pair.id}": pair.query for pair in pairs},
        qrels={f"q:{pair.id}": dict.fromkeys(relevant[pair.query.lower().rstrip(".")], 1) for pair in pairs},
    )


def _with_reasoning(pairs: Sequence[Pair], n_arguments: int, n_body_words: int) -> list[Pair]:
    frequency = Counter(word for pair in pairs for word in set(identifier_words(pair.document)))
    work = partial(cold_start_reasoning, n_arguments=n_arguments, n_body_words=n_body_words)
    return [replace(pair, reasoning=work(pair.document, frequency)) for pair in pairs]


def _examples(pairs: Sequence[Pair]) -> list[Example]:
    relevant = _same_query(pairs)
    return [
        Example(
            id=pair.id,
            query=pair.query,
            positive=pair.document,
            positive_id=pair.id,
            relevant_ids=relevant[pair.query.lower().rstrip(".")],
            reasoning=pair.reasoning,
            source="pydocs",
            cluster=pair.package,
        )
        for pair in pairs
    ]


def _card(splits: Mapping[str, Sequence[Pair]], facts: Mapping[str, object]) -> dict[str, object]:
    examples = [{"query": pair.query, "document": pair.document} for pair in splits["validation"][:3]]
    return {
        "name": "pydocs",
        **facts,
        "pairs": {split: len(pairs) for split, pairs in splits.items()},
        "pairs_per_package": dict(
            Counter(p.package for pairs in splits.values() for p in pairs).most_common()
        ),
        "licence": _LICENCE,
        "examples": examples,
    }


def _installed_versions(packages: Mapping[str, str]) -> dict[str, str]:
    """Installed version of each package; another than the pinned one is used, and said."""
    versions = {}
    for package, pinned in packages.items():
        try:
            versions[package] = importlib.metadata.version(package).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            source_files([package])  # raises the message that says what to do
        if versions[package] != pinned:
            log.warning("pydocs: %s is %s, not the pinned %s", package, versions[package], pinned)
    return versions


def load_pydocs(
    packages: Mapping[str, str],
    cache_dir: str,
    test_share: float,
    validation_share: float,
    min_query_words: int = 3,
    max_query_words: int = 40,
    n_arguments: int = 6,
    n_body_words: int = 8,
    workers: int = 2,
) -> TrainingData:
    """Mines the pairs, or reads them from the cache.

    Args:
        packages: pinned version by distribution name; the standard library is always mined.
        cache_dir: one file per (Python, package versions, settings).
        test_share: of the modules.
        validation_share: of the modules.
        min_query_words: shorter summaries are left out.
        max_query_words: longer ones are left out.
        n_arguments: of the cold-start reasoning.
        n_body_words: of the cold-start reasoning.
        workers: processes that parse.

    Raises:
        MissingPackageError: If a package is not installed.
    """
    facts = {
        "python": platform.python_version(),
        "packages": _installed_versions(packages),
        "pinned": dict(packages),
        "mining_version": MINING_VERSION,
        "settings": {
            "test_share": test_share,
            "validation_share": validation_share,
            "min_query_words": min_query_words,
            "max_query_words": max_query_words,
            "n_arguments": n_arguments,
            "n_body_words": n_body_words,
        },
    }
    path = Path(cache_dir) / f"{_cache_key(facts)}.jsonl"
    if not path.is_file():
        limits = {"min_query_words": min_query_words, "max_query_words": max_query_words}
        found = _mine(source_files(packages), limits, workers)
        order = ("test", "validation", "train")
        placed = [(split_of(pair.module, test_share, validation_share), pair) for pair in found]
        placed.sort(key=lambda row: (order.index(row[0]), row[1].id))
        kept = drop_near_duplicates([pair.document for _, pair in placed], threshold=0.8)
        splits: dict[str, list[Pair]] = {split: [] for split in order}
        for row in kept:
            splits[placed[row][0]].append(placed[row][1])
        splits["train"] = _with_reasoning(splits["train"], n_arguments, n_body_words)
        _write(path, splits)
        card = _card(splits, {**facts, "mined": len(found), "near_duplicates": len(found) - len(kept)})
        path.with_suffix(".card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    splits = _read(path)
    train = splits["train"]
    return TrainingData(
        name="pydocs",
        corpus=Corpus([pair.id for pair in train], [pair.document for pair in train]),
        examples=_examples(train),
        validation=_benchmark("pydocs-validation", splits["validation"]),
        test=_benchmark("pydocs", splits["test"]),
        texts=[f"{pair.docstring}\n{pair.document}" for pair in train],
        card=json.loads(path.with_suffix(".card.json").read_text(encoding="utf-8")),
    )
