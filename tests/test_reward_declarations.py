"""What a reward declares to read of a ranking, and that it reads nothing else."""

from functools import partial

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rankings import CONF, REWARDS, random_scores, random_sets, ranking_of

from search_r3.objectives.ranking import Ranking
from search_r3.objectives.reads import Reads, reads
from search_r3.objectives.rewards import Reward, dcg, margin_dcg, scaled_dcg


def own(ranking, k=10):
    """A user's function, which declares nothing."""
    return (ranking.scores[..., 0] > ranking.best_wrong).float()


@reads(best_wrong=False, cut_off="depth")
def by_depth(ranking, depth=None):
    return dcg(ranking, depth)


class Twice(Reward):
    """A user's subclass, which may read anything."""

    def __call__(self, ranking, has_embed_token):
        return super().__call__(ranking, has_embed_token)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (Reward(dcg), Reads(best_wrong=False, cut_off=None)),
        (Reward(partial(dcg, k=10)), Reads(best_wrong=False, cut_off=10)),
        (Reward(partial(partial(scaled_dcg, k=20), scale=2.0)), Reads(best_wrong=False, cut_off=20)),
        (Reward(partial(margin_dcg, k=5)), Reads(best_wrong=True, cut_off=5)),
        (Reward(partial(by_depth, depth=7)), Reads(best_wrong=False, cut_off=7)),
        (Reward(lambda ranking: dcg(ranking, k=10)), Reads()),
        (Reward(partial(own, k=10)), Reads()),
        (Twice(partial(dcg, k=10)), Reads()),
    ],
)
def test_a_reward_says_what_it_reads_and_everything_where_nothing_is_declared(reward, expected):
    assert reward.reads == expected
    token = torch.ones(1, 2, dtype=torch.bool)
    assert reward(ranking_of([1, 3]), token).total.isfinite().all()


@pytest.mark.parametrize("name", ["dcg", "scaled_dcg", "margin_dcg"])
def test_the_rewards_in_conf_say_what_they_read(name):
    node = OmegaConf.load(CONF / f"{name}.yaml")
    assert instantiate(node).reads == Reads(name == "margin_dcg", node.ranking.k)
    node.ranking.k = 3
    assert instantiate(node).reads.cut_off == 3


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("seed", range(3))
def test_what_a_reward_declares_not_to_read_does_not_move_it(name, seed):
    k = 10 if name.endswith("@10") else None
    functions = {"dcg": dcg, "scaled_dcg": scaled_dcg, "margin_dcg": margin_dcg}
    reward = Reward(partial(functions[name.removesuffix("@10")], k=k))
    before, generator = random_sets(seed)
    assert reward.reads.cut_off == k
    scores, best_wrong = random_scores(before.rank.shape, generator)
    is_beyond = before.rank > (k or 10**6)
    rank = torch.where(is_beyond, before.rank + 3, before.rank)
    if reward.reads.best_wrong:  # nor the margins of positives beyond the cut-off
        has_none = (is_beyond | ~before.has_positive).all(-1)
        scores = torch.where(is_beyond, scores, before.scores)
        best_wrong = torch.where(has_none, best_wrong, before.best_wrong)
    after = Ranking(rank, scores, best_wrong, before.grades, before.last_rank)
    token = torch.ones(rank.shape[:2], dtype=torch.bool)
    assert torch.equal(reward(after, token).total, reward(before, token).total)
    assert torch.equal(reward.ranking(after), reward.ranking(before))  # where it is shown all, too
    assert k is None or is_beyond.any()


@pytest.mark.parametrize("function", [dcg, scaled_dcg, margin_dcg])
def test_the_rank_at_the_cut_off_is_shown_and_earns_as_the_function_says(function):
    ranking = ranking_of([9, 10, 11])
    reward = Reward(partial(function, k=10), format_weight=0.0)
    total = reward(ranking, torch.ones(1, 3, dtype=torch.bool)).total
    assert torch.equal(total, function(ranking, k=10))
    assert total[0, 0] > total[0, 1] > total[0, 2] == 0


def test_a_wrong_declaration_stops_the_run():
    @reads(best_wrong=False)
    def by_margin(ranking):
        return own(ranking)

    @reads(best_wrong=True, cut_off="k")
    def beyond(ranking, k=2):
        return dcg(ranking) + 0.1

    token = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="declares not to read the best wrong score and reads it"):
        Reward(by_margin)(ranking_of([1, 3]), token)
    with pytest.raises(ValueError, match="beyond declares the cut-off 2 and rewards"):
        Reward(beyond)(ranking_of([1, 3]), token)
