"""The exact rank of a positive among a million rows, against the shortest code in NumPy and in FAISS.

The rows are random unit vectors: what is timed does not depend on them. A rank counts every row that scores
as high as the positive, less a tie, or higher.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from search_r3.benchmarks.peers.comparison import Comparison, Cost, Equal
from search_r3.index.backends.flat import TIE
from search_r3.index.exact_rank import Positives, Shard, exact_ranking

WIDTH = 256
_LIKENESS = 0.25
"""Cosine of a query and its positive, four standard deviations above that of another row."""


@dataclass(frozen=True)
class Asked:
    """What is asked.

    Attributes:
        rows: `[N, D]` fp32, unit norm.
        queries: `[B, G, D]`, likewise.
        positives: `[B]` rows.
    """

    rows: np.ndarray
    queries: Tensor
    positives: Tensor

    @classmethod
    def random(cls, n_rows: int, n_queries: int, group_size: int, width: int = WIDTH) -> "Asked":
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(n_rows, width, generator=generator)
        rows /= rows.norm(dim=-1, keepdim=True)
        positives = torch.randint(n_rows, (n_queries,), generator=generator)
        noise = normalize(torch.randn(n_queries, group_size, width, generator=generator), dim=-1)
        queries = normalize(_LIKENESS * rows[positives][:, None] + (1 - _LIKENESS**2) ** 0.5 * noise, dim=-1)
        return cls(rows.numpy(), queries, positives)


def by_ours(asked: Asked) -> np.ndarray:
    """`[B, G]` ranks."""
    positives = asked.positives[:, None]
    found = exact_ranking(asked.queries, Positives(positives, torch.ones(positives.shape)), Shard(asked.rows))
    return found.rank[..., 0].numpy()


def by_numpy(asked: Asked) -> np.ndarray:
    """`[B, G]` ranks: one product, one comparison, one sum."""
    queries = asked.queries.flatten(0, 1).numpy()
    own = np.repeat(asked.positives.numpy(), asked.queries.shape[1])
    scores = asked.rows @ queries.T
    return (scores >= scores[own, range(len(own))] - TIE).sum(0).reshape(asked.queries.shape[:2])


def by_faiss(asked: Asked, index: object) -> np.ndarray:
    """`[B, G]` ranks: how many rows a search by range finds for each query.

    Args:
        asked: what is asked.
        index: a flat one by inner product, of all rows.
    """
    queries = asked.queries.flatten(0, 1).numpy()
    own = np.repeat(asked.positives.numpy(), asked.queries.shape[1])
    limits = (queries * asked.rows[own]).sum(1) - TIE
    asked_with = zip(queries, limits, strict=True)
    found = [index.range_search(query[None], float(limit))[0][1] for query, limit in asked_with]
    return np.array(found).reshape(asked.queries.shape[:2])


def rank(n_rows: int, n_queries: int, group_size: int) -> Comparison:
    """The ranks of all rollouts of a step."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    asked = Asked.random(n_rows, n_queries, group_size)
    index = faiss.IndexFlatIP(asked.rows.shape[1])
    index.add(asked.rows)
    ours = by_ours(asked)
    peers = {"numpy": lambda: by_numpy(asked), "faiss range_search": lambda: by_faiss(asked, index)}
    n = n_queries * group_size
    return Comparison(
        unit="milliseconds per step",
        amount=1,
        peer=f"numpy {np.__version__}, faiss {faiss.__version__}",
        ours=lambda: by_ours(asked),
        theirs=peers,
        equal=[
            Equal(f"ranks, {name}", float(np.abs(ours - run()).max()), 0.0) for name, run in peers.items()
        ],
        cost=Cost(flops=2.0 * n * asked.rows.size, bytes=float(asked.rows.nbytes)),
        is_latency=True,
    )
