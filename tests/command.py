"""Runs the project's commands as a user does, on the tiny stage."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.tiny_stage import write_configs

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 600
"""How long a process may take: a few seconds on a quiet machine. It ends what hangs and is no expectation."""

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SEARCH_R3_RUN_FOLDER"):
    ENVIRONMENT.pop(name, None)


def _heed_ctrl_c() -> None:
    """A shell that runs the tests in the background has them ignore SIGINT, which processes hand down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(command: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.Popen:
    """Starts `python -m src.<command>` with stage, data and model tiny, in a process group of its own."""
    configs = write_configs(cwd / "configs")
    tiny = ["stage=tiny", "data=tiny", "model=tiny"] if not any("resume=" in a for a in arguments) else []
    return subprocess.Popen(
        [sys.executable, "-m", f"src.{command}", "--config-dir", str(configs), *tiny, *arguments],
        cwd=cwd,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=_heed_ctrl_c,
    )


def call(command: str, *arguments: str, cwd: Path, **environment: str) -> tuple[int, str]:
    """Exit code and everything printed."""
    process = start(command, *arguments, cwd=cwd, **environment)
    output, _ = process.communicate(timeout=LIMIT_S)
    return process.returncode, output
