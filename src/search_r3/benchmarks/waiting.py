"""How should threads wait for each other? `python -m src.benchmarks.waiting`: passive against spinning.

OpenMP threads that have nothing to do either spin or sleep (`OMP_WAIT_POLICY`). On a machine of one's own
spinning saves the waking; beside other work two spinning threads take each other's time. Forward and backward
of the shipped base are timed in a process per policy, in alternation, alone and beside busy processes.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from search_r3.benchmarks.timing import check_counts, spread
from search_r3.cli.last_resort import Parser, run_command
from search_r3.cli.provenance import provenance
from search_r3.errors import UsageError
from search_r3.files import write_json
from search_r3.folders import make_folder
from search_r3.progress import Progress
from search_r3.shipped import ROOT

POLICIES = ("PASSIVE", "ACTIVE")
TOKENS, LENGTH = 2048, 64
"""Of one forward: as many tokens as a step of SFT gives it on a CPU, in texts of the length of a function."""


def tokens_per_second(seconds: float) -> float:
    """Tokens per second of forward and backward of the shipped base, in this process, for some seconds."""
    import torch

    from search_r3.models.folder.loading import load_embedder

    embedder = load_embedder(ROOT / "experiments" / "nano_base" / "model")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 1000, (TOKENS // LENGTH, LENGTH), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)

    def step() -> None:
        embedder.hidden_states(ids, mask)[:, -1].square().sum().backward()

    step()  # the first one allocates
    n_steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        step()
        n_steps += 1
    return n_steps * TOKENS / (time.perf_counter() - started)


def measured(policy: str, n_threads: int, seconds: float) -> float:
    """Tokens per second of a fresh process under a policy, which is read when torch is loaded."""
    program = f"from search_r3.benchmarks.waiting import tokens_per_second as t; print(t({seconds}))"
    environment = os.environ | {"OMP_WAIT_POLICY": policy, "OMP_NUM_THREADS": str(n_threads)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1])


@contextlib.contextmanager
def beside(n_processes: int) -> Iterator[None]:
    """Runs processes that only count while the body runs."""
    busy = [multiprocessing.Process(target=_count, daemon=True) for _ in range(n_processes)]
    for process in busy:
        process.start()
    try:
        yield
    finally:
        for process in busy:
            process.kill()  # it counts, and has nothing to put away
            process.join()


def _count() -> None:
    while True:
        pass


def compare(n_busy: Sequence[int], n_threads: int, rounds: int, seconds: float) -> list[dict]:
    """A row per number of busy processes: medians and ranges of both policies, and their ratio by round."""
    rows = []
    with Progress(len(n_busy) * rounds * len(POLICIES), "wait", "timings") as bar:
        for n in n_busy:
            found: dict[str, list[float]] = {policy: [] for policy in POLICIES}
            with beside(n):
                for _ in range(rounds):
                    for policy in POLICIES:
                        found[policy].append(measured(policy, n_threads, seconds))
                        bar.update(1)
            ratios = [one / other for one, other in zip(*found.values(), strict=True)]
            rows.append(
                {
                    "busy_processes": n,
                    "threads": n_threads,
                    **{f"{policy.lower()}_tokens_per_s": spread(found[policy]) for policy in POLICIES},
                    "passive_over_active": spread(ratios),
                }
            )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Compares the policies, prints a line per row and writes them where that is asked for."""
    parser = Parser(prog="python -m src.benchmarks.waiting", description=__doc__)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], help="processes beside it, in turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each policy")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a timing")
    parser.add_argument("--output", type=Path, help="a JSON file of the rows")
    arguments = parser.parse_args(argv)
    _check(arguments)
    rows = compare(arguments.busy, arguments.threads, arguments.rounds, arguments.seconds)
    for row in rows:
        ratio = row["passive_over_active"]
        passive, active = (row[f"{policy.lower()}_tokens_per_s"]["median"] for policy in POLICIES)
        print(
            f"beside {row['busy_processes']} busy: passive {passive:,.0f}, active {active:,.0f} tokens per "
            f"second; ratio {ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"
        )
    if arguments.output:
        write_json(arguments.output, {**provenance(), "cpu": processor(), "rows": rows})
        print(json.dumps({"wrote": str(arguments.output)}))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    check_counts(arguments, "threads", "rounds")
    if not arguments.seconds > 0:
        raise UsageError(f"--seconds must be above 0, got {arguments.seconds}")
    if any(n < 0 for n in arguments.busy):
        raise UsageError(f"--busy must not be negative, got {min(arguments.busy)}")
    if arguments.output:
        make_folder(arguments.output.parent, "--output")  # before minutes of timings


def processor() -> str:
    """What the system calls the processor, and how many there are."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {names[0] if names else 'unknown'}"


if __name__ == "__main__":
    run_command(main)
