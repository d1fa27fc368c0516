"""Many runs: every combination is checked first; then one job each, and a table of all."""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from search_r3.cli.command_line import command_line, program
from search_r3.cli.compose import bare_text, compose, last_value, with_choices, with_modes
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.entry import Composed, Entry, Run
from search_r3.cli.last_resort import EXIT_FAILED, EXIT_INTERRUPTED, told
from search_r3.cli.overrides import literal, quoted
from search_r3.cli.run import execute, reused_folder
from search_r3.cli.run_folder import JOBS, Failed, Interrupted, new_folder
from search_r3.cli.run_status import state_of, taken, write_status
from search_r3.errors import UsageError
from search_r3.files import write_json, write_text
from search_r3.folders import make_folder
from search_r3.shipped import CONF


def through_hydra(config_name: str, job: Run, arguments: argparse.Namespace) -> None:
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


def run_many(entry: Entry, source: ConfigSource, arguments: argparse.Namespace) -> int:
    """Runs one job per combination and prints a table of all of them.

    Every combination is composed and checked before the first one starts. With `if_exists=resume` those that
    are finished are left, and the others go on.

    Raises:
        UsageError: If any of them is refused, or the folder of the sweep is taken.
    """
    parsed = source.parse(arguments.overrides)
    if entry.is_resumable and last_value(parsed, "resume"):
        raise UsageError("resume= continues one run; under --multirun each job starts its own")
    chosen, goes_on = last_value(parsed, "output_dir"), False
    own = ["output_dir"]
    if entry.is_resumable and last_value(parsed, "if_exists") == "resume":
        if chosen is None:
            raise UsageError("if_exists=resume needs output_dir=, the folder of the sweep to go on with")
        own, goes_on = ["output_dir", "if_exists"], True
    parsed = [override for override in parsed if override.key_or_group not in own]
    try:
        jobs = BasicSweeper.split_arguments(parsed, None)[0]
    except HydraException as error:
        raise UsageError(str(error)) from None
    composed = [compose(entry.config_name, job, source) for job in jobs]
    for job in composed:
        entry.check(job.config, True)
    folder = _sweep_folder(entry, chosen, goes_on)
    arguments.overrides = [_marked(override, composed[0].overrides) for override in parsed] + [
        f"hydra.sweep.dir={quoted(str(folder))}",
        "hydra.sweep.subdir=${hydra.job.num}",
    ]
    with taken(folder):
        begun = _begun(entry, composed, folder) if goes_on else {}
        varied = [
            [text.lstrip("+") for text in job if any(text not in other for other in jobs)] or job
            for job in jobs
        ]
        write_json(folder / JOBS, {"jobs": varied})
        return _run_jobs(entry, _sweep_job(entry, source, folder, begun), arguments, folder)


def _run_jobs(entry: Entry, job: Run, arguments: argparse.Namespace, folder: Path) -> int:
    """Hands the jobs to Hydra, then prints their table, and how to go on where one is not finished."""
    is_stopped = False
    try:
        through_hydra(entry.config_name, job, arguments)
    except (Interrupted, KeyboardInterrupt):
        is_stopped = True
    from search_r3.cli.sweep_table import table_of_jobs  # with NumPy, for which no run need wait

    table, is_all_finished = table_of_jobs(folder)
    write_text(folder / "summary.txt", table + "\n")
    print(f"\n{table}\n")
    if entry.is_resumable and not is_all_finished:
        print(f"to go on with what is not finished: {_resume_command(folder)}")
    print(folder)
    return EXIT_INTERRUPTED if is_stopped else 0 if is_all_finished else EXIT_FAILED


def _resume_command(folder: Path) -> str:
    typed = [each for each in sys.argv[1:] if not each.startswith(("output_dir=", "if_exists="))]
    return shlex.join([*program(), *typed, f"output_dir={folder}", "if_exists=resume"])


def _sweep_folder(entry: Entry, chosen: str | None, goes_on: bool) -> Path:
    """The folder of a sweep: a new one, or that of the sweep that this command goes on with.

    Raises:
        UsageError: If something else is in it.
    """
    if chosen is None:
        return new_folder("", Path("outputs/multirun"))
    folder = make_folder(Path(chosen))
    is_there = (folder / JOBS).is_file() or (folder / "multirun.yaml").is_file()
    if not any(folder.iterdir()) or (goes_on and is_there):
        return folder
    hint = ". Go on with it: if_exists=resume" if entry.is_resumable and is_there else ""
    raise UsageError(f"output_dir={folder}: not empty, so a sweep would mix with what is there{hint}")


def _begun(entry: Entry, composed: Sequence[Composed], folder: Path) -> dict[int, bool]:
    """Of the jobs that have begun, whether they go on: else they are finished.

    Raises:
        UsageError: If one of them was another job than it is now, or the sweep had more.
    """
    numbers = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    if numbers and numbers[-1] >= len(composed):
        raise UsageError(
            f"output_dir={folder}: job {numbers[-1]} is in there, and this sweep has {len(composed)} jobs. A "
            "sweep goes on with the jobs that it had, and with further ones behind them"
        )
    found = {}
    for number, job in enumerate(composed):
        own = folder / str(number)
        if state_of(own) in (None, "skipped"):
            continue
        job.config.output_dir, job.config.if_exists = literal(str(own)), "resume"
        with taken(own):
            found[number] = reused_folder(entry, job.config, own) is not None
    return found


def _marked(override: Override, marked: Sequence[str]) -> str:
    text = bare_text(override)
    is_added = any(other.startswith(f"++{override.key_or_group}=") for other in marked)
    return f"++{text}" if is_added else override.input_line


def _sweep_job(entry: Entry, source: ConfigSource, sweep: Path, begun: Mapping[int, bool]) -> Run:
    """What Hydra's launcher calls once per job; a failure is recorded in the job's folder and ends there."""
    command = command_line()

    def job(config: DictConfig) -> None:
        settings = HydraConfig.get()
        number, choices = int(settings.job.num), dict(settings.runtime.choices)
        overrides = list(settings.overrides.task)
        # Lightning starts other ranks through Hydra where it finds this; the sweep would run again in each.
        HydraConfig.instance().cfg = None
        folder = sweep / str(number)
        if not begun.get(number, True):
            return  # finished, as was said
        print(f"\njob {number}: {' '.join(overrides)}", flush=True)
        if OmegaConf.select(config, "sweep.fail_fast") and any(
            state_of(sweep / str(earlier)) == "failed" for earlier in range(number)
        ):
            write_status(folder, "skipped", error="an earlier job failed and sweep.fail_fast is true")
            return
        ours = {name: choice for name, choice in choices.items() if not name.startswith("hydra/")}
        config = with_choices(OmegaConf.create(OmegaConf.to_container(config, resolve=False)), ours)
        config = with_modes(config, source)
        if number in begun:
            config.resume = literal(str(folder))
        try:
            execute(entry.config_name, entry.run, Composed(config, ours, overrides, command), folder)
        except Exception as error:  # the other jobs go on
            told(error)

    return job
