"""What may go on: the configuration of an earlier run against that of this command."""

import hashlib
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from search_r3.cli.compose import (
    check_complete,
    checked_key,
    mapped_text,
    plain_value,
    selected,
    value_of,
)
from search_r3.cli.config_source import ConfigSource, plain_container
from search_r3.cli.entry import Composed, Reached
from search_r3.cli.overrides import TRAINER_NODES, flat_keys, literal
from search_r3.cli.ranks import SHARDED, is_first, strategy_name
from search_r3.cli.run_status import state_of
from search_r3.cli.trust import CHECKPOINTS, checked_trust, refuse_foreign, stored_config
from search_r3.errors import UsageError
from search_r3.files import removal, shell_command
from search_r3.records import RecordError, read_json_if_there, shown

LIMITS = ("max_steps", "min_steps", "max_epochs", "min_epochs", "max_time", "limit_val_batches")
WHERE = ("resume", "output_dir", "if_exists")
UNCOMPARED = (*WHERE, "trust")
"""Keys that say nothing about what is computed."""
SAFE = ("auto", SHARDED)
"""Strategies whose checkpoints are read without unpickling, besides those of DDP."""
MAY_CHANGE = (*UNCOMPARED, *(f"stage.trainer.{name}" for name in LIMITS))
"""Keys that may differ between a run and its continuation: these, and the trainer's limits."""


def resumed(
    source: ConfigSource, overrides: Sequence[str], folder: Path, reached: Reached | None = None
) -> Composed:
    """The configuration of an earlier run with the trainer's limits of this command.

    Raises:
        UsageError: If the folder holds no run, or the command changes what may not change.
    """
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"resume={folder}: there is no config.yaml in it, so it is not a run folder")
    stored, parsed = stored_config(folder / "config.yaml"), source.parse(overrides)
    trust = _given_trust(parsed)
    _refuse_foreign(source, folder, stored, trust, {override.key_or_group for override in parsed})
    refuse_damaged(folder)
    choices = _stored_choices(folder)
    groups, rest = source.groups(), []
    for override in parsed:
        key = override.key_or_group
        if key in groups or key in choices:
            if override.value() != choices.get(key):
                raise UsageError(_changed(folder, [f"{key}: {choices.get(key)} -> {override.value()}"]))
        elif key not in ("resume", "trust"):
            rest.append(_as_config(checked_key(override, plain_container(stored), groups)))
    merged = OmegaConf.merge(stored, *rest)
    merged.resume = merged.output_dir = literal(str(folder))
    merged.trust = list(trust) or None  # never what the folder says
    check_complete(merged)
    refuse_changes(folder, stored, merged)
    # Rank 0 alone judges: once it goes on, what the others see in the folder is partly of this very call.
    is_done = state_of(folder) == "finished" and not differences(stored, merged, ignored=UNCOMPARED)
    if is_done and is_first():
        raise UsageError(
            f"resume={folder}: this run is finished; raise a limit, as stage.trainer.max_steps=<more>"
        )
    refuse_fewer_steps(folder, stored, merged, reached)
    return Composed(merged, choices, list(overrides))


def _given_trust(overrides: Sequence[Override]) -> tuple[str, ...]:
    """What `trust=` on the command line names, checked."""
    given = [override for override in overrides if override.key_or_group == "trust"]
    return checked_trust(plain_value(value_of(given[-1]))) if given else ()


def _refuse_foreign(
    source: ConfigSource, folder: Path, stored: DictConfig, trust: Sequence[str], typed: Collection[str]
) -> None:
    """Refuses a run folder that would have anything run but what this project, or the user, names."""
    place = f"resume={folder}: config.yaml"
    refuse_foreign(plain_container(stored), place, trust, source.own_targets(folder), folder, typed)
    refuse_pickles(folder, stored, trust)


def refuse_pickles(folder: Path, stored: DictConfig, trust: Sequence[str]) -> None:
    """Refuses checkpoints whose reader unpickles, which runs code, unless the user trusts them."""
    strategies = [strategy_name(selected(stored, f"{node}.strategy")) for node in TRAINER_NODES]
    unpickling = [name for name in strategies if name not in SAFE and not re.fullmatch("ddp[a-z_]*", name)]
    sharded = [str(path) for path in (folder / "checkpoints").glob("*") if path.is_dir()]
    if CHECKPOINTS in trust or not (unpickling or sharded):
        return
    what = [f"the checkpoints of strategy={unpickling[0]} in {folder}"] if unpickling else sharded
    raise UsageError(
        f"{what[0]}: reading that is unpickling, by which whoever wrote it could run anything. Where the run "
        f"is your own, say so: trust=[{','.join([*trust, CHECKPOINTS])}]"
    )


def _stored_choices(folder: Path) -> dict[str, str | None]:
    """The options that the groups of a run had; none where the run does not say.

    Raises:
        RecordError: If `provenance.json` is damaged.
    """
    return _stored_origin(folder).get("choices", {})


def _stored_origin(folder: Path) -> dict:
    """`provenance.json` of a run; an empty dict where there is none.

    Raises:
        RecordError: If it is damaged.
    """
    file = folder / "provenance.json"
    remedy = f"the run can go on without it: {shell_command('rm', file)}"
    origin = read_json_if_there(file, remedy)
    for key, kind, rule in (("choices", dict, "an object"), ("config_sha256", list, "a list")):
        if not isinstance(origin.get(key, kind()), kind):
            raise RecordError(file, f"{key} must be {rule}, got {shown(origin[key])}", remedy)
    return origin


def _as_config(override: Override) -> DictConfig:
    config = OmegaConf.create({})
    value = mapped_text(plain_value(value_of(override)), lambda text, _: literal(text))
    OmegaConf.update(config, override.key_or_group, value, force_add=True)
    return config


def differences(old: DictConfig, new: DictConfig, ignored: Sequence[str]) -> list[str]:
    def leaves(config: DictConfig) -> dict[str, object]:
        elsewhere = OmegaConf.merge(config, {"output_dir": "."})  # a folder may be named in two ways
        keys = flat_keys(OmegaConf.to_container(elsewhere, resolve=True))
        return {key: value for key, value in keys.items() if not isinstance(value, (dict, list)) or not value}

    before, after = leaves(old), leaves(new)
    return [
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, "absent") != after.get(key, "absent")
        and not any(key == name or key.startswith(f"{name}.") for name in ignored)
    ]


def refuse_changes(folder: Path, old: DictConfig, new: DictConfig) -> None:
    changes = differences(old, new, ignored=MAY_CHANGE)
    if changes:
        raise UsageError(_changed(folder, changes))


def refuse_fewer_steps(folder: Path, old: DictConfig, new: DictConfig, reached: Reached | None) -> None:
    """Refuses a limit that the run has left behind: there is no way back to an earlier step."""
    key = "stage.trainer.max_steps"
    before, wanted = OmegaConf.select(old, key), OmegaConf.select(new, key)
    if before is None or wanted is None or wanted >= before or reached is None:
        return
    step = reached(folder)  # the one check that reads a checkpoint, and so imports torch
    if step is not None and wanted < step:
        raise UsageError(
            f"{key}={wanted}: the run in {folder} is at step {step}, and its records hold {step} steps; give "
            f"at least {step}, or another output_dir= for a shorter run"
        )


def _changed(folder: Path, changes: Sequence[str]) -> str:
    return (
        f"{folder} was made with another configuration "
        f"({'; '.join(changes[:6])}{'; ...' if changes[6:] else ''}). "
        f"Only the trainer's limits ({', '.join(LIMITS)}) may change when a run goes on; "
        f"to start anew: {removal(folder)}"
    )


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def earlier_sha256(folder: Path) -> list[str]:
    """Of the config.yaml that is about to be replaced: a kill may come before it is."""
    file = folder / "config.yaml"
    return [text_sha256(file.read_text(encoding="utf-8"))] if file.is_file() else []


def refuse_damaged(folder: Path) -> None:
    """Refuses a config.yaml that is not one that the run wrote, where the run said which it was.

    Raises:
        UsageError: With what to do.
    """
    file, written = folder / "config.yaml", _stored_origin(folder).get("config_sha256")
    if written is not None and text_sha256(file.read_text(encoding="utf-8")) not in written:
        raise UsageError(
            f"{file}: is damaged or was edited: provenance.json beside it knows another SHA-256. Take both "
            "from one copy of the folder, or start a new run"
        )


def changes_since(folder: Path, config: DictConfig) -> list[str]:
    """Keys whose values differ from those of an earlier call into the folder, with both.

    Below a node that is another function now, as of another `data=`, the keys are counted.
    """
    file = folder / "config.yaml"
    if not os.path.lexists(file):
        return []
    changes = differences(stored_config(file), config, ignored=UNCOMPARED)
    keys = [line.partition(": ")[0] for line in changes]
    others = [key.removesuffix("_target_") for key in keys if key.endswith("._target_")]
    others = [
        node for node in others if not any(node != outer and node.startswith(outer) for outer in others)
    ]
    told = []
    for key, line in zip(keys, changes, strict=True):
        node = next((node for node in others if key.startswith(node)), None)
        if node is None:
            told.append(line)
        elif key == f"{node}_target_":
            n_others = sum(key.startswith(node) for key in keys) - 1
            told.append(f"{line}, and {n_others} other keys below {node[:-1]}" if n_others else line)
    return told
