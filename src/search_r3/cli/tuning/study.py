"""The study of a search: a SQLite file of trials, beside a folder of their runs."""

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from omegaconf import DictConfig, OmegaConf

from search_r3.cli.entry import Composed
from search_r3.cli.overrides import quote_free_text, spelled, typed
from search_r3.cli.run_log import log_written
from search_r3.cli.sweep_table import aligned
from search_r3.cli.tuning.space import OWN_KEYS, with_settings
from search_r3.errors import UsageError
from search_r3.files import write_json
from search_r3.records import clipped, read_json_if_there
from search_r3.shipped import as_called

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)
FACTS = "search.json"


def facts_of(config: DictConfig) -> dict:
    """What all trials of a study must share to be compared."""
    space = yaml.safe_load(Path(config.space).read_text(encoding="utf-8"))
    return {"space": space, "monitor": config.monitor, "direction": config.direction}


def study_folder(config: DictConfig) -> Path:
    """Where the trials of a study lie."""
    return Path(config.study).with_suffix("")


def open_study(config: DictConfig) -> "optuna.Study":
    import optuna
    from sqlalchemy.exc import DatabaseError

    path = Path(config.study)
    path.parent.mkdir(parents=True, exist_ok=True)
    if (study_folder(config) / FACTS).exists() and not (path.is_file() and path.stat().st_size):
        raise UsageError(
            f"study={path}: is missing or empty, and the trials of a search lie in {study_folder(config)}; "
            "put a copy of it in its place, or name a new file, which begins a new search"
        )
    try:
        study = optuna.create_study(
            study_name="search-r3",
            storage=optuna.storages.RDBStorage(f"sqlite:///{path.resolve()}"),
            direction=config.direction,
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(config.startup_trials, config.pruner_warmup),
        )
        study.get_trials()
    except (DatabaseError, optuna.exceptions.OptunaError, KeyError, ValueError) as error:
        reason = clipped(getattr(error, "orig", error), 200)
        raise UsageError(
            f"study={path}: cannot be read ({reason}); put a copy of it in its place, or name a new file, "
            "which begins a new search"
        ) from error
    # A sampler seeded alike after a restart would propose the first trials again.
    study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=config.startup_trials, seed=config.seed + len(study.trials)
    )
    write_json(study_folder(config) / FACTS, facts_of(config))
    return study


def requeue_interrupted(study: "optuna.Study") -> None:
    """Trials that a killed process left running are closed and their settings tried again."""
    import optuna

    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)


def finished_count(study: "optuna.Study") -> int:
    """Trials that count towards `n_trials`: those that came to an end, and none that failed."""
    return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.get_trials())


def told(settings: Mapping[str, object]) -> str:
    """Settings to be read, numbers with four digits."""
    return " ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={spelled(value)}"
                    for key, value in settings.items())  # fmt: skip


def trial_config(config: DictConfig, settings: Mapping[str, object]) -> Composed:
    """What `python -m src.train` would have composed: tune.yaml is train.yaml and the keys of the search."""
    plain = OmegaConf.to_container(config, resolve=False)
    trial = OmegaConf.create({key: value for key, value in plain.items() if key not in OWN_KEYS})
    trial = with_settings(trial, settings)
    choices = read_json_if_there(Path(config.output_dir) / "provenance.json").get("choices", {})
    return Composed(trial, choices, quote_free_text([typed(*setting) for setting in settings.items()]))


def trials_table(study: "optuna.Study", monitor: str) -> str:
    """A line for each trial: how it ended, what it came to, its settings."""
    rows = [["trial", "state", monitor, "settings", "error"]]
    for trial in study.get_trials():
        value = "" if trial.value is None else f"{trial.value:.4f}"
        error = str(trial.user_attrs.get("error", "")).splitlines() or [""]
        rows.append([str(trial.number), trial.state.name.lower(), value, told(trial.params), error[0][:80]])
    return aligned(rows)


def report(study: "optuna.Study", folder: Path, monitor: str) -> None:
    states = [trial.state.name.lower() for trial in study.get_trials()]
    log.info("\n%s\n", trials_table(study, monitor))
    log.info("trials: %s", ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states))))
    complete = [trial for trial in study.get_trials() if trial.state.name == "COMPLETE"]
    if not complete:
        raise RuntimeError(f"no trial finished; see the logs under {folder}")
    best = study.best_trial
    write_json(folder / "best.json", {"number": best.number, "value": best.value, "settings": best.params})
    _draw_history(study, folder / "history.png", monitor)
    log.info("best: trial %d, %s %.4f", best.number, monitor, best.value)
    settings = shlex.join(typed(*setting) for setting in best.params.items())
    log.info("run it: %s %s", as_called("python -m src.train ..."), settings)
    log_written(folder / "best.json", folder / "history.png", folder / str(best.number))


def _draw_history(study: "optuna.Study", path: Path, monitor: str) -> None:
    """Value of each trial in order, pruned ones as crosses at their last value, and the best so far."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    trials = study.get_trials()
    complete = [(trial.number, trial.value) for trial in trials if trial.state.name == "COMPLETE"]
    pruned = [(trial.number, trial.value) for trial in trials if trial.state.name == "PRUNED"]
    pick = max if study.direction.name == "MAXIMIZE" else min
    best = [pick(value for _, value in complete[: end + 1]) for end in range(len(complete))]
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.scatter(*zip(*complete, strict=True), label="finished", color="tab:blue")
    if pruned:
        axes.scatter(*zip(*pruned, strict=True), label="pruned", color="tab:gray", marker="x")
    axes.step([number for number, _ in complete], best, where="post", label="best so far", color="tab:orange")
    axes.set(xlabel="trial", ylabel=monitor)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
