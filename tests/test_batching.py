"""Rows dealt to forwards: each once, within the budget, with the least padding that their order allows."""

import itertools
import random

import pytest
import torch

from search_r3.models.batching import forward_cost, length_batches


def padded(lengths, batch):
    return len(batch) * max(lengths[row] for row in batch)


@pytest.mark.parametrize("forward_cost", [None, 0, 3, 1000])
def test_batches_hold_every_row_once_within_the_budget(forward_cost):
    lengths = [5, 1, 9, 3, 9, 40, 2]
    batches = list(length_batches(lengths, 18, forward_cost))
    assert sorted(row for batch in batches for row in batch) == list(range(7))
    assert all(len(batch) == 1 or padded(lengths, batch) <= 18 for batch in batches)
    longest = [max(lengths[row] for row in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_is_split_where_that_costs_least_of_all_splits(seed):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 60) for _ in range(9)]
    forward_cost = draw.randint(0, 60)
    batches = list(length_batches(lengths, 10_000, forward_cost))
    cost = sum(padded(lengths, batch) + forward_cost for batch in batches)

    order = sorted(lengths, reverse=True)
    costs = []
    for cuts in itertools.product([False, True], repeat=8):
        edges = [0, *(place + 1 for place, cut in enumerate(cuts) if cut), 9]
        costs.append(
            sum((end - start) * order[start] + forward_cost for start, end in itertools.pairwise(edges))
        )
    assert cost == min(costs)


def test_a_long_row_among_short_ones_is_run_by_itself_only_where_a_forward_costs_less_than_its_padding():
    lengths = [100, *[10] * 5]
    assert len(list(length_batches(lengths, 1000, 449))) == 2  # padding of 5 x 90
    assert len(list(length_batches(lengths, 1000, 450))) == 1
    assert len(list(length_batches(lengths, 1000))) == 1  # decoding counts steps, not tokens


def test_no_rows_make_no_batch():
    assert list(length_batches([], 8, 2)) == []


def test_a_forward_more_costs_a_gpu_a_quarter_of_its_budget_and_a_cpu_little():
    assert forward_cost(16_384, torch.device("cpu")) == 512
    assert forward_cost(16_384, torch.device("cuda", 0)) == 4096
