"""Live indexes over a corpus whose embeddings drift, as the tests of rules and of faults make them."""

from functools import partial

import numpy as np
import pytest
from drifting import dcg_on

from search_r3.index.backends.flat import InPlaceIndex
from search_r3.index.rules.base import Refresh
from search_r3.index.rules.candidates import Candidates
from search_r3.index.rules.certified import Certified
from search_r3.index.rules.drift import Drift
from search_r3.index.rules.frozen import Frozen
from search_r3.index.rules.full import Full
from search_r3.index.rules.neighbourhood import Graph
from search_r3.index.served import LiveIndex

KEY = {"weights": "w", "corpus": "c"}
RULES = {
    "frozen": Frozen,
    "full": Full,
    "candidates": partial(Candidates, k=5),
    "graph": partial(Graph, k=3, n_neighbours=4),
    "drift": partial(Drift, n_sampled=60),
    "certified": partial(Certified, miscoverage=0.1, window=200),
}
EVERY_RULE = [pytest.param(make, id=name) for name, make in RULES.items()]


def settings_of(rule, **settings):
    return Refresh(rule, **{"audit_every_n_steps": 5, **settings})


def created(folder, corpus, rule, backend=InPlaceIndex, source=None, overwrite=False, **settings):
    source = corpus.vectors(0) if source is None else source
    settings = settings_of(rule, **settings)
    return LiveIndex.create(folder, KEY, source, backend, settings, chunk_size=50, overwrite=overwrite)


def ran(index, corpus, steps, audits=True):
    """The ledger's lines of some steps."""
    lines = []
    for step in steps:
        queries = corpus.queries(step)
        line = index.refresh(step, queries, corpus.encoder(step))
        if audits and index.settings.is_audit_step(step):
            reward = dcg_on(queries, 4)
            line |= index.audit(step, queries, reward(index.rows), reward, corpus.encoder(step))
        lines.append(line)
    return lines


def held(index):
    return index.rows.copy(), index.encoded_at.copy()


def without_seconds(lines):
    return [{name: value for name, value in line.items() if "seconds" not in name} for line in lines]


def nearest(rows, n):
    scores = (rows[None].astype(np.float64) * rows[:, None].astype(np.float64)).sum(-1)
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :n], -np.sort(-scores, axis=1)[:, :n]
