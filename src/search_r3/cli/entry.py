"""What differs between commands, and what a command was composed to."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig

from search_r3.cli.command_line import command_line

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
    """A command that is composed of conf/.

    Attributes:
        config_name: file in conf/ without its ending.
        run: the job; gets the configuration with `output_dir` filled in. Imports what is heavy inside.
        check: raises UsageError for a combination that makes no sense; told whether this is a sweep.
        reached: the step that a run folder's last checkpoint is of, None where there is none. A command
            without it knows no `resume=` and no `if_exists=`, and may be pointed at any folder that exists.
        folder: names the run folder where `output_dir` is not given; None for a new one by date and time.
        module: what `python -m` is given; `src.<config_name>` where None.
        is_recorded: whether the job has a run folder with its configuration, log and state; a query has none.
    """

    config_name: str
    run: Run
    check: Check
    reached: Reached | None = None
    folder: Callable[[DictConfig], Path] | None = None
    module: str | None = None
    is_recorded: bool = True

    @property
    def is_resumable(self) -> bool:
        """Whether the command knows `resume=` and `if_exists=`."""
        return self.reached is not None
