"""Means over queries that several ranks have measured, carried by torchmetrics.

torchmetrics only carries: its own retrieval metrics see nothing but what was retrieved, so that ideal gain
and recall come out too high. The values of a query are computed beforehand, from all its judgements.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


def first_reported(tables: Tensor) -> Tensor:
    """Of every query the row of the first rank that reported it.

    Args:
        tables: `[W, Q, M + 1]`; the last column is 1 where a rank reported the query, else 0.

    Returns:
        `[Q, M + 1]`.
    """
    first = tables[..., -1].argmax(0)  # of equal values the first one's place
    return tables[first, torch.arange(tables.shape[1], device=tables.device)]


class QueryMeans(Metric):
    """Means of per-query values over the queries of all ranks; a query that is reported twice counts once.

    A distributed sampler repeats rows so that ranks get equally many
    (https://github.com/Lightning-AI/pytorch-lightning/issues/7929); plain sums would count them twice. So
    values are kept by query id until they are gathered, and the first report of a query is taken.

    Args:
        query_ids: `Q` ids, unique and the same on all ranks; the mean is over all of them.
        names: of the `M` values of a query.

    >>> means = QueryMeans(["q1", "q2"], ["ndcg@10"])
    >>> means.update({"q1": {"ndcg@10": 1.0}, "q2": {"ndcg@10": 0.5}})
    >>> means.update({"q1": {"ndcg@10": 0.0}})
    >>> means.compute()["ndcg@10"].item()
    0.75
    """

    full_state_update = False
    higher_is_better = None
    table: Tensor

    def __init__(self, query_ids: Sequence[str], names: Sequence[str]) -> None:
        super().__init__()
        self.query_ids, self.names = tuple(query_ids), tuple(names)
        self._place = {query: place for place, query in enumerate(self.query_ids)}
        if not self.query_ids or len(self._place) != len(self.query_ids):
            raise ValueError(f"query_ids must be unique and at least one, got {len(self.query_ids)} ids")
        empty = torch.zeros(len(self.query_ids), len(self.names) + 1, dtype=torch.float64)
        self.add_state("table", default=empty, dist_reduce_fx=first_reported)

    def update(self, rows: Mapping[str, Mapping[str, float]]) -> None:
        """Reports the values of some queries, by query id and name; of a known query the earlier ones stay.

        Raises:
            ValueError: If an id is none of `query_ids`.
            KeyError: If a query lacks one of the values.
        """
        unknown = [query for query in rows if query not in self._place]
        if unknown:
            raise ValueError(f"{len(unknown)} queries are not among query_ids, the first is {unknown[0]!r}")
        if not rows:
            return
        reported = torch.zeros_like(self.table)
        values = [[*(row[name] for name in self.names), 1.0] for row in rows.values()]
        reported[[self._place[query] for query in rows]] = torch.tensor(values, dtype=torch.float64).to(
            reported
        )
        self.table = first_reported(torch.stack([self.table, reported]))

    def compute(self) -> dict[str, Tensor]:
        """Mean of each value over all `query_ids`.

        Raises:
            ValueError: If no rank reported a query: a mean over the others would not say so. A query that
                retrieved nothing is reported with zeros.
        """
        is_reported = self.table[:, -1] > 0
        if not bool(is_reported.all()):
            first = self.query_ids[int((~is_reported).nonzero()[0])]
            raise ValueError(f"{int((~is_reported).sum())} queries were not reported, the first is {first!r}")
        return dict(zip(self.names, self.table[:, :-1].mean(0), strict=True))
