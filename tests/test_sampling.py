import logging
from collections import Counter
from itertools import islice

import pytest
from torch.utils.data import DataLoader

from search_r3.stages.sampler import GroupedBatchSampler


def take(sampler: GroupedBatchSampler, n: int) -> list[list[int]]:
    return list(islice(iter(sampler), n))


def two_sources(**settings) -> GroupedBatchSampler:
    sources = ["code"] * 60 + ["web"] * 30
    clusters = [f"c{row % 3}" for row in range(90)]
    return GroupedBatchSampler(90, sources, clusters, **{"batch_size": 8, "seed": 3, **settings})


def test_an_epoch_holds_every_row_at_most_once_and_nearly_all_of_them():
    sampler = GroupedBatchSampler(50, batch_size=8)
    first = [row for batch in take(sampler, 6) for row in batch]  # 50 // 8 = 6 batches are an epoch
    second = [row for batch in take(sampler, 6) for row in batch]
    assert len(first) == len(set(first)) == 48
    assert len(second) == len(set(second)) == 48
    assert first != second
    assert set(first) | set(second) == set(range(50))


def test_a_batch_holds_rows_of_one_source():
    for batch in take(two_sources(), 50):
        assert len({row < 60 for row in batch}) == 1


def test_sources_are_drawn_by_weight():
    sampler = two_sources(weights={"code": 1.0, "web": 3.0})
    n_web = sum(batch[0] >= 60 for batch in take(sampler, 2000))
    assert 0.70 < n_web / 2000 < 0.80


def test_a_source_of_weight_zero_is_never_drawn():
    assert all(batch[0] < 60 for batch in take(two_sources(weights={"code": 1, "web": 0}), 200))


def test_without_weights_sources_are_drawn_by_their_number_of_rows():
    n_web = sum(batch[0] >= 60 for batch in take(two_sources(), 2000))
    assert 0.28 < n_web / 2000 < 0.39


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_given_share_of_batches_is_drawn_within_one_cluster(share):
    clusters = [f"c{row // 80}" for row in range(800)]  # 10 clusters of 80 rows: exactly 10 batches of 8 each
    sampler = GroupedBatchSampler(800, clusters=clusters, batch_size=8, same_cluster_share=share)
    n_pure = sum(len({row // 80 for row in batch}) == 1 for batch in take(sampler, 100))
    assert n_pure == round(100 * share)  # by chance 10 ** -7


def test_a_cluster_smaller_than_a_batch_stays_together():
    clusters = [f"c{row // 4}" for row in range(400)]
    sampler = GroupedBatchSampler(400, clusters=clusters, batch_size=8, same_cluster_share=1.0)
    for batch in take(sampler, 50):
        assert max(Counter(row // 4 for row in batch).values()) == 4


def test_rows_with_an_equal_key_never_meet_and_none_is_lost():
    positives = [row // 2 for row in range(200)]  # every positive twice
    queries = [row % 150 for row in range(200)]
    sampler = GroupedBatchSampler(200, batch_size=20, keys=[positives, queries])
    seen: set[int] = set()
    for batch in take(sampler, 60):
        assert len(batch) == 20
        assert len({positives[row] for row in batch}) == 20
        assert len({queries[row] for row in batch}) == 20
        seen.update(batch)
    assert seen == set(range(200))


def test_keys_within_clusters_still_give_full_batches():
    clusters = [f"c{row // 100}" for row in range(1000)]
    keys = [row // 3 for row in range(1000)]
    sampler = GroupedBatchSampler(1000, None, clusters, 16, same_cluster_share=1.0, keys=[keys])
    epoch = take(sampler, 60)  # (1000 - 16) // 16 = 61 batches are an epoch
    assert {len(batch) for batch in epoch} == {16}
    rows = [row for batch in epoch for row in batch]
    assert len(rows) == len(set(rows))


def test_a_source_smaller_than_a_batch_gives_all_its_rows():
    for batch in take(GroupedBatchSampler(5, batch_size=8, keys=[range(5)]), 3):
        assert sorted(batch) == list(range(5))


def test_seeds_give_different_batches_and_one_seed_always_the_same():
    assert take(two_sources(), 30) == take(two_sources(), 30)
    assert take(two_sources(), 30) != take(two_sources(seed=4), 30)


@pytest.mark.parametrize("position", [0, 1, 7, 40, 4097])
def test_pitfall_18_resuming_at_any_position_goes_on_as_if_never_stopped(position):
    settings = {"same_cluster_share": 0.5, "keys": [[row // 2 for row in range(90)]]}
    whole = take(two_sources(**settings), position + 10)
    stopped = two_sources(**settings)
    take(stopped, position)
    resumed = two_sources(**settings)
    resumed.load_state_dict(stopped.state_dict())
    assert take(resumed, 10) == whole[position:]


def test_a_loader_that_fetches_ahead_resumes_at_the_batch_that_training_saw_last():
    expected = take(two_sources(), 9)
    sampler = two_sources()
    loader = DataLoader(range(90), batch_sampler=sampler, num_workers=1, prefetch_factor=4, collate_fn=list)
    consumed = list(islice(loader, 4))
    assert sampler.position > 4
    resumed = two_sources()
    resumed.load_state_dict(sampler.state_dict(position=4))
    assert consumed + take(resumed, 5) == expected


def test_the_ranks_share_one_global_batch():
    whole = take(two_sources(), 20)
    parts = [take(two_sources(rank=rank, world_size=3), 20) for rank in range(3)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert sorted(batch) == sorted(row for share in shares for row in share)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_run_may_resume_on_another_number_of_ranks():
    resumed = two_sources(rank=1, world_size=2)
    resumed.load_state_dict({**two_sources().state_dict(), "position": 5})
    assert take(resumed, 1)[0] == take(two_sources(), 6)[5][1::2]


def test_a_state_of_other_rows_is_refused():
    with pytest.raises(ValueError, match="other rows"):
        two_sources().load_state_dict(two_sources(seed=9).state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_rows": 0}, "no row"),
        ({"sources": ["a"]}, "sources must have one entry per row"),
        ({"keys": [[1, 2]]}, r"keys\[0\]"),
        ({"same_cluster_share": 0.5}, "no clusters"),
        ({"same_cluster_share": 1.5}, "same_cluster_share"),
        ({"weights": {"b": 1.0}, "sources": ["a"] * 4}, "'a'"),
        ({"weights": {"a": 0.0}, "sources": ["a"] * 4}, "not all 0"),
        ({"rank": 2, "world_size": 2}, "rank"),
        ({"world_size": 8, "batch_size": 8}, "fewer than the 8 ranks"),
    ],
)
def test_bad_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GroupedBatchSampler(**{"n_rows": 4, "batch_size": 2, **settings})


def test_a_source_with_fewer_distinct_keys_than_ranks_is_refused_before_the_first_batch():
    settings = {"sources": ["a"] * 4 + ["b"] * 4, "keys": [[*range(4), 7, 7, 7, 7]], "batch_size": 4}
    with pytest.raises(ValueError, match="'b' has 4 rows with 1 different positives or queries, fewer than"):
        GroupedBatchSampler(8, **settings, world_size=2)
    weights = {"a": 1.0, "b": 0.0}
    assert len(take(GroupedBatchSampler(8, **settings, weights=weights, world_size=2), 3)) == 3


def test_a_document_that_many_rows_share_leaves_no_rank_without_a_row():
    keys = [0 if row % 5 == 0 else row for row in range(400)]  # a fifth of the rows have one positive
    ranks = [
        take(GroupedBatchSampler(400, batch_size=8, keys=[keys], rank=rank, world_size=8), 150)
        for rank in range(8)
    ]
    n_doubled = 0
    for shares in zip(*ranks, strict=True):
        assert [len(share) for share in shares] == [1] * 8
        rows = [share[0] for share in shares]
        assert len(set(rows)) == 8
        n_doubled += sum(row % 5 == 0 for row in rows) > 1
    assert 0 < n_doubled < 150
    for epoch in range(3):
        whole = [share[0] for rank in ranks for share in rank[epoch * 49 : (epoch + 1) * 49]]
        assert len(whole) == len(set(whole)) == 392


def lines_of(caplog, n_batches=6, **settings) -> list[str]:
    """What is logged while batches are drawn."""
    with caplog.at_level(logging.INFO, "search_r3"):
        take(GroupedBatchSampler(**settings), n_batches)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_rows": 45, "batch_size": 128}, ["at most 45 of stage.datamodule.batch_size=128", "45 rows."]),
        (
            {"n_rows": 45, "batch_size": 8, "keys": [["same"] * 45]},
            ["at most 1 of", "45 rows with 1 different positives", "no other document to be told from"],
        ),
        (
            {"n_rows": 40, "batch_size": 8, "keys": [[row % 5 for row in range(40)]]},
            ["at most 5 of", "batch_size=5 to say so"],
        ),
        (
            {"n_rows": 40, "batch_size": 8, "keys": [[0] * 32 + list(range(1, 9))]},  # 9 keys, mostly one
            ["a batch of the training rows holds", "have a positive or a query that it holds already"],
        ),
        (
            {"n_rows": 60, "sources": ["large"] * 50 + ["small"] * 10, "batch_size": 16},
            ["batches of source 'small' hold at most 10"],
        ),
    ],
)
def test_a_batch_that_cannot_be_filled_is_told_once(caplog, settings, words):
    (line,) = lines_of(caplog, **settings)

    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "settings",
    [
        {"n_rows": 45, "batch_size": 8},
        {"n_rows": 45, "batch_size": 45},
        {"n_rows": 400, "batch_size": 8, "keys": [[row // 2 for row in range(400)]]},
        {"n_rows": 45, "batch_size": 128, "rank": 1, "world_size": 2},  # the first rank tells
        {"n_rows": 60, "sources": ["a"] * 50 + ["b"] * 10, "batch_size": 16, "weights": {"a": 1, "b": 0}},
    ],
)
def test_batches_that_can_be_filled_are_not_told_of(caplog, settings):
    assert lines_of(caplog, **settings) == []
