"""Offline runs of Weights & Biases as its own reader gives them: `wandb leet inspect --json`."""

import json
import subprocess
import sys
from pathlib import Path


def wandb_records(file: Path) -> list[dict]:
    """Every record of a `.wandb` file, each under its `type`."""
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def offline_runs(folder: Path) -> list[list[dict]]:
    """The records of each offline run in a folder, in the order in which they began."""
    return [wandb_records(file) for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def of_kind(records: list[dict], kind: str) -> list[dict]:
    """What records of one kind hold."""
    return [each[kind] for each in records if each["type"] == kind]
