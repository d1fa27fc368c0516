"""Trains one stage: `python -m src.train stage=sft`, `python -m src.train resume=<run folder>`."""

from collections.abc import Sequence

from search_r3.cli.command import entry_point
from search_r3.cli.entry import Entry
from search_r3.cli.last_resort import run_command
from search_r3.cli.training import reached_step, run
from search_r3.cli.training_checks import check


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; `argv` is what follows its name, else the process's own."""
    return entry_point(Entry("train", run, check, reached_step), argv)


if __name__ == "__main__":
    run_command(main)
