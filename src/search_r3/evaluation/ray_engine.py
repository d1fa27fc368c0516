"""Encoding by workers of Ray Data, on this machine or a cluster: an extra, `ray[data]`.

Each worker is an actor that holds the model, takes a shard, writes its file and tells how many documents that
were. A worker that dies is started again, and its shard is given out again; nothing but counts and places of
texts travels between machines. Every machine needs the package, and model, corpus and output at one path.
"""

import contextlib
import logging
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from search_r3.cores import usable_cores
from search_r3.errors import UsageError, first_line
from search_r3.evaluation.shards import Shard, write_shard
from search_r3.models.interface import Embedder
from search_r3.records import clipped

DEATHS = 5
"""Workers that may die over one shard: the next one ends the command, since the shard may be why."""

THREADS_S = 30
"""Seconds in which the threads of Ray Data that are through must end, before Ray is shut down."""

REACHED_S = 20
"""Seconds in which the head of a cluster must answer."""

STORE_MIB = 512
"""Memory that a Ray of this machine alone keeps for what its processes hand each other: places of texts."""


@dataclass(frozen=True)
class Cluster:
    """Where workers run.

    Attributes:
        address: of a cluster; None for a Ray of this machine alone, which ends with the command.
        n_workers: processes that hold the model; None for as many as there are GPUs or CPUs.
        worker_cpus: CPU cores, and threads, of each.
        has_gpu: whether each needs a GPU of its own.
    """

    address: str | None
    n_workers: int | None
    worker_cpus: int
    has_gpu: bool


def by_ray(
    cluster: Cluster,
    load: Callable[[], Embedder],
    shards: Iterable[Shard],
    folder: Path,
    facts: Mapping[str, object],
    heard: Callable[[int], None],
) -> None:
    """Encodes shards on workers, each of which writes the files of its own.

    Args:
        cluster: where.
        load: reads the model, in each worker.
        shards: what is encoded.
        folder: of the files, at the same path on every machine.
        facts: what the vectors are of; a worker whose model is another one refuses.
        heard: is told of the documents of each shard that is written.

    Raises:
        UsageError: If the cluster is not there or too small, or a worker refuses.
        RuntimeError: If a worker fails, or the workers of one shard die again and again.
    """
    import ray
    from ray import data

    with _connected(cluster):
        settings = data.DataContext.get_current()
        settings.enable_progress_bars = False  # ours counts documents
        rows = [{"shard": pickle.dumps(shard)} for shard in shards]
        n_workers = min(_n_workers(cluster), len(rows))
        made = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Worker,
            fn_constructor_args=(load, folder, dict(facts)),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=n_workers, max_tasks_in_flight_per_actor=2),
            num_cpus=cluster.worker_cpus,
            num_gpus=1 if cluster.has_gpu else 0,
            ray_remote_args_fn=partial(dict, max_restarts=-1, max_task_retries=DEATHS),
        )
        others = set(threading.enumerate())
        try:
            bad = _first_bad(made.iter_rows(), heard)
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise RuntimeError(f"workers of Ray failed ({clipped(lines[-1])})") from error
        finally:
            _await_end_of(set(threading.enumerate()) - others)
        if bad:
            raise (UsageError if bad["is_refused"] else RuntimeError)(bad["problem"])


def _first_bad(rows: Iterable[Mapping], heard: Callable[[int], None]) -> Mapping | None:
    """The first row that tells of a problem. Ray Data stops its work once nothing refers to `rows`, so that
    nothing is raised here: a traceback would refer to it."""
    for row in rows:
        if row["problem"]:
            return row
        heard(int(row["n_documents"]))
    return None


def _await_end_of(threads: Iterable[threading.Thread]) -> None:
    """Waits for Ray Data's threads: one that asks Ray for anything behind `ray.shutdown` ends the process,
    with exit code 1 and without a word. On a busy machine they need seconds to see that they are done."""
    end = time.monotonic() + THREADS_S
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))


class Worker:
    """An actor of Ray Data: a model, and the folder that it writes to.

    What goes wrong in it is a row as the others are: Ray would give the shard out again, and print a
    traceback each time.
    """

    def __init__(self, load: Callable[[], Embedder], folder: Path, facts: Mapping[str, object]) -> None:
        self.load, self.folder, self.facts = load, folder, facts
        self.embedder: Embedder | None = None

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        shard = pickle.loads(batch["shard"][0])
        problem, is_refused = "", False
        try:
            write_shard(self._checked_embedder(), shard, self.folder, self.facts)
        except UsageError as error:
            problem, is_refused = str(error), True
        except Exception as error:
            problem = f"a worker failed ({clipped(f'{type(error).__name__}: {error}')})"
        found = {"n_documents": len(shard.ids), "problem": problem, "is_refused": is_refused}
        return {name: np.array([value]) for name, value in found.items()}

    def _checked_embedder(self) -> Embedder:
        """The model, read at the first shard.

        Raises:
            UsageError: If it is another one than in the first process, or the folder is not there.
        """
        if self.embedder is None:
            embedder = self.load()
            key = dict(embedder.document_key)
            if key != {name: self.facts.get(name) for name in key}:
                raise UsageError("a worker reads another model at model.path= than this machine does")
            if not self.folder.is_dir():
                raise UsageError(
                    f"output={self.folder}: a worker's machine has no such folder; name one that all share"
                )
            self.embedder = embedder
        return self.embedder


@contextlib.contextmanager
def _connected(cluster: Cluster) -> Iterator[None]:
    """A connection to Ray, which is started where there is no address and ends with this."""
    _check_address(cluster.address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing of ours reports to others
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of actors that count for Ray's dashboard
    import ray

    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.WARNING)
    handler = signal.getsignal(signal.SIGTERM)
    options = {"log_to_driver": False, "logging_level": logging.WARNING, "configure_logging": False}
    if cluster.address is None:
        options |= {"include_dashboard": False, "object_store_memory": STORE_MIB << 20}
        options |= {"num_cpus": _cpus_of_own(cluster)}
    try:
        ray.init(address=cluster.address or "local", **options)
    except Exception as error:  # a bare one where a Ray of this machine takes more than 30 s to start
        said = clipped(first_line(error))
        if cluster.address is None:
            raise RuntimeError(
                f"Ray does not start on this machine ({said}); the same command tries again"
            ) from error
        raise UsageError(f"address={cluster.address}: no Ray cluster there ({said})") from error
    try:
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end the process without a word
        yield
    finally:
        ray.shutdown()


def _check_address(address: str | None) -> None:
    """Refuses host:port where nobody listens, which Ray tries for minutes; other kinds are for Ray to judge.

    Raises:
        UsageError: With what the system says.
    """
    host, _, port = (address or "").rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED_S).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"address={address}: no Ray cluster there ({error})") from error


def _cpus_of_own(cluster: Cluster) -> int:
    """Cores that a Ray of this machine alone gives out: what was asked for, else all there are."""
    return max(usable_cores(), (cluster.n_workers or 0) * cluster.worker_cpus)


def _n_workers(cluster: Cluster) -> int:
    import ray

    has = ray.cluster_resources()
    room = int(has.get("CPU", 0)) // cluster.worker_cpus
    if cluster.has_gpu:
        room = min(room, int(has.get("GPU", 0)))
    if cluster.n_workers is not None and cluster.n_workers <= room:
        return cluster.n_workers
    if cluster.n_workers is not None or room < 1:
        needs = f"{cluster.worker_cpus} CPUs{' and a GPU' if cluster.has_gpu else ''}"
        raise UsageError(
            f"workers={'null' if cluster.n_workers is None else cluster.n_workers}: a worker needs {needs}, "
            f"and Ray has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs, room for {room}"
        )
    return room
