"""Keys of a command that other keys leave without effect: a line of the log says so before the run trains.

They are no errors, since a sweep over a weight has the weight 0 too. But runs that differ in nothing else are
all the same, and whoever compares them should know.
"""

from collections.abc import Iterator, Mapping, Sequence

from omegaconf import DictConfig, OmegaConf

from search_r3.cli.overrides import spelled

LOSSES, WRITTEN = "stage.module.losses", "stage.module.self_written"
POLICY, TABLE = "stage.module.policy", "stage.module.completions"
IDLE: Sequence[tuple[Sequence[str], Mapping[str, object]]] = (
    ([f"{LOSSES}.temperature"], {f"{LOSSES}.info_nce": 0}),
    ([f"{LOSSES}.margin"], {f"{LOSSES}.triplet": 0}),
    ([f"{WRITTEN}.share", f"{WRITTEN}.temperature"], {f"{WRITTEN}.every_n_steps": 0}),
    ([f"{WRITTEN}.every_n_steps", f"{WRITTEN}.temperature"], {f"{WRITTEN}.share": 0}),
    (["stage.datamodule.miner"], {"stage.datamodule.hard_negatives": 0}),
    # at the first update the policy is the one that sampled, and no ratio is beyond a bound
    ([f"{POLICY}.clip_low", f"{POLICY}.clip_high"], {f"{POLICY}.n_updates": 1}),
    ([f"{POLICY}.scale_by_std", f"{POLICY}.std_floor"], {f"{POLICY}.advantages": "best"}),
    ([f"{POLICY}.std_floor"], {f"{POLICY}.scale_by_std": False}),
    (["kl", f"{POLICY}.kl"], {f"{POLICY}.kl_weight": 0}),
    (
        [f"{POLICY}.contrastive_temperature", f"{POLICY}.contrastive_rollouts"],
        {f"{POLICY}.contrastive_weight": 0},
    ),
    ([f"{TABLE}.n_queries"], {f"{TABLE}.every_n_steps": 0}),
    (
        ["stage.module.n_retrieved"],
        {
            "stage.module.rank": "exact",
            "stage.module.rank_agreement_every_n_steps": 0,
            f"{POLICY}.contrastive_weight": 0,
            f"{TABLE}.every_n_steps": 0,
        },
    ),
    (["stage.module.optimization.final_lr_share"], {"stage.module.optimization.schedule": "constant"}),
    (["stage.callbacks.checkpoint.mode"], {"stage.callbacks.checkpoint.monitor": None}),
    (
        ["refresh.budget", "refresh.every_n_steps"],
        {"refresh.rule._target_": "search_r3.index.rules.frozen.Frozen"},
    ),
    (["data.dataset_config", "data.dataset_split"], {"data.dataset": None}),
    (["data.weights"], {"stage.name": "pretrain"}),  # whose blocks are of the text of all sources
    (["data.allow_empty_documents"], {"data.corpus": None}),
    (["data.allow_unmatched_judgements"], {"data.test": None}),
)
"""Keys, and the values of others at which nothing reads them; all of these together."""


def without_effect(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """A line for each key that a command gives and the run will not read.

    Args:
        config: composed.
        overrides: of the command.
    """
    given = [override.lstrip("+").partition("=")[0] for override in overrides]
    for keys, others in IDLE:
        if any(not _is(config, key, value) for key, value in others.items()):
            continue
        why = " and ".join(f"{key}={spelled(value)}" for key, value in others.items())
        for name in given:
            if any(name == key or name.startswith(f"{key}.") for key in keys):
                yield f"{name} has no effect: {why}"


def _is(config: DictConfig, key: str, value: object) -> bool:
    found = OmegaConf.select(config, key, default="???", throw_on_missing=False)
    return found == value
