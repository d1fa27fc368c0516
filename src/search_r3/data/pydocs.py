"""`data=pydocs`: (docstring sentence -> function source) pairs from the standard library and pinned packages.

Built as CodeSearchNet was (arXiv:1909.09436): queries are the first sentences of docstrings, documents are
functions without theirs. Near-duplicates are removed over all splits at once, and the split goes by a hash of
the module's dotted name, so that no module is in two splits and another version of a package changes as few
rows as possible. The result is a pure function of the Python version, the package versions and the settings,
and is cached under a hash of them.
"""

import fcntl
import hashlib
import importlib.metadata
import inspect
import json
import logging
import multiprocessing
import multiprocessing.context
import multiprocessing.pool
import os
import platform
import shutil
import signal
import sys
import sysconfig
import time
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

import search_r3.data.reasoning
from search_r3.data.docstrings import Mined, is_generated, mine_functions, read_source
from search_r3.data.duplicates import NearDuplicates, bands, shingles
from search_r3.data.jsonl import LazyTexts, json_string
from search_r3.data.reasoning import cold_start_reasoning, count_words
from search_r3.data.splits import position
from search_r3.data.types import Benchmark, Corpus, Example, TrainingData
from search_r3.files import file_sha256
from search_r3.progress import Progress, progress_over

CODE_VERSION = 4  # raise it when the same input gives other rows, or the cache other files
SUMS = "SHA256SUMS"
STDLIB = "stdlib"
TRAINING_SPLITS = ("sft", "rl", "all")
SPLITS = ("test", "validation", "train")  # near-duplicates stay in the first split that has them

_LOG = logging.getLogger(__name__)
_SKIPPED_FOLDERS = """
test tests testing _testing idle_test _vendor vendor vendored _vendored extern externals _external
third_party thirdparty __pycache__ site-packages dist-packages lib2to3 ensurepip node_modules
"""


@dataclass(frozen=True)
class Settings:
    """What decides the rows besides versions; part of the cache key.

    Raises:
        ValueError: If a share is out of range.
    """

    packages: tuple[str, ...]
    include_stdlib: bool
    test_share: float
    validation_share: float
    max_documents_per_query: int
    similarity: float
    include_undocumented: bool

    def __post_init__(self) -> None:
        held_out = (self.test_share, self.validation_share)
        if not (0 < self.test_share < 1 and 0 <= self.validation_share < 1 and sum(held_out) < 1):
            raise ValueError(
                "test_share and validation_share must be in (0, 1) and leave a training share, "
                f"got {self.test_share} and {self.validation_share}"
            )


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to mine."""

    package: str
    module: str
    path: str


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
        reasoning: limits of `cold_start_reasoning` by argument name; None for its defaults.
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
    if not 0 <= rl_share < 1 - test_share - validation_share:
        raise ValueError(
            f"rl_share must be at least 0 and leave SFT a share beside test_share={test_share} and "
            f"validation_share={validation_share}, got {rl_share}"
        )
    folder = Path(cache_dir) / cache_key(installed, settings)
    if not folder.is_dir():
        with _locked(Path(cache_dir)):  # the ranks of one machine build once
            if not folder.is_dir():
                _build(folder, name, pinned, installed, settings, workers)
    data = _load(folder, name, dict(reasoning or {}))
    if data.test is None or len(data.test.corpus) < min_test:
        found = len(data.test.corpus) if data.test else 0
        raise ValueError(
            f"{name}: at least min_test={min_test} held-out documents, got {found}; list more packages"
        )
    examples = _part(data.examples, split, rl_share)
    return replace(data, examples=examples, card={**data.card, "split": split, "pairs": len(examples)})


def _part(examples: Sequence[Example], split: str, rl_share: float) -> list[Example]:
    if split == "all":
        return list(examples)
    parts: dict[str, list[Example]] = {"sft": [], "rl": []}
    for example in examples:
        is_rl = position(example.id.partition(":")[0]) >= 1 - rl_share
        parts["rl" if is_rl else "sft"].append(example)
    if split == "sft":
        return parts["sft"]
    known = {_normal(example.query) for example in parts["sft"]}
    return [example for example in parts["rl"] if _normal(example.query) not in known]


# --- what is installed --------------------------------------------------------------------------------------


def pinned_versions(packages: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    """Version by distribution name, from a mapping or from `name==version`.

    Raises:
        ValueError: If an entry has no version or a name is listed twice.
    """
    if isinstance(packages, Mapping):
        pairs = [(str(name), str(version)) for name, version in packages.items()]
    else:
        pairs = []
        for entry in packages:
            name, separator, version = str(entry).partition("==")
            if not (name.strip() and separator and version.strip()):
                raise ValueError(f"packages: each entry must read name==version, got {entry!r}")
            pairs.append((name.strip(), version.strip()))
    versions = dict(pairs)
    if len(versions) < len(pairs):
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise ValueError(f"packages: listed twice: {', '.join(twice)}")
    return versions


def installed_versions(pinned: Mapping[str, str]) -> dict[str, str]:
    """Installed version of each distribution, without a local part such as `+cpu`.

    Raises:
        ValueError: If some are not installed; the message names them all.
    """
    installed, missing = {}, []
    for name, version in pinned.items():
        try:
            found = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            missing.append(f"{name}=={version}")
            continue
        installed[name] = found
        if found != version.partition("+")[0]:
            _LOG.warning("pydocs: %s %s is installed, %s is pinned; %s is mined", name, found, version, found)
    if missing:
        raise ValueError(
            f"packages not installed: {', '.join(missing)}. Install them (pip install {' '.join(missing)}), "
            f"or take them out of data.packages"
        )
    return installed


def cache_key(installed: Mapping[str, str], settings: Settings) -> str:
    """Hash of the Python minor version, package versions, settings and the version of this code."""
    parts = {
        "code": CODE_VERSION,
        "python": list(sys.version_info[:2]),
        "versions": dict(sorted(installed.items())),
        "settings": asdict(settings),
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return f"py{sys.version_info[0]}{sys.version_info[1]}-{digest}"


def source_files(package: str) -> Iterator[SourceFile]:
    """Python files of a distribution or of the standard library, in the order of their modules.

    Tests, vendored and compiled-protocol files are left out.

    Raises:
        ValueError: If the distribution does not record its files (an editable installation).
    """
    if package == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        paths = [(path.relative_to(root).as_posix(), path) for path in root.rglob("*.py")]
        paths = [
            (name, path) for name, path in paths if name.split("/")[0].removesuffix(".py") in _STDLIB_NAMES
        ]
    else:
        distribution = importlib.metadata.distribution(package)
        if distribution.files is None:
            raise ValueError(f"{package} does not record its files; install it as a wheel, not editable")
        paths = [
            (file.as_posix(), Path(distribution.locate_file(file)))
            for file in distribution.files
            if file.suffix == ".py" and file.parts[0] != ".."
        ]
    for name, path in sorted(paths):
        if not _is_skipped(PurePosixPath(name)):
            yield SourceFile(package, _module_name(name), str(path))


_SKIPPED_PARTS = frozenset(_SKIPPED_FOLDERS.split())
_STDLIB_NAMES = frozenset(sys.stdlib_module_names) - {"this", "antigravity"}


def _is_skipped(path: PurePosixPath) -> bool:
    in_skipped_folder = any(part in _SKIPPED_PARTS for part in path.parts[:-1])
    stem = path.stem
    is_test = stem == "conftest" or stem.startswith("test_") or stem.endswith(("_test", "_tests"))
    return in_skipped_folder or is_test or stem.endswith("_pb2")


def _module_name(path: str) -> str:
    parts = path.removesuffix(".py").split("/")
    if parts[-1] == "__init__" and len(parts) > 1:
        parts = parts[:-1]
    return ".".join(parts)


def split_of(module: str, test_share: float, validation_share: float) -> str:
    """Split of a module: `train`, `validation` or `test`, by a hash of its dotted name and nothing else."""
    place = position(module)
    if place < test_share:
        return "test"
    return "validation" if place < test_share + validation_share else "train"


# --- mining -------------------------------------------------------------------------------------------------


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


def _mine(files: Sequence[SourceFile], workers: int) -> tuple[list[Record], dict[str, int]]:
    """Functions of all files in the order of the files, and how many files were skipped, by reason."""
    records: list[Record] = []
    skipped: Counter[str] = Counter()
    # forking shares the imported packages; elsewhere than on Linux it is not safe
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    bar = Progress(len(files), "pydocs: parsing", "files")
    with bar, _pool(context, max(1, workers)) as pool:
        for reason, found in pool.imap(_mine_file, files, chunksize=16):
            bar.update()
            if reason:
                skipped[reason] += 1
            records.extend(found)
    return records, dict(sorted(skipped.items()))


def _without_duplicates(
    records: Sequence[Record], settings: Settings
) -> tuple[dict[str, list[Record]], dict]:
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


def _normal(query: str) -> str:
    return query.casefold().rstrip(".!? ")


def _pairs(kept: Mapping[str, list[Record]], settings: Settings) -> tuple[dict[str, list[Record]], dict]:
    """Pairs by split: boilerplate queries and queries that a split above holds are left out, and counted."""
    counts = Counter(
        _normal(record.function.query) for split in SPLITS for record in kept[split] if record.function.query
    )
    pairs: dict[str, list[Record]] = {}
    dropped: Counter[str] = Counter()
    above: set[str] = set()
    for split in SPLITS:
        pairs[split] = []
        for record in kept[split]:
            query = _normal(record.function.query)
            if not query:
                continue
            if counts[query] > settings.max_documents_per_query:
                dropped["boilerplate query"] += 1
            elif query in above:
                dropped["query of a held-out split"] += 1
            else:
                pairs[split].append(record)
        above.update(_normal(record.function.query) for record in pairs[split])
    return pairs, dict(sorted(dropped.items()))


def _texts(
    records: Iterable[Record], held_out_queries: Collection[str], include_undocumented: bool
) -> Iterator[str]:
    """Running text of training functions: docstring before source, as it is to be written from a sentence.

    A function whose sentence is a held-out query is left out with it.
    """
    for record in records:
        function = record.function
        if function.query and _normal(function.query) in held_out_queries:
            continue
        if function.query:
            yield f"{function.query}\n{function.document}"
            if function.rest:
                yield f"{function.query}\n{function.rest}"
        elif include_undocumented:
            yield f"{function.rest}\n{function.document}" if function.rest else function.document


# --- the cache ----------------------------------------------------------------------------------------------


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, which is made if it is missing; another process waits."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _build(
    folder: Path,
    name: str,
    pinned: Mapping[str, str],
    installed: Mapping[str, str],
    settings: Settings,
    workers: int,
) -> None:
    """Mines and writes a cache folder; it appears under its name only when it is complete.

    Called while the lock of the folder around it is held, so what another mining left unfinished is dead.
    """
    started = time.perf_counter()
    packages = ([STDLIB] if settings.include_stdlib else []) + list(settings.packages)
    files = [file for package in packages for file in source_files(package)]
    records, skipped = _mine(files, workers)
    kept, duplicates = _without_duplicates(_first_of_each_id(records), settings)
    pairs, dropped = _pairs(kept, settings)
    facts = {
        "packages": _package_facts(pinned, installed, settings),
        "files": len(files),
        "files_skipped": skipped,
        "functions": len(records),
        "near_duplicates_removed": duplicates,
        "pairs_dropped": dropped,
    }
    building = folder.with_name(f"{folder.name}.partial")
    for left in (building, *folder.parent.glob(f".{folder.name}-*")):  # hidden ones are of earlier versions
        shutil.rmtree(left, ignore_errors=True)
    building.mkdir()
    try:
        for split in SPLITS:
            _write_lines(building / f"{split}.jsonl", (_row(record) for record in pairs[split]))
        held_out = {_normal(record.function.query) for record in pairs["test"] + pairs["validation"]}
        by_id = sorted(kept["train"], key=lambda record: record.id)
        n_texts = _write_texts(building, _texts(by_id, held_out, settings.include_undocumented))
        counts = count_words(record.function.document for record in pairs["train"])
        (building / "word_counts.json").write_text(json.dumps(counts))
        seconds = round(time.perf_counter() - started, 1)
        card = _card(name, settings, pairs, n_texts) | facts | {"seconds": seconds}
        (building / "card.md").write_text(card_text(card))
        (building / "card.json").write_text(json.dumps(card, indent=1))
        _write_sums(building)
        os.rename(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _first_of_each_id(records: Iterable[Record]) -> list[Record]:
    """Two distributions may own one module path; the first listed wins."""
    return list({record.id: record for record in reversed(list(records))}.values())[::-1]


def _row(record: Record) -> dict[str, str]:
    function = record.function
    return {
        "id": record.id,
        "package": record.package,
        "query": function.query,
        "document": function.document,
    }


def _write_lines(path: Path, rows: Iterable[object]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def _write_texts(folder: Path, texts: Iterable[str]) -> int:
    offsets = array("Q")
    with (folder / "texts.jsonl").open("wb") as file:
        for text in texts:
            offsets.append(file.tell())
            file.write(json.dumps(text).encode() + b"\n")
    (folder / "texts.offsets").write_bytes(offsets.tobytes())
    return len(offsets)


def _write_sums(folder: Path) -> None:
    """A line per file, as `sha256sum` writes them."""
    lines = [f"{file_sha256(file)}  {file.name}\n" for file in sorted(folder.iterdir())]
    (folder / SUMS).write_text("".join(lines))


def _check_sums(folder: Path) -> None:
    """Compares every file of a cache with its sum.

    Raises:
        ValueError: If one is damaged or missing.
    """
    remedy = f"remove the cache, and the next call mines it anew: rm -r '{folder}'"
    try:
        pairs = [line.split("  ", 1) for line in (folder / SUMS).read_text(encoding="utf-8").splitlines()]
        sums = {name: digest for digest, name in pairs}
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / SUMS}: cannot be read ({error}); {remedy}") from error
    for name in _NAMES:
        try:
            is_whole = sums.get(name) == file_sha256(folder / name)
        except OSError as error:
            raise ValueError(f"{folder / name}: cannot be read ({error.strerror}); {remedy}") from error
        if not is_whole:
            raise ValueError(f"{folder / name}: is damaged, its SHA-256 is not the one in {SUMS}; {remedy}")


_NAMES = (
    *(f"{split}.jsonl" for split in SPLITS),
    "texts.jsonl",
    "texts.offsets",
    "word_counts.json",
    "card.json",
)
"""The files of a cache that are read."""


def _load(folder: Path, name: str, recipe: dict[str, int | bool]) -> TrainingData:
    _check_sums(folder)
    rows = {split: _read_lines(folder / f"{split}.jsonl") for split in SPLITS}
    train = rows["train"]
    ids = [row["id"] for row in train]
    texts = [row["document"] for row in train]
    relevant: dict[str, list[str]] = {}
    for row in train:
        relevant.setdefault(_normal(row["query"]), []).append(row["id"])
    relevant_ids = {query: frozenset(documents) for query, documents in relevant.items()}
    examples = [
        Example(
            id=row["id"],
            query=row["query"],
            positive=row["document"],
            positive_id=row["id"],
            relevant_ids=relevant_ids[_normal(row["query"])],
            reasoning=reasoning,
            source=name,
            cluster=row["id"].partition(":")[0].partition(".")[0],
        )
        for row, reasoning in zip(train, _reasonings(folder, train, recipe), strict=True)
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


def _read_lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _reasonings(folder: Path, rows: Sequence[dict[str, str]], recipe: dict[str, int | bool]) -> list[str]:
    """Reasoning of each row under a recipe, written beside the rows once per recipe."""
    recipe_text = json.dumps(recipe, sort_keys=True) + inspect.getsource(search_r3.data.reasoning)
    key = hashlib.sha256(recipe_text.encode()).hexdigest()[:12]
    path = folder / f"reasoning-{key}.json"
    if path.exists():
        return _read_reasonings(path)
    counts = json.loads((folder / "word_counts.json").read_text())
    bar = progress_over(rows, len(rows), "pydocs: reasoning", "rows")
    n = len(rows)
    reasonings = [cold_start_reasoning(row["query"], row["document"], counts, n, **recipe) for row in bar]
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps({"sha256": _sha256_of_texts(reasonings), "reasonings": reasonings}))
    partial.replace(path)
    return reasonings


def _read_reasonings(path: Path) -> list[str]:
    """What was written under a recipe.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        reasonings = content["reasonings"]
        is_whole = content["sha256"] == _sha256_of_texts(reasonings)
    except (OSError, ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{path}: is damaged; remove it, and the next call writes it anew: rm -r '{path}'")
    return reasonings


def _sha256_of_texts(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


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
        query_id = query_ids.setdefault(_normal(row["query"]), f"q:{row['id']}")
        queries.setdefault(query_id, row["query"])
        qrels.setdefault(query_id, {})[row["id"]] = 1
    corpus = Corpus([row["id"] for row in rows], [row["document"] for row in rows])
    return Benchmark(name, corpus, queries, qrels, remove_self_match=False)


# --- the data card ------------------------------------------------------------------------------------------


def _card(name: str, settings: Settings, pairs: Mapping[str, Sequence[Record]], n_texts: int) -> dict:
    train = pairs["train"]
    return {
        "name": name,
        "python": platform.python_version(),
        "settings": asdict(settings),
        "documents": {split: len(pairs[split]) for split in SPLITS},
        "queries": {
            split: len({_normal(record.function.query) for record in pairs[split]}) for split in SPLITS
        },
        "modules": {split: len({record.module for record in pairs[split]}) for split in SPLITS},
        "texts": n_texts,
        "documents_by_package": _by_package(pairs),
        "licence": "Source code of the packages above, each under its own licence; mined on this machine "
        "from its own installation and not redistributed.",
        "examples": [_row(record) for record in train[:: max(1, len(train) // 5)][:5]],
    }


def _by_package(pairs: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, int]]:
    counts = {split: Counter(record.package for record in pairs[split]) for split in SPLITS}
    total = sum(counts.values(), Counter())
    return {
        package: {split: counts[split][package] for split in SPLITS}
        for package, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))
    }


def _package_facts(pinned: Mapping[str, str], installed: Mapping[str, str], settings: Settings) -> list[dict]:
    facts = [
        {
            "name": name,
            "pinned": pinned[name],
            "installed": installed[name],
            "is_pinned_version": pinned[name].partition("+")[0] == installed[name],
            "licence": _licence(name),
        }
        for name in settings.packages
    ]
    if settings.include_stdlib:
        version = platform.python_version()
        stdlib = {"name": STDLIB, "pinned": version, "installed": version, "is_pinned_version": True}
        facts.insert(0, stdlib | {"licence": "PSF-2.0"})
    return facts


def _licence(package: str) -> str:
    metadata = importlib.metadata.metadata(package)
    if expression := metadata.get("License-Expression"):
        return expression
    classifiers = [
        text.rsplit(" :: ", 1)[1]
        for text in metadata.get_all("Classifier") or []
        if text.startswith("License :: ") and text.count(" :: ") > 1
    ]
    first_line = (metadata.get("License") or "").strip().split("\n")[0]
    return "; ".join(classifiers) or first_line[:60] or "not stated"


def card_text(card: Mapping) -> str:
    """The data card as Markdown."""
    documents = card["documents"]
    lines = [
        f"# {card['name']}",
        "",
        "Docstring sentence to function source, "
        f"mined under Python {card['python']} from {card['files']} files.",
        f"Documents: {documents['train']} train, {documents['validation']} validation, {documents['test']} "
        f"test (from {card['modules']['test']} modules); {card['texts']} running texts.",
        f"Files skipped: {card['files_skipped']}. Near-duplicates removed: "
        f"{card['near_duplicates_removed']}. Pairs dropped: {card['pairs_dropped']}.",
        f"Licence: {card['licence']}",
        "",
        "| package | version | pinned | licence | train | validation | test |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    facts = {fact["name"]: fact for fact in card["packages"]}
    for package, counts in card["documents_by_package"].items():
        fact = facts[package]
        lines.append(
            f"| {package} | {fact['installed']} | {fact['pinned']} | {fact['licence']} | "
            f"{counts['train']} | {counts['validation']} | {counts['test']} |"
        )
    for row in card["examples"]:
        lines += ["", f"**{row['query']}** (`{row['id']}`)", "", "```python", row["document"], "```"]
    return "\n".join(lines) + "\n"
