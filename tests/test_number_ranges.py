"""Every number of every configuration has a range, and it is checked before anything is read."""

import importlib
import inspect
import math
import re

import pytest
import yaml
from omegaconf import OmegaConf

from search_r3.cli.compose import RL_GROUPS, compose, with_choices
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.number_ranges import TARGETS, TRAINER, check_numbers, leaves
from search_r3.errors import UsageError
from search_r3.shipped import CONF
from search_r3.tune import check as check_search

COMMANDS = {
    "train": ["stage=sft"],
    "evaluate": [],
    "tune": ["stage=sft"],
    "bench_refresh": [],
    "search": ["model.path=m", "corpus=c"],
    "serve": ["model.path=m", "corpus=c"],
    "export": ["model.path=m", "to=faiss", "output=o"],
    "bench_scale": [],
    "bench": [],
    "encode": ["model.path=m", "corpus=c", "output=o"],
}
OPTIONS = [(path.parent.name, path.stem) for path in sorted(CONF.glob("*/*.yaml"))]
OPTIONS = [
    option for option in OPTIONS if option[0] != "mode"
]  # they take nothing; src.evaluate has them all
TAKES_NUMBERS = re.compile(r"\b(int|float)\b")
NO_NUMBERS = {"search_r3.index.backends.ivf.IVFIndex.embeddings"}


@pytest.fixture(scope="module")
def configurations():
    """Every command, and train with every option of every group: plain, with references resolved."""
    found = {}
    with ConfigSource() as source:

        def load(name, command, overrides):
            full = source.load(command, overrides)
            config = OmegaConf.masked_copy(full, [key for key in full if key != "hydra"])
            config = with_choices(config, full.hydra.runtime.choices)
            for key in OmegaConf.missing_keys(config):
                OmegaConf.update(config, key, "given")
            found[name] = OmegaConf.to_container(config, resolve=True)

        for command, overrides in COMMANDS.items():
            load(command, command, overrides)
        for group, option in OPTIONS:
            if group == "experiment" and option.endswith("_eval"):
                load(f"{group}/{option}", "evaluate", [f"{group}={option}"])
                continue
            stage = [f"stage={'rl' if group in RL_GROUPS else 'sft'}"]
            overrides = [f"{group}={option}", *(stage if group not in ("stage", "experiment") else [])]
            load(f"{group}/{option}", "train", overrides)
    assert sorted(path.stem for path in CONF.glob("*.yaml")) == sorted(COMMANDS)
    return found


def located(target):
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def test_every_number_in_every_configuration_has_a_range_and_lies_in_it(configurations):
    numbers = [
        (name, leaf)
        for name, config in configurations.items()
        for leaf in leaves(config)
        if is_number(leaf.value)
    ]

    assert len(numbers) > 1000
    without = sorted({f"{leaf.table} {leaf.name}" for _, leaf in numbers if leaf.range is None})
    assert without == [], "declare what they may be in src/search_r3/cli/number_ranges.py"
    for _, config in configurations.items():
        check_numbers(config)


def test_every_argument_that_takes_a_number_has_a_range_even_where_no_configuration_sets_it(configurations):
    targets = {leaf.table for config in configurations.values() for leaf in leaves(config)} - {"", "Trainer"}
    without = []
    for target in sorted(targets):
        for name, parameter in inspect.signature(located(target)).parameters.items():
            annotation = re.sub(r"Callable\[.*", "", str(parameter.annotation))
            takes_numbers = TAKES_NUMBERS.search(annotation)
            declared = TARGETS.get(target, {})
            if takes_numbers and not any(each.split(".")[0] == name for each in declared):
                without.append(f"{target}.{name}: {parameter.annotation}")

    assert set(without) <= NO_NUMBERS, "declare what they may be in src/search_r3/cli/number_ranges.py"


def test_every_number_of_the_trainer_has_a_range():
    import pytorch_lightning as pl

    for name, parameter in inspect.signature(pl.Trainer.__init__).parameters.items():
        if TAKES_NUMBERS.search(str(parameter.annotation)):
            assert name in TRAINER, f"{name}: {parameter.annotation}"


def test_every_range_is_of_something_that_exists():
    for target in TARGETS:
        assert callable(located(target)), target


WRONG_FOR_ALL = [math.nan, math.inf, -math.inf, "three", "", True, [], {"a": 1}, [1]]


def test_no_number_anywhere_may_be_nan_infinite_text_a_truth_value_or_a_list(configurations):
    """Each number of every configuration in turn; a key that takes text or truth values is told apart."""
    tried = set()
    for config in configurations.values():
        for leaf in list(leaves(config)):
            if not is_number(leaf.value) or (leaf.table, leaf.name) in tried:
                continue
            tried.add((leaf.table, leaf.name))
            for wrong in WRONG_FOR_ALL:
                if isinstance(wrong, list | dict) and wrong and leaf.name in ("devices", "budget"):
                    continue  # which devices, or a budget per step
                if leaf.range.holds(wrong):
                    assert isinstance(wrong, str), (leaf, wrong)
                    continue
                with pytest.raises(UsageError) as refusal:
                    check_numbers(with_value(config, leaf.key, wrong))
                assert str(refusal.value).startswith(leaf.key), (leaf, wrong)
    assert len(tried) > 120


def with_value(config, key, value):
    """A copy with a value set; the places of a list are names."""
    first, _, rest = key.partition(".")
    known = dict(enumerate(config)) if isinstance(config, list) else dict(config)
    name = {str(each): each for each in known}.get(first, first)
    known[name] = with_value(known[name], rest, value) if rest else value
    return list(known.values()) if isinstance(config, list) else known


REFUSED = """
stage/sft stage.trainer.max_steps=0          must be a whole number at least 1
stage/sft stage.trainer.max_steps=-1         must be a whole number at least 1
stage/sft stage.trainer.max_steps=1.5        must be a whole number at least 1
stage/sft stage.trainer.max_steps=ten        must be a whole number at least 1
stage/sft stage.trainer.max_steps=null       must be a whole number at least 1
stage/sft stage.trainer.log_every_n_steps=0  at least 1
stage/sft stage.trainer.val_check_interval=0 at least 1, or a share
stage/sft stage.trainer.val_check_interval=1.5
stage/sft stage.trainer.limit_val_batches=-1
stage/sft stage.trainer.limit_train_batches=0
stage/sft stage.trainer.max_time=60          must be text as 00:12:30:00
stage/sft stage.datamodule.batch_size=0
stage/sft stage.datamodule.batch_size=true   must be a whole number
stage/sft stage.datamodule.batch_size=[4]    there must be a whole number at least 1, and no list
stage/sft stage.datamodule.num_workers=-1
stage/sft stage.datamodule.hard_negatives=-1
stage/sft stage.datamodule.cluster_share=1.1 must be a number at least 0 and at most 1
stage/sft stage.datamodule.validation_queries=0
stage/sft stage.module.optimization.learning_rate=.nan must be a number above 0
stage/sft stage.module.optimization.learning_rate=.inf
stage/sft stage.module.optimization.betas=[0.9,1.0]    must be a number at least 0 and below 1
stage/sft stage.module.optimization.betas=0.9          must be a list
stage/sft stage.module.optimization.warmup=-1
stage/sft stage.module.optimization.warmup=1.5
stage/sft stage.module.optimization.weight_decay=-0.1
stage/sft stage.module.optimization.max_grad_norm=0    must be a number above 0, or null
stage/sft stage.module.optimization.eps=-1
stage/sft stage.module.losses.temperature=0
stage/sft stage.module.chunk_rows=0
stage/sft stage.callbacks.checkpoint.save_every_n_steps=0
stage/sft stage.callbacks.throughput.log_every_n_steps=0
stage/sft model.token_budget=0
stage/sft data.test_share=1.2
stage/sft data.reasoning.max_words=0
stage/sft seed=-1                            at least 0 and at most 4294967295
stage/sft seed=4294967296
stage/sft strategy.devices=0
stage/sft strategy.num_nodes=0
stage/pretrain stage.datamodule.sequence_length=1
stage/pretrain model.lengths.query=0
stage/pretrain model.create.vocab_size=0
model/nano_lora model.tuning.r=0
model/nano_lora model.tuning.alpha=-2
data/mixture data.weights.pydocs=0
data/hops data.sizes.cities=0
data/beir data.min_grade=0
debug/overfit debug.overfit_batches=-2
stage/rl refresh.budget=-1
stage/rl refresh.background=1.5
stage/rl refresh.rule.k=0
stage/rl reward.ranking.k=0
stage/rl reward.floor=1
stage/rl stage.datamodule.max_documents=1
stage/rl stage.module.rollouts.top_p=0
stage/rl stage.module.rollouts.group_size=1
stage/rl stage.module.policy.clip_low=2
index/ivf index.n_probe=0
evaluate limit=-1                            must be a whole number at least 1, or null
evaluate limit=0
evaluate top_k=0
evaluate bm25.b=1.5
evaluate model.token_budget=-5
tune n_trials=0
tune startup_trials=-1
bench_scale n_documents=0
bench_scale n_steps=0
bench_scale offset=-1
bench threads.0=0
bench busy.0=-1
bench rounds=0
bench max_seconds=0
bench sizes.nano.documents=1
bench sizes.smollm2_135m.new_tokens=0.5
"""


@pytest.mark.parametrize("case", REFUSED.strip().splitlines(), ids=lambda case: " ".join(case.split()[:2]))
def test_a_number_out_of_range_is_refused_with_its_key_and_range(configurations, case):
    name, setting, *words = case.split(maxsplit=2)
    key, _, value = setting.partition("=")

    with pytest.raises(UsageError) as refusal:
        check_numbers(with_value(configurations[name], key, yaml.safe_load(value)))

    assert str(refusal.value).startswith(key)
    assert all(each in str(refusal.value) for each in words)


ALLOWED = """
stage/sft stage.trainer.val_check_interval=0.5
stage/sft stage.trainer.max_time=00:00:05:00
stage/sft stage.trainer.max_time={minutes: 5}
stage/sft stage.trainer.limit_val_batches=0
stage/sft stage.module.optimization.warmup=0.05
stage/sft stage.module.optimization.warmup=20
stage/sft strategy.devices=auto
stage/sft strategy.devices=[0]
stage/sft debug.fast_dev_run=true
stage/rl refresh.budget=null
stage/rl refresh.budget={0: 400, 100: null}
stage/rl reward.floor=null
stage/rl reward.floor=-1.5
evaluate limit=null
"""


@pytest.mark.parametrize("case", ALLOWED.strip().splitlines())
def test_what_is_no_plain_number_and_has_a_meaning_is_taken(configurations, case):
    name, setting = case.split(maxsplit=1)
    key, _, value = setting.partition("=")

    check_numbers(with_value(configurations[name], key, yaml.safe_load(value)))


@pytest.mark.parametrize(
    ("command", "overrides", "words"),
    [
        ("train", ["stage=sft", "stage.trainer.max_steps=0"], "stage.trainer.max_steps=0"),
        ("train", ["stage=sft", "+stage.module.optimization.eps=-1"], "stage.module.optimization.eps=-1"),
        ("train", ["stage=rl", "model.path=x", "refresh.budget={0: 5, 3: -1}"], "refresh.budget.3=-1"),
        ("evaluate", ["limit=0"], "limit=0: must be a whole number at least 1, or null"),
        ("bench_scale", ["offset=nan"], "offset=nan"),
    ],
)
def test_the_command_line_is_checked(command, overrides, words):
    with ConfigSource() as source, pytest.raises(UsageError) as refusal:
        compose(command, overrides, source)

    assert words in str(refusal.value)


def test_the_search_of_a_value_out_of_range_is_refused_before_its_first_trial(tmp_path):
    space = tmp_path / "space.yaml"
    key = "stage.module.losses.temperature"
    with ConfigSource() as source:
        config = compose("tune", ["stage=sft", f"space='{space}'"], source).config
    for text, words in (("{low: 0.0, high: 1.0}", f"{key}=0.0"), ("{choices: [0.1, -1]}", f"{key}=-1")):
        space.write_text(f"{key}: {text}\n")
        with pytest.raises(UsageError) as refusal:
            check_search(config, False)
        assert str(refusal.value).startswith(f"space={space}: {words}: must be a number above 0")
    space.write_text(f"{key}: {{low: 0.01, high: 1.0}}\n")
    check_search(config, False)
