"""Documents that several processes encode together, under `torchrun --nproc-per-node 2 -m src.evaluate ...`.

The first process evaluates; the others have the model, and embed their part of each chunk of documents that
it sends them. They hold no more of a corpus than that. Queries are the first process's alone.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from search_r3.distributed import Ranks
from search_r3.evaluation.rankers import Model
from search_r3.evaluation.ranking import Encode

T = TypeVar("T")


def own_device(device: str, ranks: Ranks) -> str:
    """The device of this process: of several GPUs its own, where `cuda` says no number."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if ranks.size > 1 and device == "cuda" else device


Models = Mapping[str, Model]
"""Models by a name that is the same in every process."""


def shared(
    ranks: Ranks, load: Callable[[], Models], evaluate: Callable[[Callable[[], Models]], T]
) -> T | None:
    """What the first process evaluates, while all of them embed documents; collective.

    Args:
        ranks: all processes.
        load: opens the models; each of the other processes calls it at once.
        evaluate: is handed what opens the models, to be called once what is to be evaluated is read. All
            processes encode the documents of those.

    Returns:
        What `evaluate` gave, in the first process; None in the others.

    Raises:
        Exception: What `evaluate` raised, in the first process.
        RuntimeError: In the others, of any process's failure.
    """
    if ranks.size == 1:
        return evaluate(load)
    failed: list[Exception] = []
    models = load() if ranks.rank else {}  # the first process has its own of `evaluate`

    def embed(asked: tuple[str, Sequence[str]]) -> tuple[np.ndarray, int]:
        name, texts = asked
        own, n_cut, error = np.empty((0, 0), np.float32), 0, None
        try:
            embedder = models[name].embedder
            vectors, n_cut = embedder.embed_documents_and_count(texts[ranks.shard(len(texts))])
            own = np.asarray(vectors)
        except Exception as problem:  # raised below: until then the others wait for this process
            error = RuntimeError(f"documents could not be encoded ({type(problem).__name__}: {problem})")
        ranks.agree(error)
        return ranks.joined(own), sum(ranks.gather_objects(n_cut))

    def lead(by_all: Callable[[tuple[str, Sequence[str]]], tuple[np.ndarray, int]]) -> T:
        def encoder(name: str) -> Encode:
            return lambda texts: by_all((name, list(texts)))

        def loaded() -> Models:
            models.update(load())
            return {
                name: replace(model, encode=encoder(name), n_processes=ranks.size)
                for name, model in models.items()
            }

        try:
            return evaluate(loaded)
        except Exception as problem:
            failed.append(problem)
            raise RuntimeError(f"the first process failed ({type(problem).__name__}: {problem})") from problem

    try:
        return ranks.led(lead, embed)
    except RuntimeError:
        if failed:
            raise failed[0] from None
        raise
