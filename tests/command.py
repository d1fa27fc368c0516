"""Runs the project's commands as a user does, and other functions in processes of their own.

A process is forked from a server that has imported torch and what is heavy of ours, which takes seconds, and
then becomes `python -m <module>`: exit code, output, working directory, environment and signals are its own.
A test starts a Python anew only where what it says is about that.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 600
"""How long a process may take: a few seconds on a quiet machine. It ends what hangs and is no expectation."""

THREADS = int(os.environ.get("OMP_NUM_THREADS") or 1)
"""Of torch, here and in every process: more than one only where the environment says so."""

PYTHONPATH = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
"""The launchers of this checkout, and what the environment names."""

ENVIRONMENT = os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": str(THREADS)}
for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SEARCH_R3_RUN_FOLDER"):
    ENVIRONMENT.pop(name, None)

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        "pytorch_lightning",
        "transformers.models.qwen2.modeling_qwen2",
        "peft",
        "search_r3.cli.command",
        "search_r3.stages.data",
        "search_r3.stages.rl.data",
        "search_r3.data.triples",
        "search_r3.evaluation.benchmark",
        "search_r3.models.nano",
        "search_r3.stages.pretrain.module",
        "search_r3.stages.record",
        "search_r3.stages.rl.module",
        "search_r3.stages.sft.module",
        "search_r3.cli.training",
        "search_r3.cli.curves",
        "search_r3.evaluation.rankers",
        "search_r3.models.folder.saving",
        "tests.warm",
    ]
)


@dataclass(frozen=True)
class Done:
    """What a process left; a negative code is a signal."""

    returncode: int
    stdout: str
    stderr: str


def become(
    module: str, arguments: list[str], cwd: Path, environment: dict[str, str], has_own_group: bool = True
) -> None:
    """What a forked process does: `python -m <module> <arguments>`, in a process group of its own or not.

    Where the environment has PYTHON_OF_THE_TESTS, commands that it starts are started by that.
    """
    import torch

    if has_own_group:
        os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(THREADS)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    named = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = [str(cwd), *(path for path in named if path not in sys.path)]  # as a new process has it
    sys.argv = [module, *arguments]
    sys.executable = environment.get("PYTHON_OF_THE_TESTS", sys.executable)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a forked process leaves them out


def forked(function: Callable[..., None], *arguments: object, is_merged: bool = False) -> Done:
    """Runs a function, which stands at the top of a module, in a forked process to its end.

    Args:
        function: is given the arguments; what it returns is lost.
        arguments: can be pickled.
        is_merged: whether all that is printed is in `stdout`, in its order, and `stderr` is empty.
    """
    with TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stdout" if is_merged else "stderr")]
        process = begun(files, function, *arguments)
        process.join(LIMIT_S)
        if process.is_alive():
            process.kill()
            process.join()
        stdout, stderr = (file.read_text() if file.is_file() else "" for file in files)
        return Done(process.exitcode, stdout, "" if is_merged else stderr)


def begun(files: list[Path], function: Callable[..., None], *arguments: object) -> BaseProcess:
    """A forked process that runs a function and writes its output and its errors to two files, or to one."""
    process = FORKED.Process(target=_written_to, args=(files, function, arguments))
    process.start()
    return process


def end_with_the_tests() -> None:
    """Ends this forked process, and its group if that is its own, when the process of the tests is gone.

    The server outlives the tests for as long as one of its children does, and a rank that waits for another
    one waits for half an hour.
    """

    def watch() -> None:
        wait([multiprocessing.parent_process().sentinel])
        os.kill(0 if os.getpgrp() == os.getpid() else os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _written_to(files: list[Path], function: Callable[..., None], arguments: tuple) -> None:
    end_with_the_tests()
    for number, path in enumerate(files, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    function(*arguments)


def run(module: str, *arguments: str, cwd: Path = ROOT, is_merged: bool = False, **environment: str) -> Done:
    """`python -m src.<module>` to its end; see `forked`."""
    given = f"src.{module}", [*map(str, arguments)], cwd, ENVIRONMENT | environment
    return forked(become, *given, is_merged=is_merged)


def tiny(arguments: tuple[str, ...], cwd: Path) -> list[str]:
    """The arguments of a command whose stage, data and model are tiny."""
    from tests.tiny_stage import write_configs  # imports torch, and some processes want LIMIT_S alone

    configs = write_configs(cwd / "configs")
    chosen = ["stage=tiny", "data=tiny", "model=tiny"] if not any("resume=" in a for a in arguments) else []
    return ["--config-dir", str(configs), *chosen, *arguments]


@dataclass(frozen=True)
class Running:
    """A command that was started, and the file with all that it prints."""

    process: BaseProcess
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process.is_alive()

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""

    def ended(self, number: int | None = None) -> tuple[int, str]:
        """Exit code and everything printed, after a signal where one is given."""
        if number is not None:
            os.kill(self.pid, number)
        self.process.join(LIMIT_S)
        if self.is_alive:
            self.process.kill()
            self.process.join()
        return self.process.exitcode, self.output


def start(module: str, *arguments: str, log: Path, cwd: Path = ROOT, **environment: str) -> Running:
    """Starts `python -m src.<module>`, in a process group of its own."""
    log.unlink(missing_ok=True)
    given = f"src.{module}", [*map(str, arguments)], cwd, ENVIRONMENT | environment
    return Running(begun([log, log], become, *given), log)


def call(command: str, *arguments: str, cwd: Path, **environment: str) -> tuple[int, str]:
    """Exit code and everything printed of `python -m src.<command>` with stage, data and model tiny."""
    done = run(command, *tiny(arguments, cwd), cwd=cwd, is_merged=True, **environment)
    return done.returncode, done.stdout
