"""From a command line to a running job: compose the configuration, refuse nonsense, make the run folder.

Only this file and the entry points import Hydra. A refused command costs no more than composing a YAML
file: the checks read the configuration and the source of its targets, never torch. Entry points therefore
import everything heavy inside their `run`.

A single run is composed here and called directly; `--multirun` goes through Hydra, with its sweepers and
launchers, and each of its jobs ends in the same `execute`.
"""

import argparse
import contextlib
import functools
import hashlib
import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import NoReturn

import hydra
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import _run_hydra, create_config_search_path, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.command_line import (
    TRAINER_NODES,
    UsageError,
    addable_keys,
    did_you_mean,
    flat_keys,
    literal,
    quote_free_text,
    quoted,
)
from src.devices import cpu_precision
from src.last_resort import EXIT_FAILED, EXIT_INTERRUPTED, run_command, told
from src.model_choice import Given, read_facts, refuse_conflicts
from src.names import check_names
from src.number_ranges import check_numbers
from src.records import RecordError, shown
from src.run_folder import (
    Failed,
    Interrupted,
    command_line,
    json_text,
    keep_earlier,
    logged,
    make_folder,
    new_folder,
    provenance,
    read_json,
    recorded,
    remove_parts,
    state_of,
    taken,
    write_status,
    write_text,
)
from src.sweep_table import sweep_table
from src.trust import CHECKPOINTS, calls, checked_trust, refuse_foreign, stored_config, targets_in

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
RUN_FOLDER = "SEARCH_R3_RUN_FOLDER"
RUN_RESUMES = "SEARCH_R3_RUN_RESUMES"
HANDED_DOWN = (RUN_FOLDER, RUN_RESUMES)
"""Environment variables for the other ranks, which run the same command line: the run folder, and "1" where
rank 0 goes on with the run in it."""

WHITELIST = ("src.*", "pytorch_lightning.*", "torch.*")
LIMITS = ("max_steps", "min_steps", "max_epochs", "min_epochs", "max_time", "limit_val_batches")
WHERE = ("resume", "output_dir", "if_exists")
UNCOMPARED = (*WHERE, "trust")
"""Keys that say nothing about what is computed."""
MAY_CHANGE = (*UNCOMPARED, *(f"stage.trainer.{name}" for name in LIMITS))
"""Keys that may differ between a run and its continuation: these, and the trainer's limits."""

RL_GROUPS = ("index", "refresh", "reward")
SHIPPED = "${shipped:"
"""Opens a path in conf/ to what lies beside the package; config.yaml keeps it as it is, for any machine."""


def shipped(path: str) -> str:
    """Where something that is shipped lies: as it is written for who stands in the project, else absolute."""
    return path if Path.cwd() == ROOT else str(ROOT / path)


OmegaConf.register_new_resolver("cpu_precision", cpu_precision, replace=True)
OmegaConf.register_new_resolver("shipped", shipped, replace=True)

Run = Callable[[DictConfig], object]
Check = Callable[[DictConfig, bool], None]
Reached = Callable[[Path], int | None]


@dataclass(frozen=True)
class Composed:
    """A configuration that passed every check.

    Attributes:
        config: without the `hydra` node.
        choices: the option taken in each config group.
        overrides: as Hydra understands them, keys that need it marked `++`.
        command: what the user typed, quoted for a shell.
    """

    config: DictConfig
    choices: dict[str, str | None]
    overrides: list[str]
    command: str = field(default_factory=command_line)


@dataclass(frozen=True)
class Entry:
    """What differs between entry points.

    Attributes:
        config_name: file in conf/.
        run: the job; gets the configuration with `output_dir` filled in.
        check: raises UsageError for a combination that makes no sense; told whether this is a sweep.
        folder: names the run folder where `output_dir` is not given; None for a new one by date and time.
        module: what `python -m` is given.
        reached: the step that a run folder's last checkpoint is of, None where there is none. A command
            without it knows no `resume=` and no `if_exists=`, and may be pointed at any folder that exists.
    """

    config_name: str
    run: Run
    check: Check
    reached: Reached | None
    folder: Callable[[DictConfig], Path] | None
    module: str

    @property
    def is_resumable(self) -> bool:
        """Whether the command knows `resume=` and `if_exists=`."""
        return self.reached is not None


def instantiate(node: DictConfig, **arguments: object) -> object:
    """Calls the `_target_` of a node with plain Python containers.

    Hydra builds what stands in the node; `arguments` are handed to the call itself, because Hydra would
    turn a dataclass among them into a dict. Whatever Hydra itself allows, what a node from a folder may name
    has been checked by then, see `src.trust`.

    Args:
        node: with a `_target_`, or a mapping or list of such nodes. Text arrives as it reads, `${` included.
        arguments: further arguments of the target.

    Raises:
        Exception: What the target raised, without Hydra's wrapping.
    """
    is_call = OmegaConf.is_dict(node) and "_target_" in node
    is_partial = is_call and node.get("_partial_", False)
    with contextlib.ExitStack() as stack:
        # Hydra puts resolved values back into a container and reads them again, which undoes two escapes.
        plain = _mapped_text(
            OmegaConf.to_container(node, resolve=True), lambda text, _: literal(literal(text))
        )
        if hasattr(hydra.utils, "target_whitelist"):  # Hydra 1.4 builds nothing else
            named = [str(target) for _, target, _ in calls(plain)]
            own = [target for target in named if not any(fnmatch(target, each) for each in WHITELIST)]
            for pattern in dict.fromkeys([*WHITELIST, *own]):
                stack.enter_context(hydra.utils.target_whitelist(pattern))
        try:
            options = {"_partial_": True} if is_call else {}
            built = hydra.utils.instantiate(OmegaConf.create(plain), _convert_="all", **options)
        except HydraException as error:
            if error.__cause__ is not None and not isinstance(error.__cause__, (HydraException, ImportError)):
                raise error.__cause__ from None
            raise
    if not is_call:
        return built
    return functools.partial(built, **arguments) if is_partial else built(**arguments)


def _mapped_text(node: object, change: Callable[[str, str], str], key: str = "") -> object:
    """A plain container with every text in it changed; `change` is told the text and its dotted key."""
    if isinstance(node, dict):
        below = f"{key}." if key else ""
        return {name: _mapped_text(value, change, f"{below}{name}") for name, value in node.items()}
    if isinstance(node, list):
        return [_mapped_text(value, change, f"{key}.{place}") for place, value in enumerate(node)]
    return change(node, key) if isinstance(node, str) else node


def entry_point(
    config_name: str,
    run: Run,
    check: Check | None = None,
    reached: Reached | None = None,
    folder: Callable[[DictConfig], Path] | None = None,
    module: str | None = None,
) -> None:
    """Runs a command and ends the process: 0 done, 1 failed, 2 refused, 130 interrupted; see `last_resort`.

    Args:
        config_name: file in conf/ without its ending.
        run: the job. Imports what is heavy inside.
        check: extra rules on the composed configuration.
        reached: the step of a run folder's last checkpoint, for a command with `resume=` and `if_exists=`.
        folder: names the run folder where `output_dir` is not given.
        module: what `python -m` is given; `src.<config_name>` where None.
    """
    check = check or (lambda config, is_sweep: None)
    entry = Entry(config_name, run, check, reached, folder, module or f"src.{config_name}")
    signal.signal(signal.SIGTERM, _interrupt)
    run_command(lambda: _main(entry, sys.argv[1:]))


def _interrupt(signal_number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _main(entry: Entry, argv: Sequence[str]) -> int:
    is_sweep = any(argument in ("--multirun", "-m") for argument in argv)
    parser = get_args_parser()
    parser.error = _refuse_arguments
    arguments = parser.parse_intermixed_args(quote_free_text(argv, is_sweep))
    if any((arguments.hydra_help, arguments.cfg, arguments.info, arguments.shell_completion)):
        _through_hydra(entry.config_name, lambda config: None, arguments)
        return 0
    with ConfigSource(arguments.config_dir) as source:
        if arguments.help:
            print(_help(entry, source))
            return 0
        if arguments.multirun:
            return _sweep(entry, source, arguments)
        return _single(entry, source, arguments.overrides)


def _refuse_arguments(message: str) -> NoReturn:
    raise UsageError(message)


def _help(entry: Entry, source: "ConfigSource") -> str:
    program = f"python -m {entry.module}"
    own = yaml.safe_load((CONF / f"{entry.config_name}.yaml").read_text(encoding="utf-8"))
    used = [group for default in own["defaults"] if isinstance(default, dict) for group in default]
    used = [group.removeprefix("optional ") for group in used]
    groups = {group: options for group, options in source.groups().items() if group in used}
    width = max(map(len, groups), default=0)
    lines = [f"  {group.ljust(width)}  {', '.join(options)}" for group, options in groups.items()]
    keys = ", ".join(f"{key}=" for key in own if key not in ("defaults", "hydra"))
    return "\n".join(
        [
            f"{program} group=option ... key=value ...",
            *(["", "groups", *lines] if lines else []),
            "",
            f"keys of this command: {keys}",
            f"every key, with its value:  {program} ... --cfg job",
            f"a sweep, one job per value: {program} --multirun ... key=1,2,3",
        ]
    )


def _through_hydra(config_name: str, job: Run, arguments: argparse.Namespace) -> None:
    """Hands the command to Hydra.

    Raises:
        Failed: If Hydra ended it, which it does after saying why.
    """
    GlobalHydra.instance().clear()
    try:
        _run_hydra(arguments, get_args_parser(), job, config_path=str(CONF), config_name=config_name)
    except SystemExit as error:
        if error.code:
            raise Failed(f"Hydra ended with {error.code}") from error


# Composing


class ConfigSource:
    """Composes configurations from conf/ and, before it, a folder of the user's own (`--config-dir`)."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Takes a folder of additional configs, or None.

        Raises:
            UsageError: If the folder does not exist.
        """
        if folder is not None and not Path(folder).is_dir():
            raise UsageError(f"--config-dir: {folder} is not a folder")
        self._folder = None if folder is None else Path(folder).resolve()

    def __enter__(self) -> "ConfigSource":
        search_path = create_config_search_path(str(CONF))
        if self._folder is not None:
            search_path.prepend("command-line", f"file://{self._folder}")
        GlobalHydra.instance().clear()
        hydra.version.setbase("1.3")
        self.loader = Hydra.create_main_hydra2("search-r3", search_path).config_loader
        return self

    def __exit__(self, *error: object) -> None:
        GlobalHydra.instance().clear()

    def own_targets(self, but: Path) -> frozenset[str]:
        """Every `_target_` that the user's folder of configs names; none where that is the folder `but`."""
        folder, other = self._folder, but.resolve()
        if folder is None or folder.is_relative_to(other) or other.is_relative_to(folder):
            return frozenset()
        return targets_in(folder)

    def groups(self) -> dict[str, list[str]]:
        """Options of every config group of ours."""
        groups = self.loader.list_groups("")
        return {group: self.loader.get_group_options(group) for group in groups if group != "hydra"}

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """Overrides as Hydra reads them.

        Raises:
            UsageError: If one is not of the form key=value, or its value does not parse.
        """
        parser = OverridesParser.create(config_loader=self.loader)
        parsed = []
        for text in overrides:
            try:
                parsed.append(parser.parse_override(text))
            except HydraException as error:
                reason = str(error).splitlines()[0]
                raise UsageError(
                    f"cannot read {text!r}: {reason}. The form is key=value; quote text"
                ) from None
        return parsed

    def load(self, config_name: str, overrides: Sequence[str]) -> DictConfig:
        """The composed configuration, `hydra` node included.

        Raises:
            UsageError: Where Hydra or OmegaConf refuses, with the first line of the reason.
        """
        try:
            return self.loader.load_configuration(config_name, list(overrides), RunMode.RUN)
        except (HydraException, OmegaConfBaseException) as error:
            missing = re.search(r"You must specify '(\w+)'", str(error))
            if missing:
                options = (f"{missing[1]}={option}" for option in self.groups()[missing[1]])
                raise UsageError(f"{missing[1]}= is missing. Choices: {', '.join(options)}") from None
            raise UsageError("; ".join(str(error.__cause__ or error).strip().splitlines()[:2])) from None

    def keys_of_experiments(self, config_name: str, overrides: Sequence[str]) -> dict[str, str]:
        """Keys that the chosen experiments set themselves, each with the name of the experiment."""
        keys: dict[str, str] = {}
        for part in self.loader.compute_defaults_list(config_name, list(overrides), RunMode.RUN).defaults:
            group, _, option = (part.config_path or "").partition("/")
            if group == "experiment" and part.config_path is not None:
                own = self.loader.repository.load_config(part.config_path).config
                prefix = f"{part.package}." if part.package else ""
                keys |= {f"{prefix}{key}": f"experiment={option}" for key in flat_keys(_plain(own))}
        return keys


def compose(config_name: str, overrides: Sequence[str], source: ConfigSource) -> Composed:
    """Composes a configuration in which every key means something.

    Args:
        config_name: file in conf/.
        overrides: one value each, free text already quoted.
        source: where configs are read from.

    Raises:
        UsageError: For an unknown group option or key (with `+` as well), a group that the choices do not
            use, a value that is still missing, or a number out of its range.
    """
    parsed = source.parse(overrides)
    groups = source.groups()
    in_groups = [override for override in parsed if override.key_or_group in groups]
    _check_options(in_groups, groups)
    texts = [override.input_line for override in in_groups]
    hydra_texts = [override.input_line for override in parsed if override.key_or_group.startswith("hydra")]
    base = _load_choices(config_name, texts, in_groups, source, groups)
    container = _plain(base)
    restated = _agreed_with_folder(base, parsed, source.keys_of_experiments(config_name, texts))
    keys = [
        _checked_key(override, container, groups)
        for override in parsed
        if override not in in_groups
        and override.input_line not in hydra_texts
        and (override.key_or_group not in restated or override.key_or_group in flat_keys(container))
    ]
    full = source.load(config_name, [*texts, *keys, *hydra_texts])
    choices = {name: choice for name, choice in full.hydra.runtime.choices.items() if name in groups}
    config = OmegaConf.masked_copy(full, [str(key) for key in full if key != "hydra"])
    _check_complete(config)
    return Composed(config, choices, [*texts, *keys])


def _plain(config: DictConfig) -> dict:
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}


def _check_options(overrides: Sequence[Override], groups: dict[str, list[str]]) -> None:
    for override in overrides:
        group, value = override.key_or_group, override.value()
        if override.is_delete() or value is None:
            continue
        if value not in groups[group]:
            hint = did_you_mean(str(value), groups[group])
            raise UsageError(f"{group}={value} does not exist.{hint} Choices: {', '.join(groups[group])}")


def _load_choices(
    config_name: str,
    texts: Sequence[str],
    overrides: Sequence[Override],
    source: ConfigSource,
    groups: dict[str, list[str]],
) -> DictConfig:
    try:
        return source.load(config_name, texts)
    except UsageError as error:
        for override in overrides:
            if f"override '{override.key_or_group}'" in str(error):
                stage = next((o.value() for o in overrides if o.key_or_group == "stage"), None)
                of = f"stage={stage}" if stage else f"this {config_name}"
                if override.key_or_group in RL_GROUPS and config_name == "train":
                    key = override.key_or_group
                    raise UsageError(f"{key}= belongs to stage=rl; {of} has no {key}") from None
                raise UsageError(
                    f"{override.key_or_group}= has no meaning under {of}: it uses no such group"
                ) from None
        raise


def _checked_key(override: Override, config: dict, groups: dict[str, list[str]]) -> str:
    """The override, marked `++` where it adds a key that the configuration leaves open.

    Raises:
        UsageError: If the key neither exists nor is an argument of the node it stands in.
    """
    key, known = override.key_or_group, flat_keys(config)
    if key in known and not override.is_delete():
        is_open_mapping = known[key] == {} and isinstance(override.value(), dict)
        return f"++{_bare(override)}" if is_open_mapping or override.is_add() else override.input_line
    if override.is_delete():
        if key in known and "." not in key:
            raise UsageError(f"~{key}: a key of the command cannot be removed, only set")
        if key in known:
            return override.input_line
    else:
        parent, _, name = key.rpartition(".")
        addable = addable_keys(config, parent)
        if parent and (addable is None or name in addable):
            return f"++{_bare(override)}"
        known = known | {f"{parent}.{other}": None for other in addable or () if parent}
    if key in RL_GROUPS:
        raise UsageError(f"{key}= belongs to stage=rl; the chosen stage has no {key}")
    raise UsageError(f"there is no key {key}.{did_you_mean(key, [*known, *groups])}")


def _agreed_with_folder(
    base: DictConfig, parsed: Sequence[Override], by_experiment: Mapping[str, str]
) -> set[str]:
    """Keys given by hand that say what the folder of `model.path` says.

    By hand is what stands on the command line or in an experiment; what a group's option says is a default.

    Args:
        base: composed from the choices alone.
        parsed: the command line, which comes after the experiment.
        by_experiment: keys that the experiment sets, with its name.

    Raises:
        UsageError: If one says something else, or the `model=` choice is for another pretrained model.
    """
    typed = {
        override.key_or_group: override
        for override in parsed
        if override.key_or_group.startswith("model.")
        and not (override.is_delete() or override.is_sweep_override())
    }
    path = _value_of(typed["model.path"]) if "model.path" in typed else _select(base, "model.path")
    facts = read_facts(str(path)) if path is not None else None
    if facts is None:
        return set()
    given = {key: (_select(base, key), origin) for key, origin in by_experiment.items()}
    for key, override in typed.items():
        whole = flat_keys({key: _plain_value(_value_of(override))})
        given |= {name: (value, "") for name, value in whole.items()}
    decided = {
        key: Given(key.removeprefix("model."), value, origin)
        for key, (value, origin) in given.items()
        if key.startswith(("model.prompts.", "model.lengths.", "model.create.")) or key == "model.name"
    }
    leaves = [each for each in decided.values() if not isinstance(_plain_value(each.value), (dict, list))]
    name = None if "model.name" in decided else _select(base, "model.name")
    refuse_conflicts(facts, leaves, base.hydra.runtime.choices.get("model"), name)
    return {key for key in typed if key.removeprefix("model.") in facts.values}


def _select(config: DictConfig, key: str) -> object:
    return OmegaConf.select(config, key, throw_on_missing=False, throw_on_resolution_failure=False)


def _plain_value(value: object) -> object:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _bare(override: Override) -> str:
    return override.input_line.lstrip("+") if override.input_line else ""


def _check_complete(config: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UsageError(f"{' and '.join(f'{key}=' for key in missing)} must be given")
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UsageError(str(error).splitlines()[0]) from None
    checked_trust(plain.get("trust"))
    check_names(plain)
    check_numbers(plain)


def resolved_yaml(config: DictConfig) -> str:
    """The configuration with references replaced by their values, readable back to the same values.

    References to `output_dir` stay, so that a run folder that was moved resumes where it now is, and so do
    those to what is shipped.
    """
    placeholder = "\0output_dir\0"
    resolved = OmegaConf.to_container(
        OmegaConf.merge(config, {"output_dir": placeholder} if "output_dir" in config else {}), resolve=True
    )
    raw = flat_keys(OmegaConf.to_container(config, resolve=False))

    def escaped(text: str, key: str) -> str:
        if str(raw.get(key)).startswith(SHIPPED):
            return raw[key]
        return literal(text).replace(placeholder, "${output_dir}")

    content = _mapped_text(resolved, escaped)
    assert isinstance(content, dict)
    if "output_dir" in config:
        content["output_dir"] = None if config.output_dir is None else literal(config.output_dir)
    return OmegaConf.to_yaml(OmegaConf.create(content))


# One run


def _single(entry: Entry, source: ConfigSource, overrides: Sequence[str]) -> int:
    resume = _given(source.parse(overrides), "resume") if entry.is_resumable else None
    with contextlib.ExitStack() as stack:
        if resume is None:
            composed = compose(entry.config_name, overrides, source)
            entry.check(composed.config, False)
            folder = _chosen_folder(entry, composed.config, stack)
        else:
            folder = Path(resume)
            _take(folder, stack, "config.yaml")
            composed = _resumed(source, overrides, folder, entry.reached)
            entry.check(composed.config, False)
        if folder is not None:
            execute(entry.config_name, entry.run, composed, folder)
    return 0


def _take(folder: Path, stack: contextlib.ExitStack, where: str = ".") -> None:
    """Keeps other processes out of a folder that holds `where` until the stack ends; the first rank does."""
    if _rank() == "0" and (folder / where).exists():
        stack.enter_context(taken(folder))


def _value_of(override: Override) -> object:
    """The value as it composes: quotes and escapes undone."""
    return OmegaConf.create({"value": override.value()}).value


def _given(overrides: Sequence[Override], key: str) -> str | None:
    """The last value given for a key; None where it is not given, or is null."""
    values = [_value_of(override) for override in overrides if override.key_or_group == key]
    return str(values[-1]) if values and values[-1] is not None else None


def _resumed(
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
    _refuse_damaged(folder)
    choices = _stored_choices(folder)
    groups, rest = source.groups(), []
    for override in parsed:
        key = override.key_or_group
        if key in groups or key in choices:
            if override.value() != choices.get(key):
                raise UsageError(_changed(folder, [f"{key}: {choices.get(key)} -> {override.value()}"]))
        elif key not in ("resume", "trust"):
            rest.append(_checked_key(override, _plain(stored), groups).lstrip("+"))
    merged = OmegaConf.merge(stored, *(_as_config(override) for override in source.parse(rest)))
    merged.resume = merged.output_dir = literal(str(folder))
    merged.trust = list(trust) or None  # never what the folder says
    _check_complete(merged)
    _refuse_changes(folder, stored, merged)
    state = state_of(folder)
    if state == "finished" and not _differences(stored, merged, ignored=UNCOMPARED):
        raise UsageError(
            f"resume={folder}: this run is finished; raise a limit, as stage.trainer.max_steps=<more>"
        )
    _refuse_fewer_steps(folder, stored, merged, reached)
    return Composed(merged, choices, list(overrides))


def _given_trust(overrides: Sequence[Override]) -> tuple[str, ...]:
    """What `trust=` on the command line names, checked."""
    given = [override for override in overrides if override.key_or_group == "trust"]
    return checked_trust(_plain_value(_value_of(given[-1]))) if given else ()


def _refuse_foreign(
    source: ConfigSource, folder: Path, stored: DictConfig, trust: Sequence[str], typed: Collection[str]
) -> None:
    """Refuses a run folder that would have anything run but what this project, or the user, names."""
    place = f"resume={folder}: config.yaml"
    refuse_foreign(_plain(stored), place, trust, source.own_targets(folder), folder, typed)
    _refuse_pickles(folder, stored, trust)


def _refuse_pickles(folder: Path, stored: DictConfig, trust: Sequence[str]) -> None:
    """Refuses checkpoints whose reader unpickles, which runs code, unless the user trusts them."""
    strategies = [str(_select(stored, f"{node}.strategy") or "auto") for node in TRAINER_NODES]
    unpickling = [name for name in strategies if name != "auto" and not re.fullmatch("ddp[a-z_]*", name)]
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
    remedy = f"the run can go on without it: rm {shlex.quote(str(file))}"
    origin = read_json(file, remedy)
    for key, kind, rule in (("choices", dict, "an object"), ("config_sha256", list, "a list")):
        if not isinstance(origin.get(key, kind()), kind):
            raise RecordError(file, f"{key} must be {rule}, got {shown(origin[key])}", remedy)
    return origin


def _as_config(override: Override) -> DictConfig:
    config = OmegaConf.create({})
    value = _mapped_text(_plain_value(_value_of(override)), lambda text, _: literal(text))
    OmegaConf.update(config, override.key_or_group, value, force_add=True)
    return config


def _differences(old: DictConfig, new: DictConfig, ignored: Sequence[str]) -> list[str]:
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


def _refuse_changes(folder: Path, old: DictConfig, new: DictConfig) -> None:
    changes = _differences(old, new, ignored=MAY_CHANGE)
    if changes:
        raise UsageError(_changed(folder, changes))


def _refuse_fewer_steps(folder: Path, old: DictConfig, new: DictConfig, reached: Reached | None) -> None:
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
        f"to start anew: rm -r {shlex.quote(str(folder))}"
    )


def _chosen_folder(entry: Entry, config: DictConfig, stack: contextlib.ExitStack) -> Path | None:
    """The run folder, made or checked; None where the run in it is finished and nothing is left to do.

    One that the user named is taken until the stack ends, before anything of it is believed.
    """
    handed_down = os.environ.get(RUN_FOLDER)
    if handed_down:
        if os.environ.get(RUN_RESUMES):
            config.resume = literal(handed_down)
        return Path(handed_down)
    if config.get("output_dir") is None:
        if entry.folder is not None:
            return entry.folder(config)
        if int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1:
            raise UsageError(
                "under an external launcher give output_dir=, so that all ranks share one folder"
            )
        return new_folder(str(OmegaConf.select(config, "stage.name") or entry.config_name))
    folder = make_folder(Path(config.output_dir))
    _take(folder, stack)
    if not entry.is_resumable or not (folder / "status.json").is_file():
        return folder
    return _reused_folder(entry, config, folder)


def _reused_folder(entry: Entry, config: DictConfig, folder: Path) -> Path | None:
    state = state_of(folder)
    if config.if_exists == "resume":
        _refuse_pickles(folder, config, checked_trust(_plain_value(config.get("trust"))))
    if _rank() != "0":
        config.resume = literal(str(folder))  # whatever rank 0 found
        return folder
    if config.if_exists == "refuse":
        raise UsageError(f"output_dir={folder}: a run is in there ({state}). Go on with it: if_exists=resume")
    if not (folder / "config.yaml").is_file():
        raise UsageError(
            f"output_dir={folder}: the config.yaml of the run in there is missing, so it cannot go on; "
            f"to start anew: rm -r {shlex.quote(str(folder))}"
        )
    stored = stored_config(folder / "config.yaml")
    _refuse_damaged(folder)
    _refuse_changes(folder, stored, config)  # so whatever it has called is named by the user's own command
    if state == "finished" and not _differences(stored, config, ignored=UNCOMPARED):
        print(f"{folder} is finished; to retrain: rm -r {shlex.quote(str(folder))}")
        return None
    _refuse_fewer_steps(folder, stored, config, entry.reached)
    config.resume = literal(str(folder))
    return folder


def execute(name: str, run: Run, composed: Composed, folder: Path) -> None:
    """Runs a job in its folder; rank 0 keeps the record, the other ranks only a log.

    Args:
        name: of the command; the log is `<name>.log`.
        run: the job; gets the configuration with `output_dir` set to the folder.
        composed: what is run.
        folder: made where it does not exist.

    Raises:
        UsageError: If the folder cannot be made, or another process works in it.
        Interrupted: If the job was stopped.
        Failed: If the job failed, which is recorded and told by then.
    """
    config = composed.config
    make_folder(folder)
    config.output_dir = literal(str(folder))
    if _rank() != "0":
        with logged(folder / f"{name}.rank{_rank()}.log", is_main=False):
            _run_in_rank(run, config)
        return
    with taken(folder):
        remove_parts(folder)
        _execute_first_rank(name, run, composed, folder)


def _execute_first_rank(name: str, run: Run, composed: Composed, folder: Path) -> None:
    config = composed.config
    origin = provenance(composed.command, seed=config.get("seed"))
    origin |= {"choices": composed.choices, "overrides": composed.overrides}
    changes = _changes_since(folder, config)
    settings = resolved_yaml(config)
    origin["config_sha256"] = [_sha256(settings), *_sha256_of_earlier(folder)]
    records = {"provenance.json": json_text(origin), "config.yaml": settings}  # in this order
    is_origin_lost = config.get("resume") and not (folder / "provenance.json").exists()
    kept = [keep_earlier(folder / name, content) for name, content in records.items()]
    if config.get("resume"):
        kept.append(keep_earlier(folder / "metrics.json"))  # the results of fewer steps
    for file, content in records.items():
        write_text(folder / file, content)
    with _handed_down(folder, bool(config.get("resume"))), recorded(folder, f"{name}.log"):
        if is_origin_lost:
            log.warning(
                "%s: provenance.json of the call before is missing, so search_r3.json of the model will not "
                "say which options its groups had",
                folder,
            )
        for change in changes:
            log.info("changed since the earlier call: %s", change)
        for path in filter(None, kept):
            log.info("kept %s", path)
        run(config)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256_of_earlier(folder: Path) -> list[str]:
    """Of the config.yaml that is about to be replaced: a kill may come before it is."""
    file = folder / "config.yaml"
    return [_sha256(file.read_text(encoding="utf-8"))] if file.is_file() else []


def _refuse_damaged(folder: Path) -> None:
    """Refuses a config.yaml that is not one that the run wrote, where the run said which it was.

    Raises:
        UsageError: With what to do.
    """
    file, written = folder / "config.yaml", _stored_origin(folder).get("config_sha256")
    if written is not None and _sha256(file.read_text(encoding="utf-8")) not in written:
        raise UsageError(
            f"{file}: is damaged or was edited: provenance.json beside it knows another SHA-256. Take both "
            "from one copy of the folder, or start a new run"
        )


def _changes_since(folder: Path, config: DictConfig) -> list[str]:
    """Keys whose values differ from those of an earlier call into the folder, with both."""
    file = folder / "config.yaml"
    return _differences(stored_config(file), config, ignored=UNCOMPARED) if os.path.lexists(file) else []


def _run_in_rank(run: Run, config: DictConfig) -> None:
    """Runs the job where another rank keeps the record; a failure's traceback goes to this rank's log."""
    try:
        run(config)
    except (KeyboardInterrupt, SystemExit) as error:
        raise Interrupted(config.output_dir) from error  # told by rank 0
    except Exception:
        log.exception("this rank failed")
        raise


@contextlib.contextmanager
def _handed_down(folder: Path, resumes: bool) -> Iterator[None]:
    """Names the run to the ranks started within; a search runs its trials inside a run of its own."""
    outer = {name: os.environ.get(name) for name in HANDED_DOWN}
    os.environ |= {RUN_FOLDER: str(folder.resolve()), RUN_RESUMES: "1" if resumes else ""}
    try:
        yield
    finally:
        for name, value in outer.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _rank() -> str:
    """Rank of this process under torchrun, SLURM or Lightning's own launcher; "0" on its own."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name]
    node, local = os.environ.get("NODE_RANK", "0"), os.environ.get("LOCAL_RANK", "0")
    return local if node == "0" else f"{node}.{local}"


# Many runs


def _sweep(entry: Entry, source: ConfigSource, arguments: argparse.Namespace) -> int:
    """Runs one job per combination and prints a table of all of them.

    Every combination is composed and checked before the first one starts.

    Raises:
        UsageError: If any of them is refused, or the folder of the sweep is taken.
    """
    parsed = source.parse(arguments.overrides)
    if entry.is_resumable and _given(parsed, "resume"):
        raise UsageError("resume= continues one run; under --multirun each job starts its own")
    chosen = _given(parsed, "output_dir")
    parsed = [override for override in parsed if override.key_or_group != "output_dir"]
    try:
        jobs = BasicSweeper.split_arguments(parsed, None)[0]
    except HydraException as error:
        raise UsageError(str(error)) from None
    composed = [compose(entry.config_name, job, source) for job in jobs]
    for job in composed:
        entry.check(job.config, True)
    folder = new_folder("", Path("outputs/multirun")) if chosen is None else make_folder(Path(chosen))
    if chosen is not None and any(folder.iterdir()):
        raise UsageError(f"output_dir={folder}: not empty, so a sweep would mix with what is there")
    arguments.overrides = [_marked(override, composed[0].overrides) for override in parsed] + [
        f"hydra.sweep.dir={quoted(str(folder))}",
        "hydra.sweep.subdir=${hydra.job.num}",
    ]
    is_stopped = False
    try:
        _through_hydra(entry.config_name, _sweep_job(entry, folder, command_line()), arguments)
    except (Interrupted, KeyboardInterrupt):
        is_stopped = True
    varied = [
        [text.lstrip("+") for text in job if any(text not in other for other in jobs)] or job for job in jobs
    ]
    table, is_all_finished = sweep_table(folder, varied)
    write_text(folder / "summary.txt", table + "\n")
    print(f"\n{table}\n\n{folder}")
    return EXIT_INTERRUPTED if is_stopped else 0 if is_all_finished else EXIT_FAILED


def _marked(override: Override, marked: Sequence[str]) -> str:
    text = _bare(override)
    is_added = any(other.startswith(f"++{override.key_or_group}=") for other in marked)
    return f"++{text}" if is_added else override.input_line


def _sweep_job(entry: Entry, sweep: Path, command: str) -> Run:
    """What Hydra's launcher calls once per job; a failure is recorded in the job's folder and ends there."""

    def job(config: DictConfig) -> None:
        settings = HydraConfig.get()
        number, choices = str(settings.job.num), dict(settings.runtime.choices)
        overrides = list(settings.overrides.task)
        # Lightning starts other ranks through Hydra where it finds this; the sweep would run again in each.
        HydraConfig.instance().cfg = None
        folder = sweep / number
        print(f"\njob {number}: {' '.join(overrides)}", flush=True)
        if OmegaConf.select(config, "sweep.fail_fast") and any(
            state_of(other) == "failed" for other in sweep.iterdir()
        ):
            write_status(folder, "skipped", error="an earlier job failed and sweep.fail_fast is true")
            return
        config = OmegaConf.create(OmegaConf.to_container(config, resolve=False))
        ours = {name: choice for name, choice in choices.items() if not name.startswith("hydra/")}
        try:
            execute(entry.config_name, entry.run, Composed(config, ours, overrides, command), folder)
        except Exception as error:  # the other jobs go on
            told(error)

    return job
