"""Searches over configuration keys: `python -m src.tune stage=sft space=space.yaml n_trials=20 study=sft.db`.

An ask-and-tell loop around Optuna with a SQLite study: Hydra's Optuna sweeper can neither prune nor work
with this Optuna (https://github.com/hydra-ecosystem/hydra/issues/1954). Every trial is an ordinary run in a
folder of its own; a study that was interrupted goes on where it stands.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from search_r3.cli.command import entry_point
from search_r3.cli.entry import Entry
from search_r3.cli.last_resort import run_command
from search_r3.cli.overrides import refuse_unknown
from search_r3.cli.resume import UNCOMPARED, differences
from search_r3.cli.run import execute
from search_r3.cli.run_folder import Failed
from search_r3.cli.run_status import state_of, write_status
from search_r3.cli.training import run as run_training
from search_r3.cli.training_checks import check as check_train
from search_r3.cli.trust import stored_config
from search_r3.cli.tuning.pruning import pruning_callback
from search_r3.cli.tuning.space import OWN_KEYS, check_ends, read_space, refuse_foreign_space
from search_r3.cli.tuning.study import (
    FACTS,
    facts_of,
    finished_count,
    open_study,
    report,
    requeue_interrupted,
    study_folder,
    told,
    trial_config,
)
from search_r3.errors import UsageError
from search_r3.folders import make_folder
from search_r3.records import read_json_if_there

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 3
"""After so many a search ends: what fails is then not one bad setting."""

MAY_DIFFER = (*UNCOMPARED, *OWN_KEYS, "logger")
"""Keys on which no result of a trial depends, or that `facts_of` compares."""


def check(config: DictConfig, is_sweep: bool) -> None:
    """Refuses a search that cannot run; see `Entry`.

    Raises:
        UsageError: With the reason.
    """
    if is_sweep:
        raise UsageError("src.tune runs many trials already; --multirun does not apply")
    refuse_unknown(f"direction={config.direction}", config.direction, ("maximize", "minimize"))
    if config.output_dir:
        raise UsageError(
            "a search lies beside its study: give study=<folder>/<name>.db instead of output_dir="
        )
    if not set("{}?%").isdisjoint(str(Path(config.study).absolute())):
        raise UsageError(
            f"study={config.study}: a path with {{, }}, ? or % in it cannot hold a study, whose database "
            "reads it as an address; name another"
        )
    if config.resume or config.if_exists != "refuse":
        raise UsageError("a search goes on by itself: run it again with the same study=")
    check_train(config, is_sweep=True)  # trials share one process, as the jobs of a sweep do
    plain = OmegaConf.to_container(config, resolve=False)
    dimensions = read_space(Path(config.space), plain)
    refuse_foreign_space(f"space={config.space}", dimensions, plain)
    check_ends(config, dimensions)
    _refuse_other_trials(config)


def _refuse_other_trials(config: DictConfig) -> None:
    """Refuses to go on with a study whose trials cannot be compared with those of this command."""
    folder = study_folder(config)
    earlier, facts = read_json_if_there(folder / FACTS), facts_of(config)
    if not earlier:
        return
    if earlier != facts:
        changed = " and ".join(key for key in facts if earlier.get(key) != facts[key])
        raise UsageError(f"study={config.study} was made with another {changed}; name a new file")
    trials = [path for path in folder.iterdir() if path.name.isdigit()]
    if not any(state_of(path) in ("finished", "pruned") for path in trials):
        return
    changes = differences(stored_config(folder / "config.yaml"), config, ignored=MAY_DIFFER)
    if changes:
        raise UsageError(
            f"study={config.study}: its trials ran with another configuration ({'; '.join(changes[:6])}"
            f"{'; ...' if changes[6:] else ''}), so that further ones could not be compared with them; "
            "name a new file"
        )


def run(config: DictConfig) -> None:
    """Runs trials until `n_trials` of the study came to an end, then prints the best and draws the history.

    Raises:
        RuntimeError: If `FAILURES_IN_A_ROW` trials fail one after another.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    dimensions = read_space(Path(config.space), OmegaConf.to_container(config, resolve=False))
    study = open_study(config)
    folder = study_folder(config)
    requeue_interrupted(study)
    n_failed = 0
    while (number := finished_count(study)) < config.n_trials:
        trial = study.ask()
        settings = {dimension.key: dimension.suggest(trial) for dimension in dimensions}
        log.info("trial %d begins (%d of %d): %s", trial.number, number + 1, config.n_trials, told(settings))
        end = _run_trial(study, trial, settings, config, folder / str(trial.number))
        log.info("trial %d ended: %s, %s", trial.number, end, told(settings))
        n_failed = n_failed + 1 if end.startswith("failed") else 0
        if n_failed == FAILURES_IN_A_ROW:
            raise RuntimeError(f"{n_failed} trials failed one after another, see {folder}: the last {end}")
    report(study, folder, config.monitor)


def _run_trial(
    study: "optuna.Study",
    trial: "optuna.Trial",
    settings: Mapping[str, object],
    config: DictConfig,
    folder: Path,
) -> str:
    """Trains with a trial's settings, tells the study, and returns how it ended, in words."""
    import optuna

    watch = pruning_callback(trial, config.monitor)
    was_pruned = False

    def job(job_config: DictConfig) -> None:
        nonlocal was_pruned
        try:
            run_training(job_config, extra_callbacks=[watch])
        except optuna.TrialPruned:
            was_pruned = True

    try:
        execute("train", job, trial_config(config, settings), folder)
    except Failed as error:
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return f"failed ({error})"
    if was_pruned:
        write_status(folder, "pruned")
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        return f"pruned at {watch.values[-1]:.4f}"
    value = (max if config.direction == "maximize" else min)(watch.values)
    study.tell(trial, value)
    return f"{config.monitor} {value:.4f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; `argv` is what follows its name, else the process's own."""
    tune = Entry("tune", run, check, folder=lambda config: make_folder(study_folder(config), "study"))
    return entry_point(tune, argv)


if __name__ == "__main__":
    run_command(main)
