"""What is measured by `search_r3.benchmarks.growth`: the parts of a step at growing sizes.

Rows are random unit vectors that drift alike and each by itself; the encoder of the index is a look-up. Model
parts are those of a trained folder.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from search_r3.benchmarks.memory import Watch, figure
from search_r3.benchmarks.timing import seconds_of
from search_r3.distributed import process_group
from search_r3.index.backends.base import MakeIndex
from search_r3.index.backends.faiss_index import FaissIndex
from search_r3.index.backends.flat import InPlaceIndex
from search_r3.index.backends.hnsw import HNSWIndex
from search_r3.index.backends.ivf import IVFIndex
from search_r3.index.exact_rank import Positives, Shard, exact_ranking
from search_r3.index.ledger import Refreshed, age_counts, step_record
from search_r3.index.rules.base import Refresh, StepQueries
from search_r3.index.rules.candidates import Candidates
from search_r3.index.rules.certified import Certified
from search_r3.index.served import LiveIndex
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.generation import Sampling
from search_r3.objectives.losses import hardest_negative_margin, info_nce
from search_r3.objectives.masks import id_numbers, negatives_mask
from search_r3.stages.rl.sampling import sample_rollouts

WIDTH, N_QUERIES, GROUP, K = 128, 16, 8, 10
BACKENDS: dict[str, MakeIndex] = {
    "flat": InPlaceIndex,
    "ivf": IVFIndex,
    "hnsw": HNSWIndex,
    "faiss SQfp16": partial(FaissIndex, factory="SQfp16"),
    "faiss SQ8": partial(FaissIndex, factory="SQ8"),
    "faiss IVF256,SQ8": partial(FaissIndex, factory="IVF256,SQ8"),
    "faiss IVF256,PQ32x4": partial(FaissIndex, factory="IVF256,PQ32x4", n_rescored=16),
    "faiss PCA64,IVF256,SQ8": partial(FaissIndex, factory="PCA64,IVF256,SQ8"),
}
"""What the table of backends compares."""


@dataclass(frozen=True)
class Measured:
    """One part at one size.

    Attributes:
        axis, part, size: which.
        seconds: by the clock, median.
        cpu_s: of this process, median; what else the machine does is not in it.
        memory_kib: taken at most beside what was there.
    """

    axis: str
    part: str
    size: int
    seconds: float
    cpu_s: float
    memory_kib: int


def timed(axis: str, part: str, size: int, run: Callable[[int], object], rounds: int) -> Measured:
    """Runs a part once to warm up, then `rounds` times; `run` is given the number of the round."""
    seconds, cpu = [], []
    with Watch(0.005) as watch:
        run(0)  # takes the memory that the others use again
        for number in range(1, rounds + 1):
            started = time.process_time()
            seconds.append(seconds_of(partial(run, number)))
            cpu.append(time.process_time() - started)
    return Measured(axis, part, size, float(np.median(seconds)), float(np.median(cpu)), watch.grown_kib)


class DriftingRows:
    """`N` unit vectors around 500 centres, known at every step for any rows."""

    def __init__(self, n: int) -> None:
        rng = np.random.default_rng(0)
        centres = rng.standard_normal((500, WIDTH), dtype=np.float32)
        self.n, self.rng = n, rng
        self.base = np.empty((n, WIDTH), np.float32)
        for start in range(0, n, 1 << 16):
            part = self.base[start : start + (1 << 16)]
            part[:] = centres[rng.integers(500, size=len(part))]
            part += rng.standard_normal(part.shape, dtype=np.float32)
            part /= np.linalg.norm(part, axis=1, keepdims=True)
        self.direction = rng.standard_normal(WIDTH, dtype=np.float32) * 0.002

    def vectors(self, step: int, rows: np.ndarray) -> np.ndarray:
        """`[n, D]`: all have moved alike, and each towards the next row."""
        moved = self.base[rows] + step * (self.direction + 0.002 * self.base[(rows + 1) % self.n])
        return moved / np.linalg.norm(moved, axis=1, keepdims=True)

    def queries(self, step: int, n_queries: int = N_QUERIES, group: int = GROUP) -> StepQueries:
        """Rollouts near their positive."""
        rng = np.random.default_rng((step, self.n))
        positives = rng.choice(self.n, n_queries, replace=False)
        near = self.vectors(step, positives)[:, None]
        noise = rng.standard_normal((n_queries, group, WIDTH)) / WIDTH**0.5
        vectors = near + 0.7 * noise
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
        flat = vectors.reshape(-1, WIDTH).astype(np.float32)
        return StepQueries(flat, np.repeat(positives, group)[:, None])


def ranked(queries: StepQueries, group: int, shard: Shard) -> object:
    """The exact rank of every rollout's positive."""
    vectors = torch.from_numpy(queries.vectors).unflatten(0, (-1, group))
    rows = torch.from_numpy(np.ascontiguousarray(queries.positives[::group]))
    return exact_ranking(vectors, Positives(rows, torch.ones(rows.shape)), shard)


def rules() -> dict[str, Refresh]:
    """Rules of which a step is timed; `certified` as if it had been audited."""
    certified = Certified(miscoverage=0.05, cut_off=K, is_scaled=False)
    certified.load_state_dict(
        {"numbers": [0.002] * 200, "log_stretch": 0.0, "n_audited": 0, "n_exact": 0},
    )
    return {
        "candidates": Refresh(Candidates(K), background=0.0),
        "certified": Refresh(certified, background=0.0, audit_every_n_steps=1_000_000),
    }


def documents(sizes: Sequence[int], rounds: int) -> Iterator[Measured]:
    """Search, exact ranks, ledger, a refresh by two rules and a checkpoint, over more and more documents."""
    for n in sizes:
        rows = DriftingRows(n)
        for name, settings in rules().items():
            with (
                TemporaryDirectory() as folder,
                LiveIndex.create(
                    Path(folder) / "rows", {"n": str(n)}, rows.base, InPlaceIndex, settings
                ) as index,
            ):

                def refreshed(step: int, index: LiveIndex = index, rows: DriftingRows = rows) -> None:
                    index.refresh(step + 1, rows.queries(step + 1), partial(rows.vectors, step + 1))

                yield timed("documents", f"refresh, {name}", n, refreshed, rounds)
                if name == "candidates":
                    yield from _of_index(index, rows, rounds)


def _of_index(index: LiveIndex, rows: DriftingRows, rounds: int) -> Iterator[Measured]:
    queries, n = rows.queries(rounds + 2), rows.n
    nothing = Refreshed(np.empty(0, np.int64), np.empty(0, np.float32), 0, 0.0, 0)
    parts: dict[str, Callable[[int], object]] = {
        "search": lambda _: index.search(queries.vectors, K),
        "exact ranks": lambda _: ranked(queries, GROUP, Shard(index.rows)),
        "ledger": lambda _: step_record(age_counts(index.encoded_at, rounds + 2), nothing),
        "checkpoint": lambda _: index.commit(index.state_dict()),
    }
    for name, run in parts.items():
        yield timed("documents", name, n, run, rounds)


def groups(sizes: Sequence[int], rounds: int, embedder: ReasoningEmbedder) -> Iterator[Measured]:
    """Sampling and exact ranks of larger and larger groups: 4 queries, 16 new tokens; 20,000 documents."""
    rows, texts = DriftingRows(20_000), ["open a file", "copy a folder", "sort a list", "parse a date"]
    shard = Shard(rows.base)
    for group in sizes:
        queries = rows.queries(0, group=group)
        yield timed("group", "exact ranks", group, lambda _, q=queries, g=group: ranked(q, g, shard), rounds)

        def sampled(number: int, group: int = group) -> None:
            sampling = Sampling(max_new_tokens=16, temperature=1.0)
            sample_rollouts(embedder, ["a", "b", "c", "d"], texts, sampling, group, 0, number)

        yield timed("group", "rollouts", group, sampled, rounds)


def batches(sizes: Sequence[int], rounds: int) -> Iterator[Measured]:
    """The contrastive losses of larger and larger batches, forward and backward, two documents a query."""
    for size in sizes:
        generator = torch.Generator().manual_seed(size)
        queries = torch.randn(size, WIDTH, generator=generator, requires_grad=True)
        candidates = torch.randn(2 * size, WIDTH, generator=generator, requires_grad=True)
        ids = id_numbers(f"d{number}" for number in range(2 * size))
        positive_index = torch.arange(size)

        def losses(
            _: int, q: torch.Tensor = queries, d: torch.Tensor = candidates, i: torch.Tensor = ids,
            p: torch.Tensor = positive_index,
        ) -> None:  # fmt: skip
            mask, _ = negatives_mask(i, p)
            loss = info_nce(q, d, p, mask) + hardest_negative_margin(q, d, p, mask)
            loss.backward()

        yield timed("batch", "contrastive losses", size, losses, rounds)


def lengths(sizes: Sequence[int], rounds: int, embedder: ReasoningEmbedder) -> Iterator[Measured]:
    """Embedding of eight texts that are longer and longer."""
    word = next(iter(embedder.encoder.documents(["a"])))[0]
    for size in sizes:
        sequences = [[word] * (size - 1) + [embedder.embed_token_id]] * 8
        yield timed("length", "embed", size, lambda _, s=sequences: embedder.embed_ids(s), rounds)


def ranks(n_ranks: Sequence[int], n_documents: int, rounds: int) -> Iterator[Measured]:
    """Search and exact ranks of one corpus over one process and two, each on a thread of its own."""
    for size in n_ranks:
        with TemporaryDirectory() as folder:
            torch.multiprocessing.start_processes(
                _on_rank, (size, _free_port(), folder, n_documents, rounds), nprocs=size, start_method="spawn"
            )
            found = [np.load(Path(folder) / f"{rank}.npy") for rank in range(size)]
        for part, (seconds, cpu, memory) in zip(("search", "exact ranks"), np.max(found, 0), strict=True):
            yield Measured("ranks", part, size, float(seconds), float(cpu), int(memory))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _on_rank(rank: int, n_ranks: int, port: int, folder: str, n_documents: int, rounds: int) -> None:
    torch.set_num_threads(1)
    meeting = {"RANK": rank, "WORLD_SIZE": n_ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in meeting.items()})
    with process_group():
        _searched(rank, n_ranks, folder, n_documents, rounds)


def _searched(rank: int, n_ranks: int, folder: str, n_documents: int, rounds: int) -> None:
    rows = DriftingRows(n_documents)
    all_queries = rows.queries(1)
    own = slice(*(N_QUERIES * place // n_ranks * GROUP for place in (rank, rank + 1)))
    queries = StepQueries(all_queries.vectors[own], all_queries.positives[own])
    settings = rules()["candidates"]
    with LiveIndex.create(Path(folder) / "rows", {}, rows.base, InPlaceIndex, settings) as index:
        shard = Shard(index.rows, index.first_row, n_documents)
        runs = (lambda _: index.search(queries.vectors, K), lambda _: ranked(queries, GROUP, shard))
        found = [timed("ranks", "", n_ranks, run, rounds) for run in runs]
    figures = [(one.seconds, one.cpu_s, one.memory_kib) for one in found]
    np.save(Path(folder) / f"{rank}.npy", figures)


def backend(name: str, n_documents: int) -> dict[str, float | str]:
    """One backend over one corpus, in a process of its own: recall, memory, and what building, changing one
    row in a hundred and searching for 128 queries take, in seconds of the processor."""
    torch.set_num_threads(1)
    rows = DriftingRows(n_documents)
    queries = rows.queries(1)
    BACKENDS[name](rows.base[:3000])  # what a library allocates once
    before, started = figure("RssAnon"), time.process_time()
    index = BACKENDS[name](rows.base)
    build_s, grown = time.process_time() - started, figure("RssAnon") - before
    changed = np.random.default_rng(1).choice(n_documents, n_documents // 100, replace=False)
    rows.base[changed] = rows.vectors(20, changed)
    started = time.process_time()
    index.update(changed)
    update_s = time.process_time() - started
    search_s = timed("backend", name, n_documents, lambda _: index.search(queries.vectors, K), 3).cpu_s
    found, exact = (each.search(queries.vectors, K)[1] for each in (index, InPlaceIndex(rows.base)))
    same = np.mean([len(set(one) & set(other)) / K for one, other in zip(found, exact, strict=True)])
    return {
        "backend": name, "documents": n_documents, "recall@10": float(same), "build_s": build_s,
        "update_1_percent_s": update_s, "search_128_s": search_s, "bytes_per_row": 1024 * grown / n_documents,
    }  # fmt: skip
