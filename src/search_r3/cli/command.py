"""From a command line to a running job: compose the configuration, refuse nonsense, make the run folder.

A refused command costs no more than composing a YAML file: the checks read the configuration and the source
of its targets, never torch. Entry points therefore import everything heavy inside their `run`.

A single run is composed here and called directly; `--multirun` goes through Hydra, with its sweepers and
launchers, and each of its jobs ends in the same `execute`.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from search_r3.cli.compose import compose, last_value
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.entry import Composed, Entry
from search_r3.cli.help import help_text
from search_r3.cli.overrides import quote_free_text
from search_r3.cli.resume import resumed
from search_r3.cli.run import run_one
from search_r3.cli.sweep import run_many, through_hydra
from search_r3.errors import UsageError


def entry_point(entry: Entry, argv: Sequence[str] | None = None) -> int:
    """Runs a command; its exit code.

    Args:
        entry: the command.
        argv: what follows its name; None for what this process was given.
    """
    signal.signal(signal.SIGTERM, interrupter())
    argv = sys.argv[1:] if argv is None else argv
    is_sweep = any(argument in ("--multirun", "-m") for argument in argv)
    parser = get_args_parser()
    parser.error = _refuse_arguments
    arguments = parser.parse_intermixed_args(quote_free_text(argv, is_sweep))
    _refuse_pairs(arguments)
    if any((arguments.hydra_help, arguments.info, arguments.shell_completion)):
        through_hydra(entry.config_name, lambda config: None, arguments)
        return 0
    with ConfigSource(arguments.config_dir) as source:
        if arguments.cfg:
            _print_config(entry, source, arguments)
            return 0
        if arguments.help:
            print(help_text(entry, source, arguments.overrides))
            return 0
        if arguments.multirun:
            return run_many(entry, source, arguments)
        return run_one(entry, source, arguments.overrides)


def interrupter() -> Callable[[int, object], None]:
    """A handler of SIGTERM that interrupts this process as Ctrl-C does; what is forked of it just ends."""
    process = os.getpid()

    def interrupt(number: int, frame: object) -> None:
        if os.getpid() == process:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    return interrupt


def _refuse_pairs(arguments: argparse.Namespace) -> None:
    """Refuses flags that mean nothing together, of which one would be passed over."""
    if arguments.resolve and not arguments.cfg:
        raise UsageError("--resolve is for --cfg, which prints a configuration and runs nothing")
    if arguments.cfg and arguments.multirun:
        raise UsageError("--cfg prints one configuration, a sweep has many; leave --multirun out")


def _print_config(entry: Entry, source: ConfigSource, arguments: argparse.Namespace) -> None:
    """Prints what the run would be given, of keys that the run would take; missing values stay `???`."""
    parsed = source.parse(arguments.overrides)
    if entry.is_resumable and (folder := last_value(parsed, "resume")):
        _print_resumed(resumed(source, arguments.overrides, Path(folder), entry.reached), arguments)
        return
    of_hydra = [each for each in parsed if each.key_or_group.startswith("hydra")]
    composed = compose(entry.config_name, arguments.overrides, source, may_lack=True)
    arguments.overrides = [*composed.overrides, *(each.input_line for each in of_hydra)]
    through_hydra(entry.config_name, lambda config: None, arguments)


def _print_resumed(composed: Composed, arguments: argparse.Namespace) -> None:
    """Prints the configuration that a run goes on with; Hydra, which composes, knows nothing of it."""
    if arguments.cfg != "job" or arguments.package:
        raise UsageError("a run that goes on has the configuration of its folder; --cfg job prints it whole")
    if arguments.resolve:
        OmegaConf.resolve(composed.config)
    print(OmegaConf.to_yaml(composed.config), end="")


def _refuse_arguments(message: str) -> NoReturn:
    raise UsageError(message)
