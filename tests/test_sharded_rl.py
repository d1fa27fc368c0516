"""The RL stage under `strategy=fsdp` in two real processes on the CPU, against one process."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rl_runs import likely_folder
from test_rl_two_ranks import CASES, RATE, run, run_all
from two_processes import on_two_ranks

from search_r3.stages.sharding import ShardedStrategy


def work(rank, model_folder, folder):
    cases = {name: replace(case, shards_weights=True) for name, case in CASES.items()}
    results = run_all(cases, model_folder, folder, lambda: {"strategy": ShardedStrategy(), "devices": 2})
    if rank > 0:
        for result in results.values():
            del result["weights"]  # its share of them
    return results


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return likely_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, model_folder):
    return on_two_ranks(work, model_folder, tmp_path_factory.mktemp("two_ranks"))


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_with_shares_of_the_weights_do_what_one_does(two_ranks, model_folder, tmp_path, name):
    (tmp_path / "run").mkdir()
    one = run(CASES[name], model_folder, tmp_path / "run")
    for step, whole in enumerate(one["rollouts"]):
        both = two_ranks[0][name]["rollouts"][step] | two_ranks[1][name]["rollouts"][step]
        assert both.keys() == whole.keys()
        for query, (texts, rewards) in whole.items():
            assert both[query][0] == texts
            assert both[query][1] == pytest.approx(rewards, abs=1e-4)
    assert len({rank[name]["forwards"] for rank in two_ranks}) == 1
    assert two_ranks[0][name]["weights"].keys() == one["weights"].keys()
    for key, value in one["weights"].items():  # to a hundredth of a step of Adam
        torch.testing.assert_close(two_ranks[0][name]["weights"][key], value, rtol=0, atol=RATE / 100)
    encoded_at = np.concatenate([rank[name]["encoded_at"] for rank in two_ranks])
    assert (encoded_at == one["encoded_at"]).all()
    rows = np.concatenate([rank[name]["rows"] for rank in two_ranks])
    assert rows == pytest.approx(one["rows"], abs=1e-4)
