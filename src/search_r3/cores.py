"""The cores that a process may use."""

import contextlib
import os
from pathlib import Path


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use, by its affinity and by the quota of its container; at least 1."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not so on macOS
    visible = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such file, or no quota: "max"
        quota, period = cgroup.read_text(encoding="ascii").split()
        return max(1, min(visible, int(quota) // int(period)))
    return visible
