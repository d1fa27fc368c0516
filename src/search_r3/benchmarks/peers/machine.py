"""What a benchmark ran on: a description, and what it reaches in a large product and a large copy."""

import os
import platform
from contextlib import suppress
from pathlib import Path

import torch

from search_r3.benchmarks.timing import seconds_of
from search_r3.benchmarks.waiting import processor
from search_r3.cli.provenance import versions_of
from search_r3.cores import usable_cores

PEERS = ("sentence-transformers", "trl", "mteb", "transformers", "faiss-cpu", "numpy", "torch", "accelerate")
_SIDE = 2048
_COPIED = 2**28
_TIMES = 5


def described() -> dict[str, object]:
    """Processor, memory, system, and versions of what is compared."""
    return {
        "cpu": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": usable_cores(),
        "memory_gib": _memory_gib(),
        "system": platform.platform(),
        "versions": versions_of(PEERS),
    }


def load() -> float | None:
    """Processes that wanted to run, on average over the last minute; None where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def limits(dtype: torch.dtype, side: int = _SIDE, n_bytes: int = _COPIED) -> dict[str, float]:
    """Operations per second of a product of large matrices, and bytes per second that a large copy moves.

    Measured with the threads of this process; the best of a few, since it stands for what can be reached.

    Args:
        dtype: of the product.
        side: of its matrices.
        n_bytes: of the copy, read and written.
    """
    left, right = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    source = torch.zeros(n_bytes // 4)
    target = torch.empty_like(source)
    product = min(seconds_of(lambda: left @ right) for _ in range(_TIMES))
    copy = min(seconds_of(lambda: target.copy_(source)) for _ in range(_TIMES))
    return {"flops_per_s": 2 * side**3 / product, "bytes_per_s": 2 * n_bytes / copy}


def _memory_gib() -> float | None:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemTotal:"):
                return round(int(line.split()[1]) / 2**20, 1)
    return None
