"""Advantages of a group: by hand, whatever the unit of the reward, and what margins alone earn."""

import math
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from random_rollouts import B, rollouts
from torch.testing import assert_close

from search_r3.objectives.advantages import group_advantages
from search_r3.objectives.ranking import Ranking

CONF = Path(__file__).resolve().parents[1] / "conf"


def test_advantages_are_the_values_by_hand():
    # mean 2, deviations -1, 0, 1; sample standard deviation 1
    rewards = torch.tensor([[1.0, 2.0, 3.0]])
    assert_close(group_advantages(5 * rewards).values, torch.tensor([[-1.0, 0.0, 1.0]]))
    assert_close(group_advantages(rewards, std_floor=1.25).values, torch.tensor([[-0.8, 0.0, 0.8]]))
    assert_close(group_advantages(rewards, scale_by_std=False).values, torch.tensor([[-1.0, 0.0, 1.0]]))


@pytest.mark.parametrize("scale_by_std", [True, False])
def test_advantages_sum_to_zero_and_keep_the_order_of_rewards(scale_by_std):
    rewards = rollouts()["rewards"]
    advantages = group_advantages(rewards, scale_by_std)
    assert_close(advantages.values.sum(1), torch.zeros(B), atol=1e-5, rtol=0)
    assert torch.equal(advantages.values[[0, 2]].argsort(1), rewards[[0, 2]].argsort(1))
    assert advantages.values.abs().max() > 0.1


def test_a_scaled_advantage_does_not_depend_on_the_unit_of_the_reward():
    rewards = rollouts()["rewards"]
    assert_close(
        group_advantages(rewards, std_floor=0.0).values,
        group_advantages(5 * rewards - 3, std_floor=0.0).values,
        atol=1e-4,
        rtol=0,
    )


def test_rewards_that_hardly_differ_keep_their_digits():
    # near 1.1 a mean in fp32 is off by up to 6e-8, and these differ by 1.2e-7 a step
    rewards = torch.tensor([[1.1] * 4]) + torch.arange(4) * 2.0**-23
    advantages = group_advantages(rewards, min_spread=0.0, std_floor=1.0).values
    assert_close(advantages, torch.tensor([[-1.5, -0.5, 0.5, 1.5]]) * 2.0**-23, atol=0, rtol=1e-6)


def rewards_of(ranks, margins):
    """`[1, G]` rewards as `reward=margin_dcg` gives them; the best wrong document has cosine 0.4."""
    reward = instantiate(OmegaConf.load(CONF / "reward" / "margin_dcg.yaml"))
    rank, scores = torch.tensor(ranks)[None, :, None], 0.4 + torch.tensor(margins)[None, :, None]
    best_wrong = torch.full(scores.shape[:2], 0.4)
    ranking = Ranking(rank, scores, best_wrong, torch.ones(1, 1), torch.tensor([20000]))
    return reward(ranking, torch.ones_like(best_wrong, dtype=torch.bool)).total


def advantages_of(ranks, margins):
    """As the RL stage takes them, by its config."""
    policy = OmegaConf.load(CONF / "stage" / "rl.yaml").module.policy
    return group_advantages(rewards_of(ranks, margins), policy.scale_by_std, policy.std_floor)


def test_margins_alone_earn_a_small_part_of_an_advantage():
    near = advantages_of([1, 1, 1, 1], [0.10, 0.11, 0.12, 0.13])
    assert near.has_spread.all()
    assert (near.values.diff() > 0).all()
    assert near.values.abs().max() < 0.07
    for margins in ([0.0] * 7 + [0.6], [0.0] + [0.6] * 7, [0.0, 0.6] * 4, [-1.4] + [0.6] * 7):
        assert advantages_of([1] * 8, margins).values.abs().max() < 1.0


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("margin", [-0.3, 0.0, 0.3])
def test_a_better_rank_earns_a_full_advantage(rank, margin):
    # sqrt(8) * 7 / 8 is that of one of eight that differs from the others
    advantages = advantages_of([rank] + [rank + 1] * 7, [margin] + [0.0] * 7).values
    assert advantages[0, 0].item() == pytest.approx(math.sqrt(8) * 7 / 8, rel=1e-5)


def test_without_a_floor_margins_alone_earn_a_full_advantage():
    rewards = rewards_of([1, 1, 1, 1], [0.10, 0.11, 0.12, 0.13])
    assert group_advantages(rewards, std_floor=0.0).values.abs().max() > 1.0


def test_a_group_without_spread_gets_exact_zeros_and_is_reported():
    # 0.1 is no binary fraction: the mean of seven is not 0.1 in fp32
    rewards = torch.tensor([[0.1] * 7, [0.1] * 6 + [0.2]])
    advantages = group_advantages(rewards)
    assert advantages.has_spread.tolist() == [False, True]
    assert (advantages.values[0] == 0.0).all()
    assert advantages.values[1, 6] > 2.0


@pytest.mark.parametrize("bad", [torch.zeros(2, 1), torch.zeros(4), torch.tensor([[0.0, math.nan]])])
def test_rewards_that_cannot_be_compared_are_refused(bad):
    with pytest.raises(ValueError, match="rewards must be"):
        group_advantages(bad)


def test_a_floor_below_zero_is_refused():
    with pytest.raises(ValueError, match="std_floor must not be negative"):
        group_advantages(torch.rand(1, 2), std_floor=-0.1)
