"""What the benchmarks that time two ways side by side share."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from search_r3.cli.provenance import provenance
from search_r3.errors import UsageError
from search_r3.files import write_json
from search_r3.folders import make_folder


def check_counts(arguments: argparse.Namespace, *names: str) -> None:
    """Refuses an option below 1, by its name.

    Raises:
        UsageError: If one is.
    """
    for name in names:
        if getattr(arguments, name) < 1:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} must be at least 1, got {getattr(arguments, name)}")


def write_rows(output: Path | None, measure: Callable[[], Sequence[Mapping]]) -> None:
    """Measures, and writes the rows where a file is named; its folder is made before minutes of timings.

    Raises:
        UsageError: If the folder cannot be made.
    """
    if output:
        make_folder(output.parent, "--output")
    rows = measure()
    if output:
        write_json(output, {**provenance(), "threads": torch.get_num_threads(), "rows": rows})
        print(json.dumps({"wrote": str(output)}))


def seconds_of(run: Callable[[], object]) -> float:
    """Wall time of a call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def device_seconds(device: torch.device, run: Callable[[], object], n_times: int = 1) -> float:
    """Wall time of so many calls, from when a device has done all work of before to when it has done this."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def run_all() -> None:
        for _ in range(n_times):
            run()
        wait()

    wait()
    return seconds_of(run_all)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of the rounds."""
    rounded = [round(value, 3) for value in values]
    return {"median": round(statistics.median(rounded), 3), "lowest": min(rounded), "highest": max(rounded)}
