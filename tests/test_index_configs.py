"""The files in conf/index and conf/refresh make what they say, and it runs."""

import numpy as np
import pytest
from drifting import DriftingCorpus, unit
from hydra.utils import instantiate
from omegaconf import OmegaConf

from search_r3.index.backends.flat import InPlaceIndex
from search_r3.index.rules.base import Refresh
from search_r3.index.rules.frozen import Frozen
from search_r3.index.served import LiveIndex
from search_r3.shipped import CONF

KEY = {"weights": "w"}


def made(group, option):
    node = OmegaConf.load(CONF / group / f"{option}.yaml")
    others = {"seed": 3, "reward": OmegaConf.load(CONF / "reward" / "dcg.yaml")}
    return instantiate(OmegaConf.create(others | {group: node})[group])


def options(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("option", options("refresh"))
def test_every_rule_in_conf_instantiates_and_refreshes(option, tmp_path):
    corpus = DriftingCorpus()
    with LiveIndex.create(tmp_path, KEY, corpus.vectors(0), InPlaceIndex, made("refresh", option)) as index:
        line = index.refresh(1, corpus.queries(1), corpus.encoder(1))
        assert line["documents_encoded"] >= 6


@pytest.mark.parametrize("option", options("index"))
def test_every_backend_in_conf_instantiates_and_searches(option, tmp_path):
    rows = unit(np.random.default_rng(0).standard_normal((200, 8)))
    with LiveIndex.create(tmp_path, KEY, rows, made("index", option), Refresh(Frozen())) as index:
        assert (index.search(rows[:9], 1)[1][:, 0] == np.arange(9)).all()


@pytest.mark.parametrize("option", options("refresh"))
def test_rules_differ_in_their_rule_and_share_their_other_keys(option):
    shared = set(OmegaConf.load(CONF / "refresh" / "frozen.yaml"))
    assert set(OmegaConf.load(CONF / "refresh" / f"{option}.yaml")) == shared


def test_a_budget_by_step_can_be_given_in_a_config():
    node = OmegaConf.create(
        {
            "_target_": "search_r3.index.rules.base.Refresh",
            "rule": {"_target_": "search_r3.index.rules.full.Full"},
            "budget": {0: 400, 100: None},
        }
    )
    settings = instantiate(node)
    assert [settings.budget_at(step) for step in (5, 100)] == [400, None]
