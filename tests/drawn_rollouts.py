"""Rollouts that a small model has drawn, and what was written in them."""

import pytest
import torch
from conftest import QUERIES, build_embedder

from search_r3.models.generation import Sampling
from search_r3.stages.rl.sampling import sample_rollouts

IDS = [f"q{number}" for number in range(len(QUERIES))]
EVERY = range(len(QUERIES))
G = 6


def willing(embedder, factor: float = 30.0):
    """The embedder with a larger row of the embed token, so that some rollouts write it and some do not."""
    with torch.no_grad():
        embedder.causal_lm.get_output_embeddings().weight[embedder.embed_token_id] *= factor
    return embedder


def drawn(embedder, places=EVERY, temperature=1.0, top_p=1.0, seed=3, step=7, limit=6, group_size=G):
    return sample_rollouts(
        embedder,
        [IDS[place] for place in places],
        [QUERIES[place] for place in places],
        Sampling(limit, temperature, top_p),
        group_size,
        seed,
        step,
    )


@pytest.fixture(scope="module")
def policy():
    """Read only."""
    return willing(build_embedder(seed=1))


@pytest.fixture(scope="module")
def rollouts(policy):
    return drawn(policy)


def every_row(rollouts) -> list[int]:
    return list(range(rollouts.n_tokens.numel()))


def written(rollouts) -> list[list[list[int]]]:
    """Token ids without the embed token, by query and rollout."""
    return [
        [ids[:n] for ids, n in zip(group, lengths, strict=True)]
        for group, lengths in zip(rollouts.token_ids.tolist(), rollouts.n_tokens.tolist(), strict=True)
    ]
