"""Arguments of Lightning's Trainer that would have no effect on a stage, or that are given elsewhere."""

from omegaconf import DictConfig, OmegaConf

from search_r3.cli.compose import selected
from search_r3.cli.overrides import TRAINER_NODES
from search_r3.errors import UsageError

REFUSED_BY_MANUAL_OPTIMIZATION = {
    "gradient_clip_val": "stage.module.optimization.max_grad_norm",
    "accumulate_grad_batches": "stage.module.chunk_rows or micro_batch, which cut a batch and keep its loss",
}
GIVEN_ELSEWHERE = {
    "logger": "logger=",
    "callbacks": "stage.callbacks, to which +stage.callbacks.<name>={_target_: <class>} adds one",
    "default_root_dir": "output_dir=",
}
OF_STRATEGY = ("accelerator", "devices", "num_nodes", "strategy", "precision")
"""Arguments that the node `strategy` has; what is checked before a run begins is read there."""
OUR_STAGES = "search_r3.stages."
"""How the data modules begin whose batches come without end."""
BY_EPOCH = {"max_epochs": (None, -1), "min_epochs": (None,), "check_val_every_n_epoch": (None, 1)}
"""What counts epochs, and with which values it asks for nothing."""


def check_trainer(config: DictConfig) -> None:
    """Refuses what would be ignored, or stop the run only once data and model are read.

    Raises:
        UsageError: With the key and what to write instead.
    """
    given: dict[str, tuple[str, object]] = {}
    for node in sorted(TRAINER_NODES, key=("strategy", "stage.trainer", "debug").index):  # the last one wins
        arguments = selected(config, node)
        if OmegaConf.is_dict(arguments):
            given |= {name: (f"{node}.{name}", value) for name, value in arguments.items()}
    for name, instead in REFUSED_BY_MANUAL_OPTIMIZATION.items():
        key, value = given.get(name, (name, None))
        if value is not None:
            raise UsageError(f"{key}: the stages step their optimizer themselves; set {instead}")
    for name, instead in GIVEN_ELSEWHERE.items():
        key, value = given.get(name, (name, None))
        if value is not None:
            raise UsageError(f"{key}: a run hands the trainer its own; set {instead}")
    is_resumed = selected(config, "resume") is not None
    for name in () if is_resumed else OF_STRATEGY:  # an old run may have it, and goes on with what it had
        key, value = given.get(name, (name, None))
        if value is not None and not key.startswith("strategy."):
            raise UsageError(f"{key}: set strategy.{name}, which is checked before a run begins")
    if str(selected(config, "stage.datamodule._target_")).startswith(OUR_STAGES):
        _check_endless(given, is_resumed)


def _check_endless(given: dict[str, tuple[str, object]], is_resumed: bool) -> None:
    """Batches of our stages come without end: there are epochs only where a number of batches makes some."""
    values = {name: value for name, (_, value) in given.items()}
    has_epochs = any(
        isinstance(values.get(name), int) and values[name] > 0
        for name in ("limit_train_batches", "overfit_batches")
    )
    by_epoch = has_epochs and values.get("check_val_every_n_epoch") is not None
    whole = {"limit_train_batches": (1.0,), "overfit_batches": (0.0,)}
    whole |= {"val_check_interval": (1.0,)} if by_epoch else {"val_check_interval": ()}
    for name, (key, value) in given.items():
        if isinstance(value, float) and name in whole and value not in whole[name]:
            raise UsageError(
                f"{key}={value}: batches come without end, so there is no share of all; give a number of them"
            )
        # a run that goes on may change its limits, and nothing else
        is_ignored = name in BY_EPOCH and value not in BY_EPOCH[name] and not has_epochs
        if is_ignored and not (is_resumed and name == "check_val_every_n_epoch"):
            raise UsageError(
                f"{key}={value}: batches come without end, so no epoch ends and this would have no effect; "
                "count steps, as stage.trainer.max_steps and val_check_interval do, or say how many batches "
                "an epoch has: stage.trainer.limit_train_batches=<number>"
            )
        if name == "reload_dataloaders_every_n_epochs" and value:
            raise UsageError(
                f"{key}={value}: every epoch would begin with the first batches again; leave it 0"
            )
