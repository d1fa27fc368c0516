"""A normalisation and a KL estimator of one's own: a function and a YAML file each."""

import pytest
import torch

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.instantiate import instantiate
from search_r3.objectives.grpo import PolicyBatch, policy_loss


def by_square_root(mask, has_spread, max_tokens, power=0.5):
    """A rollout's tokens count less the longer it is, but its whole counts more."""
    lengths = mask.sum(-1, keepdim=True).clamp(min=1)
    return mask / lengths**power, int(has_spread.sum()) * mask.shape[1]


def absolute(log_probs, ref_log_probs):
    """Not an estimate of anything that is known, but a function of one's own."""
    return (log_probs - ref_log_probs).abs()


@pytest.fixture
def policy(tmp_path):
    for group, text in {
        "normalisation": "_target_: tests.test_own_functions.by_square_root\n_partial_: true\npower: 0.5\n",
        "kl": "_target_: tests.test_own_functions.absolute\n_partial_: true\n",
    }.items():
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text(text)
    with ConfigSource(tmp_path) as source:
        arguments = ["stage=rl", "model.path=m", "normalisation=mine", "kl=mine", "normalisation.power=1.0"]
        config = compose("train", arguments, source).config
    return instantiate(config.stage.module.policy)


def test_a_function_of_ones_own_is_chosen_by_its_file_and_takes_its_own_argument(policy):
    mask = torch.tensor([[[True, True, True, True], [True, False, False, False]]])
    weights, count = policy.normalisation(mask, torch.tensor([True]), 4)
    # a power of 1: each of 4 tokens counts a quarter, the only one of the other rollout 1
    assert weights.tolist() == [[[0.25] * 4, [1.0, 0.0, 0.0, 0.0]]]
    assert count == 2


def test_an_estimator_of_ones_own_enters_the_loss(policy):
    log_probs, weights = torch.tensor([[-1.0, -2.0]]), torch.tensor([[0.5, 0.5]])
    batch = PolicyBatch(log_probs, log_probs, torch.zeros(1), weights, log_probs + 3.0)
    loss = policy_loss(batch, kl_weight=2.0, kl=policy.kl)
    assert loss.total.item() == pytest.approx(6.0)  # 2 * |log p - log ref|, advantages being 0
