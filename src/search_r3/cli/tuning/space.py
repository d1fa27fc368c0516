"""The space of a search: which keys, between which ends, and what it may not reach."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from omegaconf import DictConfig, OmegaConf

from search_r3.cli.number_ranges import check_numbers
from search_r3.cli.overrides import did_you_mean, flat_keys, literal
from search_r3.cli.trust import WRITES, calls, checked_trust, refuse_foreign
from search_r3.errors import UsageError

if TYPE_CHECKING:
    import optuna

OWN_KEYS = ("space", "n_trials", "study", "monitor", "direction", "pruner_warmup", "startup_trials")
NOT_SEARCHED = (*OWN_KEYS, "output_dir", "resume", "if_exists", "trust")


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


def refuse_foreign_space(source: str, dimensions: Sequence[Dimension], config: Mapping) -> None:
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


def check_ends(config: DictConfig, dimensions: Sequence[Dimension]) -> None:
    """Refuses a space that holds a value out of its range."""
    for dimension in dimensions:
        for value in dimension.choices or (dimension.low, dimension.high):
            trial = with_settings(config, {dimension.key: value})
            try:
                check_numbers(OmegaConf.to_container(trial, resolve=True))
            except UsageError as error:
                raise UsageError(f"space={config.space}: {error}") from None


def with_settings(config: DictConfig, settings: Mapping[str, object]) -> DictConfig:
    """A copy with some keys set; text is taken as it reads."""
    copy = OmegaConf.create(OmegaConf.to_container(config, resolve=False))
    for key, value in settings.items():
        OmegaConf.update(copy, key, literal(value) if isinstance(value, str) else value)
    return copy
