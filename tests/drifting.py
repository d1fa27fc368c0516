"""A corpus whose embeddings drift as those of a trained model do: known at every step, for rows alone."""

import numpy as np

from search_r3.index.rules.base import StepQueries


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


class DriftingCorpus:
    """`N` documents. At every step each moves a little by itself and all of them turn alike."""

    def __init__(self, n=400, width=16, own=0.02, common=0.02, seed=0):
        rng = np.random.default_rng(seed)
        self.n, self.width, self.own, self.common = n, width, own, common
        centres = rng.standard_normal((20, width))
        self.base = unit(centres[rng.integers(20, size=n)] + 0.5 * rng.standard_normal((n, width)))
        self.direction = rng.standard_normal((n, width))
        skew = rng.standard_normal((width, width))
        self.turn = skew - skew.T
        self.seed = seed
        self.encoded = []  # (step, row) of everything encoded

    def vectors(self, step, rows=None):
        rows = np.arange(self.n) if rows is None else rows
        own = self.base[rows] + step * self.own * self.direction[rows]
        common = np.eye(self.width) + step * self.common * self.turn
        return unit((own[:, :, None] * common[None]).sum(1))  # row by row: no product depends on the others

    def encoder(self, step):
        def encode(rows):
            self.encoded += [(step, int(row)) for row in rows]
            return self.vectors(step, np.asarray(rows))

        return encode

    def queries(self, step, n_queries=6, n_rollouts=4, noise=1.5):
        """Rollouts near their positive, as vectors at this step."""
        rng = np.random.default_rng((self.seed, step))
        positives = rng.choice(self.n, n_queries, replace=False)
        near = self.vectors(step, positives)[:, None]
        noisy = near + noise * rng.standard_normal((n_queries, n_rollouts, self.width)) / self.width**0.5
        vectors = unit(noisy).reshape(-1, self.width)
        return StepQueries(vectors, np.repeat(positives, n_rollouts)[:, None])


def dcg_on(queries, n_rollouts, k=None):
    """From all rows to rewards `[B, G]`: the discount at the rank by count, ties against the positive."""

    def reward(rows):
        scores = queries.vectors.astype(np.float64) @ rows.T.astype(np.float64)
        places = np.arange(len(scores))
        own = scores[places, queries.positives[:, 0]]
        scores[places, queries.positives[:, 0]] = -np.inf
        rank = 1 + (scores >= own[:, None] - 1e-6).sum(1)
        values = np.where(rank <= (k or len(rows)), 1 / np.log2(rank + 1), 0)
        return values.reshape(-1, n_rollouts)

    return reward
