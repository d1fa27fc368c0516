"""KL estimators, by exact enumeration of a small vocabulary."""

import math

import pytest
import torch
from torch.testing import assert_close

from search_r3.objectives.grpo import (
    k1,
    k2,
    k3,
)


def enumerated(kl):
    """An estimator's expected value and gradient over the policy's samples, and both exact divergences."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(9, generator=generator, dtype=torch.float64).requires_grad_()
    ref = torch.randn(9, generator=generator, dtype=torch.float64).log_softmax(-1)
    log_probs = logits.log_softmax(-1)
    p = log_probs.exp()
    values = kl(log_probs, ref)
    (gradient,) = torch.autograd.grad((p.detach() * values).sum(), logits, retain_graph=True)
    reverse, forward = (p * (log_probs - ref)).sum(), (ref.exp() * (ref - log_probs)).sum()
    gradients = [torch.autograd.grad(d, logits, retain_graph=True)[0] for d in (reverse, forward)]
    return (p * values).sum().item(), values.detach(), gradient, reverse.item(), *gradients


def test_k1_is_unbiased_and_does_not_pull():
    mean, values, gradient, exact, _, _ = enumerated(k1)
    assert mean == pytest.approx(exact)
    assert values.min() < 0
    assert gradient.abs().max() < 1e-12


def test_k2_is_biased_and_pulls_as_kl_to_the_reference_does():
    mean, values, gradient, exact, to_reference, _ = enumerated(k2)
    assert abs(mean - exact) > 0.01
    assert (values >= 0).all()
    assert_close(gradient, to_reference)
    assert gradient.abs().max() > 0.01


def test_k3_is_unbiased_and_pulls_as_kl_from_the_reference_does():
    mean, values, gradient, exact, to_reference, from_reference = enumerated(k3)
    assert mean == pytest.approx(exact)
    assert (values >= 0).all()
    assert_close(gradient, from_reference)
    assert not torch.allclose(gradient, to_reference, atol=1e-3)


def test_k3_is_the_value_by_hand_and_keeps_its_digits_near_zero():
    # ref twice as likely: 2 - 1 - log 2
    assert k3(torch.tensor(-2.0), torch.tensor(-2.0 + math.log(2))).item() == pytest.approx(1 - math.log(2))
    assert k3(torch.tensor(0.0), torch.tensor(1e-3)).item() == pytest.approx(5e-7, rel=0.1)
