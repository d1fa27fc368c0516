"""Searches over configuration keys: `python -m src.tune stage=sft space=space.yaml n_trials=20 study=sft.db`.

An ask-and-tell loop around Optuna with a SQLite study: Hydra's Optuna sweeper can neither prune nor work
with this Optuna (https://github.com/hydra-ecosystem/hydra/issues/1954). Every trial is an ordinary run in a
folder of its own; a study that was interrupted goes on where it stands.
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from omegaconf import DictConfig, OmegaConf

from search_r3.cli.command import entry_point
from search_r3.cli.entry import Composed
from search_r3.cli.number_ranges import check_numbers
from search_r3.cli.overrides import did_you_mean, flat_keys, literal
from search_r3.cli.run import execute
from search_r3.cli.run_folder import Failed, log_written, make_folder, read_json, write_status
from search_r3.cli.trust import WRITES, calls, checked_trust, refuse_foreign
from search_r3.errors import UsageError
from search_r3.files import write_json
from search_r3.records import clipped
from search_r3.train import check as check_train
from search_r3.train import run as run_training

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

OWN_KEYS = ("space", "n_trials", "study", "monitor", "direction", "pruner_warmup", "startup_trials")
NOT_SEARCHED = (*OWN_KEYS, "output_dir", "resume", "if_exists", "trust")
FACTS = "search.json"


@dataclass(frozen=True)
class Dimension:
    """One searched key.

    Attributes:
        key: in the composed configuration.
        choices: the values, or None for a range.
        low: lower end of a range, included.
        high: upper end, included.
        log: whether the range is searched on a logarithmic scale.
        step: distance of the values of a range; None for a continuous one.
    """

    key: str
    choices: tuple | None = None
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    step: float | int | None = None

    def suggest(self, trial: "optuna.Trial") -> object:
        """A value for this key in a trial; whole numbers where both ends are whole."""
        if self.choices is not None:
            return trial.suggest_categorical(self.key, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, step=self.step or 1, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)


def read_space(path: Path, config: Mapping) -> list[Dimension]:
    """Reads and checks a search space.

    Args:
        path: YAML, one searched key per entry.
        config: the composed configuration, plain; every searched key must be in it.

    Raises:
        UsageError: With the file, the key and the rule.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"space={path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not content:
        raise UsageError(f"space={path}: must map keys to ranges, as stage.module.x: {{low: 0.1, high: 1.0}}")
    known = flat_keys(config)
    return [_dimension(path, str(key), entry, known) for key, entry in content.items()]


def _dimension(path: Path, key: str, entry: object, known: Mapping[str, object]) -> Dimension:
    def refuse(rule: str) -> UsageError:
        return UsageError(f"space={path}: {key}: {rule}")

    if key not in known:
        raise refuse(f"there is no such key.{did_you_mean(key, known)}")
    if key in NOT_SEARCHED or isinstance(known[key], (dict, list)):
        raise refuse("cannot be searched; name a single value of the training configuration")
    if not isinstance(entry, dict):
        raise refuse("must be {low:, high:} or {choices: [...]}")
    unknown = set(entry) - {"choices", "low", "high", "log", "step"}
    if unknown:
        raise refuse(
            f"unknown entry {', '.join(sorted(map(str, unknown)))}; known: choices, low, high, log, step"
        )
    if "choices" in entry:
        if len(entry) > 1 or not isinstance(entry["choices"], list) or len(entry["choices"]) < 2:
            raise refuse("choices must be a list of two or more values and stand alone")
        if any(isinstance(choice, (dict, list)) for choice in entry["choices"]):
            raise refuse("a choice must be a number, text, true, false or null")
        return Dimension(key, choices=tuple(entry["choices"]))
    for end in ("low", "high"):
        if isinstance(entry.get(end), bool) or not isinstance(entry.get(end), (int, float)):
            hint = "; YAML reads 1e-5 as text, write 1.0e-5" if isinstance(entry.get(end), str) else ""
            raise refuse(f"{end} must be a number, got {entry.get(end)!r}{hint}")
    if entry["low"] >= entry["high"]:
        raise refuse(f"low must be below high, got {entry['low']} and {entry['high']}")
    if entry.get("log") and (entry["low"] <= 0 or entry.get("step")):
        raise refuse("log needs low above 0 and no step")
    return Dimension(key, **entry)


def check(config: DictConfig, is_sweep: bool) -> None:
    """Refuses a search that cannot run; see `entry_point`.

    Raises:
        UsageError: With the reason.
    """
    if is_sweep:
        raise UsageError("src.tune runs many trials already; --multirun does not apply")
    if config.direction not in ("maximize", "minimize"):
        raise UsageError(f"direction={config.direction} does not exist. Choices: maximize, minimize")
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
    _refuse_foreign(f"space={config.space}", dimensions, plain)
    _check_ends(config, dimensions)
    earlier, facts = read_json(study_folder(config) / FACTS), _facts(config)
    if earlier and earlier != facts:
        changed = " and ".join(key for key in facts if earlier.get(key) != facts[key])
        raise UsageError(f"study={config.study} was made with another {changed}; name a new file")


def _refuse_foreign(source: str, dimensions: Sequence[Dimension], config: Mapping) -> None:
    """Refuses a space, which may be somebody else's, that chooses what is called or where is written."""
    own = {target for _, target, _ in calls(config)}
    writes = {f"{key.rpartition('.')[0]}.{WRITES[name]}" for key, name, _ in calls(config) if name in WRITES}
    for dimension in dimensions:
        name = dimension.key.rpartition(".")[2]
        if dimension.key in writes or (re.fullmatch("_.*_", name) and name != "_target_"):
            raise UsageError(f"{source}: {dimension.key}: cannot be searched; set it on the command line")
        if name == "_target_":
            for choice in dimension.choices or (dimension.low, dimension.high):
                node = {dimension.key.removesuffix("._target_"): {"_target_": choice}}
                refuse_foreign(node, source, checked_trust(config["trust"]), own)


def _check_ends(config: DictConfig, dimensions: Sequence[Dimension]) -> None:
    """Refuses a space that holds a value out of its range."""
    for dimension in dimensions:
        for value in dimension.choices or (dimension.low, dimension.high):
            trial = _with_settings(config, {dimension.key: value})
            try:
                check_numbers(OmegaConf.to_container(trial, resolve=True))
            except UsageError as error:
                raise UsageError(f"space={config.space}: {error}") from None


def _facts(config: DictConfig) -> dict:
    """What all trials of a study must share to be compared."""
    space = yaml.safe_load(Path(config.space).read_text(encoding="utf-8"))
    return {"space": space, "monitor": config.monitor, "direction": config.direction}


def run(config: DictConfig) -> None:
    """Runs trials until the study holds `n_trials`, then prints the best and draws the history."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    dimensions = read_space(Path(config.space), OmegaConf.to_container(config, resolve=False))
    study = _open_study(config)
    folder = study_folder(config)
    _requeue_interrupted(study)
    while (number := _finished_count(study)) < config.n_trials:
        trial = study.ask()
        settings = {dimension.key: dimension.suggest(trial) for dimension in dimensions}
        log.info("trial %d (%d of %d): %s", trial.number, number + 1, config.n_trials, settings)
        _run_trial(study, trial, settings, config, folder / str(trial.number))
    _report(study, folder, config.monitor)


def study_folder(config: DictConfig) -> Path:
    """Where the trials of a study lie."""
    return Path(config.study).with_suffix("")


def _open_study(config: DictConfig) -> "optuna.Study":
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
    write_json(study_folder(config) / FACTS, _facts(config))
    return study


def _requeue_interrupted(study: "optuna.Study") -> None:
    """Trials that a killed process left running are closed and their settings tried again."""
    import optuna

    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)


def _finished_count(study: "optuna.Study") -> int:
    """Trials that count towards `n_trials`; a failed one counts, one that was interrupted does not."""
    return sum(
        trial.state.name in ("COMPLETE", "PRUNED") or "error" in trial.user_attrs
        for trial in study.get_trials()
    )


def _run_trial(
    study: "optuna.Study",
    trial: "optuna.Trial",
    settings: Mapping[str, object],
    config: DictConfig,
    folder: Path,
) -> None:
    import optuna

    watch = _pruning_callback(trial, config.monitor)
    was_pruned = False

    def job(job_config: DictConfig) -> None:
        nonlocal was_pruned
        try:
            run_training(job_config, extra_callbacks=[watch])
        except optuna.TrialPruned:
            was_pruned = True

    try:
        execute("train", job, _trial_config(config, settings), folder)
    except Failed as error:
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    if was_pruned:
        write_status(folder, "pruned")
        log.info("trial %d pruned at %.4f", trial.number, watch.values[-1])
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        return
    value = (max if config.direction == "maximize" else min)(watch.values)
    log.info("trial %d: %s %.4f", trial.number, config.monitor, value)
    study.tell(trial, value)


def _trial_config(config: DictConfig, settings: Mapping[str, object]) -> Composed:
    """What `python -m src.train` would have composed: tune.yaml is train.yaml and the keys of the search."""
    plain = OmegaConf.to_container(config, resolve=False)
    trial = OmegaConf.create({key: value for key, value in plain.items() if key not in OWN_KEYS})
    trial = _with_settings(trial, settings)
    choices = read_json(Path(config.output_dir) / "provenance.json").get("choices", {})
    return Composed(trial, choices, [f"{key}={value}" for key, value in settings.items()])


def _with_settings(config: DictConfig, settings: Mapping[str, object]) -> DictConfig:
    """A copy with some keys set; text is taken as it reads."""
    copy = OmegaConf.create(OmegaConf.to_container(config, resolve=False))
    for key, value in settings.items():
        OmegaConf.update(copy, key, literal(value) if isinstance(value, str) else value)
    return copy


def _pruning_callback(trial: "optuna.Trial", monitor: str):
    """A Lightning callback that reports each validation and stops a trial that falls behind."""
    import optuna
    import pytorch_lightning as pl

    class Pruning(pl.Callback):
        def __init__(self) -> None:
            self.values: list[float] = []

        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.sanity_checking:
                return
            logged = trainer.callback_metrics
            if monitor not in logged:
                raise KeyError(f"monitor={monitor} was not logged; logged: {', '.join(sorted(logged))}")
            value = float(logged[monitor])
            if not math.isfinite(value):
                raise ValueError(f"monitor={monitor} is {value} at step {trainer.global_step}")
            self.values.append(value)
            trial.report(value, step=trainer.global_step)
            if trial.should_prune():
                raise optuna.TrialPruned

        def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if not self.values:
                raise ValueError("no validation ran in this trial, so nothing was measured")

    return Pruning()


def _report(study: "optuna.Study", folder: Path, monitor: str) -> None:
    states = [trial.state.name.lower() for trial in study.get_trials()]
    log.info("trials: %s", ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states))))
    complete = [trial for trial in study.get_trials() if trial.state.name == "COMPLETE"]
    if not complete:
        raise RuntimeError(f"no trial finished; see the logs under {folder}")
    best = study.best_trial
    write_json(folder / "best.json", {"number": best.number, "value": best.value, "settings": best.params})
    _draw_history(study, folder / "history.png", monitor)
    log.info("best: trial %d, %s %.4f", best.number, monitor, best.value)
    log.info(
        "run it: python -m src.train ... %s", " ".join(f"{key}={value}" for key, value in best.params.items())
    )
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


def command(argv: Sequence[str] | None = None) -> None:
    """Runs the command and ends the process; `argv` is what follows its name, else the process's own."""
    entry_point(
        "tune", run, check, argv=argv, folder=lambda config: make_folder(study_folder(config), "study")
    )


if __name__ == "__main__":
    command()
