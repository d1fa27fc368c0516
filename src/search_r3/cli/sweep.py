"""Many runs: every combination is checked first; then one job each, and a table of all."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from search_r3.cli.compose import bare_text, compose, last_value, with_choices, with_modes
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.entry import Composed, Entry, Run
from search_r3.cli.last_resort import EXIT_FAILED, EXIT_INTERRUPTED, told
from search_r3.cli.overrides import quoted
from search_r3.cli.run import execute
from search_r3.cli.run_folder import (
    Failed,
    Interrupted,
    command_line,
    make_folder,
    new_folder,
    state_of,
    write_status,
)
from search_r3.errors import UsageError
from search_r3.files import write_text
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

    Every combination is composed and checked before the first one starts.

    Raises:
        UsageError: If any of them is refused, or the folder of the sweep is taken.
    """
    parsed = source.parse(arguments.overrides)
    if entry.is_resumable and last_value(parsed, "resume"):
        raise UsageError("resume= continues one run; under --multirun each job starts its own")
    chosen = last_value(parsed, "output_dir")
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
        through_hydra(entry.config_name, _sweep_job(entry, source, folder, command_line()), arguments)
    except (Interrupted, KeyboardInterrupt):
        is_stopped = True
    varied = [
        [text.lstrip("+") for text in job if any(text not in other for other in jobs)] or job for job in jobs
    ]
    from search_r3.cli.sweep_table import sweep_table  # with NumPy, for which no run need wait

    table, is_all_finished = sweep_table(folder, varied)
    write_text(folder / "summary.txt", table + "\n")
    print(f"\n{table}\n\n{folder}")
    return EXIT_INTERRUPTED if is_stopped else 0 if is_all_finished else EXIT_FAILED


def _marked(override: Override, marked: Sequence[str]) -> str:
    text = bare_text(override)
    is_added = any(other.startswith(f"++{override.key_or_group}=") for other in marked)
    return f"++{text}" if is_added else override.input_line


def _sweep_job(entry: Entry, source: ConfigSource, sweep: Path, command: str) -> Run:
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
        ours = {name: choice for name, choice in choices.items() if not name.startswith("hydra/")}
        config = with_choices(OmegaConf.create(OmegaConf.to_container(config, resolve=False)), ours)
        config = with_modes(config, source)
        try:
            execute(entry.config_name, entry.run, Composed(config, ours, overrides, command), folder)
        except Exception as error:  # the other jobs go on
            told(error)

    return job
