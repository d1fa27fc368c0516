"""The cache of embeddings that two ranks fill together: where one of them fails, both do with one message."""

import resource

import pytest
import torch
from rl_runs import data_of, likely_folder, opened, world
from two_processes import on_two_ranks

from search_r3.distributed import Ranks
from search_r3.index.rows.cache import StoreError, open_store


def not_finite(embedder, rank):
    """The store of the first rank refuses what all of them encoded."""
    with torch.no_grad():
        embedder.causal_lm.get_output_embeddings().weight.fill_(1.0)
        for parameter in embedder.decoder.parameters():
            parameter.fill_(float("nan"))


def out_of_memory(failing, embedder, rank):
    """A rank fails at its second forward, within a corpus that takes more of them."""
    calls = []

    def second(*_):
        calls.append(1)
        if rank == failing and len(calls) == 2:
            raise MemoryError("no room for a forward")

    embedder.decoder.register_forward_hook(second)


def full_disk(embedder, rank):
    if rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, resource.RLIM_INFINITY))


def nothing(embedder, rank):
    """No failure: the ranks can still be used together."""


CASES = {
    "not finite": not_finite,
    "out of memory on the first": lambda *given: out_of_memory(0, *given),
    "out of memory on the second": lambda *given: out_of_memory(1, *given),
    "full disk": full_disk,
    "nothing": nothing,
}
MESSAGES = {
    "not finite": "could not be encoded (ValueError: the embedding of document row 0 is not finite)",
    "out of memory on the first": "rank 0: ",
    "out of memory on the second": "rank 1: ",
    "full disk": "embeddings cannot be written there (File too large)",
    "nothing": "nothing was raised",
}


def work(rank, model, folder):
    found = {}
    for name, prepare in CASES.items():
        data = data_of(opened(model), folder / name / "run", encode_batch=2)
        key = data.key
        prepare(data.embedder, rank)
        try:
            rows, text = data._cached_rows(), "nothing was raised"
            assert (rows == open_store(next((folder / name / "cache").iterdir()), key, len(rows))).all()
        except StoreError as error:
            text = str(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        found[name] = text, Ranks().gather_objects((rank, name))
    return found


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    place = tmp_path_factory.mktemp("two_rank_cache")
    assert len(world().corpus) > 4  # of 4 documents, 2 a rank, the store has more than one chunk
    return on_two_ranks(work, likely_folder(place), place)


@pytest.mark.parametrize("name", CASES)
def test_a_failure_while_the_cache_is_filled_is_one_error_on_both_ranks(name, two_ranks):
    (first, after_first), (second, after_second) = (results[name] for results in two_ranks)
    assert first == second
    assert MESSAGES[name] in first
    if "memory" in name:
        assert "could not be encoded (MemoryError: no room for a forward)" in first
    assert after_first == after_second == [(0, name), (1, name)]  # neither waits for an earlier call
