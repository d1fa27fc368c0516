"""Every architecture of the tests with its weights split between two real processes: the same gradients."""

import pytest
import torch
from architectures import CONFIGS, EAGER_ONLY, build
from torch.distributed.device_mesh import init_device_mesh
from two_processes import on_two_ranks

from search_r3.models.logits import decoder_of, decoder_path, own_logits
from search_r3.models.prefix import position_ids
from search_r3.stages.sharding import shard
from tests.closeness import ULP


def opened(name):
    return build(name, attention="eager" if name in EAGER_ONLY else "sdpa")


def gradients(causal_lm, rows):
    """Of a loss that reads the states and, beside the decoder, the logits; split ones are made whole."""
    ids = torch.randint(5, 40, (2, 7), generator=torch.Generator().manual_seed(0))[rows]
    mask = torch.ones_like(ids)
    states = decoder_of(causal_lm)(
        input_ids=ids, attention_mask=mask, position_ids=position_ids(mask.bool()), use_cache=False
    ).last_hidden_state
    logits = own_logits(causal_lm, decoder_path(causal_lm), states.flatten(0, 1))
    (states.square().mean() + logits.float().log_softmax(-1)[:, 3].mean()).backward()
    return {
        name: getattr(each.grad, "full_tensor", lambda grad=each.grad: grad)()
        for name, each in causal_lm.named_parameters()
        if each.grad is not None
    }


def work(rank):
    found = {}
    for name in CONFIGS:
        causal_lm = opened(name)
        shard(causal_lm, init_device_mesh("cpu", (2,)))
        found[name] = gradients(causal_lm, slice(rank, rank + 1))
    return found


@pytest.fixture(scope="module")
def two_ranks():
    return on_two_ranks(work)


@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks_have_the_gradients_of_one(two_ranks, name):
    one = gradients(opened(name), slice(0, 2))
    assert len(one) > 10
    largest = max(value.abs().max() for value in one.values())  # some are 0 but for rounding
    for rank in two_ranks:
        assert rank[name].keys() >= one.keys()
        for key, value in one.items():
            gap = (rank[name][key] - value).abs().max() / largest
            assert gap < 64 * ULP, (key, gap)
