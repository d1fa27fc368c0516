"""What does freshness cost? `python -m src.benchmarks.refresh model.path=<folder>` runs RL under every rule.

Each rule is `python -m src.train experiment=bench_refresh refresh=<rule>` in a process and a run folder of
its own, with everything else on this command line handed on. A rule that is finished is not run again. Then
what the runs logged becomes metrics.json, two tables and a picture.
"""

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from search_r3.cli.command import entry_point
from search_r3.cli.entry import Entry
from search_r3.cli.last_resort import EXIT_INTERRUPTED, run_command
from search_r3.cli.provenance import provenance
from search_r3.cli.run import HANDED_DOWN
from search_r3.cli.run_log import log_written
from search_r3.errors import UsageError
from search_r3.files import write_json
from search_r3.progress import Progress
from search_r3.train import check as check_train

log = logging.getLogger(__name__)

OWN_KEYS = ("rules", "settings", "output_dir")
GIVEN_BY_RULE = ("refresh", "stage", "experiment", "resume", "if_exists")


def check(config: DictConfig, is_sweep: bool) -> None:
    """Refuses what cannot be compared; see `Entry`.

    Raises:
        UsageError: With the reason.
    """
    if is_sweep:
        raise UsageError("src.benchmarks.refresh runs every rule already; --multirun does not apply")
    for argument in sys.argv[1:]:
        if _key(argument) in GIVEN_BY_RULE:
            raise UsageError(
                f"{argument}: the benchmark sets it; choose rules with rules=[...] and what one of them is "
                'run with by settings.<rule>=["refresh.budget=100"]'
            )
    if not config.rules or len(set(config.rules)) != len(config.rules):
        raise UsageError(f"rules must name at least one rule, and each once, got {list(config.rules)}")
    for rule in config.rules:
        if not re.fullmatch(r"(?!\.)[\w.-]+", str(rule)):
            raise UsageError(
                f"rules: {rule} names a folder; letters, digits, '_', '-' and '.' only, no '.' at the start"
            )
    check_train(config, is_sweep=False)


def run(config: DictConfig) -> None:
    """Runs the rules that are not finished, and writes what all of them measured."""
    from search_r3.benchmarks.report import measured, print_tables, write_picture

    folder, rules = Path(config.output_dir), [str(rule) for rule in config.rules]
    progress, started = Progress(len(rules), "rules", "rules", is_shown=False), time.monotonic()
    for rule in rules:
        log.info("rule %s", rule)
        _train(rule, list(config.settings.get(rule) or ()), folder / rule)
        progress.update()
        log.info(progress.line(time.monotonic() - started))
    batch_size = config.stage.datamodule.batch_size
    runs = [measured(rule, folder / rule, batch_size) for rule in rules]
    if len({each.n_steps for each in runs}) > 1:
        log.warning(
            "the rules did not run equally long: %s; see the end of each train.log",
            ", ".join(f"{rule} {each.n_steps} steps" for rule, each in zip(rules, runs, strict=True)),
        )
    n_documents = round(runs[0].row["docs_per_step"] / runs[0].row["share_of_corpus"])
    setting = {
        "model": str(config.model.path), "n_documents": n_documents, "n_steps": runs[0].n_steps,
        "rollouts_per_step": batch_size * config.stage.module.rollouts.group_size,
    }  # fmt: skip
    detail = {
        rule: {
            "seconds": each.seconds, "not_the_model": each.other_share, "n_audits": each.n_audits,
            "median_documents": each.median_documents, "audit_documents_per_step": each.audit_documents,
            "coverage_interval": each.coverage,
        }
        for rule, each in zip(rules, runs, strict=True)
    }  # fmt: skip
    rows = [each.row for each in runs]
    origin = provenance(seed=config.seed)
    write_json(folder / "metrics.json", origin | {"setting": setting, "rows": rows, "detail": detail})
    print_tables(runs, n_documents)
    log_written(folder / "metrics.json")
    seconds = {rule: each.seconds for rule, each in zip(rules, runs, strict=True)}
    title = f"{n_documents:,} documents, {runs[0].n_steps} steps of {setting['rollouts_per_step']} rollouts"
    log_written(write_picture(rows, seconds, folder / "metrics.png", title))


def _key(argument: str) -> str:
    return argument.lstrip("+~").partition("=")[0].partition("@")[0]


def _train(rule: str, settings: Sequence[str], folder: Path) -> None:
    """Runs a rule to its end, or finds it finished.

    Raises:
        KeyboardInterrupt: If the run was interrupted.
        RuntimeError: If it failed or was refused; its own message stands above.
    """
    handed_on = [argument for argument in sys.argv[1:] if _key(argument).split(".")[0] not in OWN_KEYS]
    choice = [] if any(_key(setting) == "refresh" for setting in settings) else [f"refresh={rule}"]
    arguments = ["experiment=bench_refresh", *choice, *handed_on, *settings]
    arguments += [f"output_dir={folder}", "if_exists=resume"]
    # what is handed down belongs to this run
    environment = {name: os.environ[name] for name in os.environ if name not in HANDED_DOWN}
    # In a session of its own, so that Ctrl-C reaches it once, from here.
    process = subprocess.Popen(
        [sys.executable, "-m", "search_r3.train", *arguments], env=environment, start_new_session=True
    )
    try:
        code = process.wait()
    except BaseException:  # the run records that it was interrupted, and is gone before this one is
        process.terminate()
        process.wait()
        raise
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code != 0:
        raise RuntimeError(f"rule {rule}: its run ended with exit code {code}; see {folder / 'train.log'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; `argv` is what follows its name, else the process's own."""
    return entry_point(Entry("bench_refresh", run, check, module="src.benchmarks.refresh"), argv)


if __name__ == "__main__":
    run_command(main)
