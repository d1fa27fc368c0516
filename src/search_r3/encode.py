"""Encodes a corpus once, on one machine or many: `python -m src.encode model.path=<folder> corpus= output=`.

What it leaves is a folder of Parquet files, which `src.evaluate`, `src.search`, `src.serve` and `src.export`
read with `embeddings=<folder>` in place of encoding. A call that was stopped goes on with the same command:
files that are there are kept, and what their rows are of is compared with model and corpus first.
"""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from search_r3.cli.command import entry_point
from search_r3.cli.entry import Entry
from search_r3.cli.instantiate import instantiate
from search_r3.cli.last_resort import run_command
from search_r3.cli.overrides import refuse_unknown
from search_r3.cli.run_lock import held
from search_r3.cli.searching import check_searched, tell_cut
from search_r3.errors import UsageError
from search_r3.folders import folder_for, make_folder

if TYPE_CHECKING:
    from search_r3.data.types import Corpus
    from search_r3.evaluation.shards import Shard
    from search_r3.models.interface import Embedder

ENGINES = ("local", "ray")
OF_RAY = ("address", "workers")
WORKING = "_working"
"""A folder that holds the lock; what begins so is no data to readers of Parquet folders."""


def check(config: DictConfig, is_sweep: bool) -> None:
    """Refuses what cannot be encoded, before anything is loaded.

    Raises:
        UsageError: With what to give.
    """
    if is_sweep:
        raise UsageError("src.encode fills one folder; --multirun does not apply")
    refuse_unknown(f"engine={config.engine}", config.engine, ENGINES)
    if config.engine == "ray" and importlib.util.find_spec("ray") is None:
        raise UsageError(
            f"engine=ray needs a package that is not installed: {sys.executable} -m pip install 'ray[data]' "
            "(requirements-extras.lock names the version that is tested)"
        )
    for key in OF_RAY:
        if config.engine != "ray" and config[key] is not None:
            raise UsageError(f"{key}={config[key]} is of engine=ray; leave it out, or give engine=ray")
    check_searched(config, [])
    _check_output(Path(config.output))


def _check_output(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise UsageError(f"output={output} is a file; name a folder, which gets a file per shard")
    if output.is_dir():
        strange = sorted(path.name for path in output.iterdir() if not _is_ours(path))
        if strange:
            raise UsageError(
                f"output={output}: {strange[0]} is in there, which src.encode did not write; name a "
                "folder of its own"
            )


def _is_ours(path: Path) -> bool:
    is_shard = path.name.startswith("rows-") and path.suffix in (".parquet", ".part")
    return path.name == WORKING or (is_shard and path.is_file())


def run(config: DictConfig) -> None:
    """Encodes what is missing in the folder, and says what it then holds."""
    from transformers.utils.logging import disable_progress_bar

    from search_r3.api import as_corpus

    disable_progress_bar()  # of reading weights
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(folder_for(Path(config.output), "output")).absolute()
        if (folder / WORKING).is_dir():
            stack.enter_context(held(folder / WORKING))  # refused before anything is read
        corpus, embedder = as_corpus(config.corpus), instantiate(config.model)
        stack.enter_context(held(make_folder(folder / WORKING, "output")))  # which keeps the folder
        for part in folder.glob("rows-*.part"):
            part.unlink()  # what a killed call, or a worker of it, left half written
        _encode(config, corpus, embedder, folder)


def _encode(config: DictConfig, corpus: "Corpus", embedder: "Embedder", folder: Path) -> None:
    from search_r3.evaluation.ranking import corpus_key
    from search_r3.evaluation.shards import shards_of
    from search_r3.index.encoded import files_of, gaps, whole
    from search_r3.progress import Progress

    key, n_rows = corpus_key(corpus, embedder), len(corpus)
    facts = {"model": str(config.model.path), **key, "n_rows": n_rows}
    there = files_of(folder, key)
    missing = gaps(there, n_rows)
    n_missing = sum(stop - start for start, stop in missing)
    if there:
        print(f"{config.output}: {n_rows - n_missing:,} of {n_rows:,} documents are there and are kept")
    started = time.monotonic()
    if n_missing:
        shards = shards_of(corpus, missing, config.shard_rows)
        with Progress(n_rows, "encode", "documents", initial=n_rows - n_missing) as bar:
            _engine(config, embedder)(shards, folder, facts, bar.update)
    seconds = time.monotonic() - started
    files = whole(folder, key, corpus.ids)
    tell_cut(sum(file.cut or 0 for file in files), corpus, embedder)
    print(f"{config.output}: {n_rows:,} vectors of {files[0].width} numbers in {len(files):,} files")
    if n_missing:
        rate = n_missing / seconds
        print(f"encoded {n_missing:,} documents in {seconds:,.1f} s, {rate:,.3g} documents/s")


Engine = Callable[[Iterable["Shard"], Path, Mapping[str, object], Callable[[int], None]], None]
"""Writes the files of shards into a folder with facts, and tells of each number of documents that is done."""


def _engine(config: DictConfig, embedder: "Embedder") -> Engine:
    if config.engine == "local":
        return partial(_by_this_process, embedder)
    from search_r3.evaluation.ray_engine import Cluster, by_ray

    cluster = Cluster(config.address, config.workers, config.worker_cpus, _uses_gpu(config.model))
    return partial(by_ray, cluster, partial(instantiate, config.model))


def _uses_gpu(model: DictConfig) -> bool:
    return str(model.device).startswith("cuda")


def _by_this_process(
    embedder: "Embedder",
    shards: Iterable["Shard"],
    folder: Path,
    facts: Mapping[str, object],
    heard: Callable[[int], None],
) -> None:
    from search_r3.evaluation.shards import write_shard

    for shard in shards:
        write_shard(embedder, shard, folder, facts, heard)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; `argv` is what follows its name, else the process's own."""
    return entry_point(Entry("encode", run, check, is_recorded=False), argv)


if __name__ == "__main__":
    run_command(main)
