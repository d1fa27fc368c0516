"""Log-probabilities and entropies of tokens, in chunks, and their places in a batch."""

import math

import pytest
import torch
from conftest import linear_head
from torch.autograd.graph import saved_tensors_hooks
from torch.distributions import Categorical
from torch.testing import assert_close

from search_r3.models.generation import sample
from search_r3.objectives.log_probs import _entropy, token_log_probs, unpacked


def head(n_tokens: int = 11, vocabulary: int = 40, width: int = 6):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n_tokens, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, requires_grad=True)
    return hidden, weight, torch.randint(5, vocabulary, (n_tokens,), generator=generator)


BANNED = [0, 3]


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_token_log_probs_have_the_value_and_gradient_of_the_plain_ones(chunk):
    hidden, weight, targets = head()
    upstream = torch.linspace(-1, 1, 11)
    result = token_log_probs(hidden, linear_head(weight), targets, 0.7, BANNED, chunk)
    result.log_probs.mul(upstream).sum().backward()
    fast = [hidden.grad.clone(), weight.grad.clone()]
    hidden.grad = weight.grad = None
    logits = (hidden @ weight.T) / 0.7
    logits[:, BANNED] = -math.inf
    plain = logits.log_softmax(-1)[torch.arange(11), targets]
    plain.mul(upstream).sum().backward()

    assert hidden.grad.abs().max() > 0.1
    assert_close(result.log_probs, plain)
    assert_close(fast[0], hidden.grad)
    assert_close(fast[1], weight.grad)
    assert_close(
        result.entropy, Categorical(logits=logits[:, [i for i in range(40) if i not in BANNED]]).entropy()
    )
    assert not result.entropy.requires_grad


def test_log_probs_are_of_the_distribution_that_sampling_draws_from():
    hidden, weight, _ = head(n_tokens=1, vocabulary=8)
    banned = torch.tensor(BANNED)
    logits = (hidden @ weight.T).detach().index_fill(-1, banned, -math.inf)
    uniforms = (torch.arange(20000) + 0.5) / 20000  # evenly spread: no sampling noise
    drawn, recorded = sample(logits.expand(20000, -1), uniforms, temperature=0.6, top_p=1.0)
    shares = drawn.bincount(minlength=8) / 20000
    allowed = [token for token in range(8) if token not in BANNED]
    states, tokens = hidden.expand(6, -1), torch.tensor(allowed)
    log_probs = token_log_probs(states, linear_head(weight), tokens, 0.6, banned).log_probs

    assert (shares[BANNED] == 0).all()
    assert_close(log_probs.exp(), shares[allowed], atol=2e-4, rtol=0)
    assert log_probs.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    for token, log_prob in zip(allowed, log_probs, strict=True):
        assert_close(recorded[drawn == token], log_prob.expand(int((drawn == token).sum())))


def test_logits_of_one_chunk_are_the_largest_tensor_kept_for_backward():
    hidden, weight, targets = head(n_tokens=64, vocabulary=50)
    sizes = []

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        token_log_probs(hidden, linear_head(weight), targets, chunk=4).log_probs.sum().backward()
    assert max(sizes) <= max(weight.numel(), hidden.numel())  # 300 and 384; all logits would be 3200


@pytest.mark.parametrize("vocabulary", [2, 17, 150_000])
@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0, 5.0, 15.0, 50.0])
@pytest.mark.parametrize("level", [0.0, 50.0, -50.0])
def test_the_entropy_is_right_to_the_last_digits(vocabulary, spread, level):
    generator = torch.Generator().manual_seed(0)
    logits = level + spread * torch.randn(4, vocabulary, generator=generator)
    logits[1:, ::3] = -math.inf  # banned
    before = logits.clone()
    entropy = _entropy(logits)
    # log(sum of exp(z - max)), with the 1 of the highest kept apart, for sharp distributions too
    highest, at = logits.double().max(-1, keepdim=True)
    below = logits.double() - highest
    log_probs = below - below.exp().scatter(-1, at, 0.0).sum(-1, keepdim=True).log1p()
    expected = -(log_probs.exp() * log_probs.clamp(min=-1e300)).sum(-1)

    assert entropy.dtype == torch.float32
    assert torch.equal(logits, before)
    assert (entropy >= 0).all()
    # 8 ulps, and as a share of the one possible token's probability where hardly anything else is possible
    assert_close(entropy.double(), expected, rtol=8 * 2.0**-23, atol=1e-12)


def test_the_entropy_of_one_possible_token_is_zero():
    logits = torch.full((2, 9), -math.inf)
    logits[0, 4], logits[1, 0] = 50.0, -50.0
    assert _entropy(logits).tolist() == [0.0, 0.0]


def test_no_token_gives_a_zero_that_is_part_of_the_graph():
    hidden, weight, targets = head()
    result = token_log_probs(hidden[:0], linear_head(weight), targets[:0])
    result.log_probs.sum().backward()
    assert result.log_probs.shape == result.entropy.shape == (0,)
    assert (hidden.grad == 0).all()
    assert (weight.grad == 0).all()


def test_token_log_probs_refuse_what_cannot_be():
    hidden, weight, targets = head()
    with pytest.raises(ValueError, match=f"token {targets[0]} is banned"):
        token_log_probs(hidden, linear_head(weight), targets, banned_ids=[int(targets[0])])
    with pytest.raises(ValueError, match="one target per state"):
        token_log_probs(hidden, linear_head(weight), targets[1:])
    for settings in ({"temperature": 0.0}, {"chunk": 0}):
        with pytest.raises(ValueError, match="must be"):
            token_log_probs(hidden, linear_head(weight), targets, **settings)


def test_packed_values_go_to_their_places_and_back_with_gradient():
    mask = torch.tensor([[[True, False], [False, False], [True, True]]])
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    dense = unpacked(values, mask)
    dense.mul(torch.arange(6).reshape(1, 3, 2)).sum().backward()
    assert dense.tolist() == [[[1.0, 0.0], [0.0, 0.0], [2.0, 3.0]]]
    assert values.grad.tolist() == [0.0, 4.0, 5.0]
    with pytest.raises(ValueError, match="2 values for 3"):
        unpacked(values[:2], mask)
