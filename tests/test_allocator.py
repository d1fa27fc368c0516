"""Memory that a step has freed stays with the process."""

import ctypes
import os
import subprocess
import sys

import pytest

HELD_AFTER_A_STEP = """
import os
from pathlib import Path
import torch
from search_r3.allocator import keep_freed_memory

def step():
    blocks = [torch.empty(24 * 2**20, dtype=torch.uint8).fill_(1) for _ in range(12)]

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

if {keeps}:
    keep_freed_memory()
before = resident()
step()
print(resident() - before)
"""
OF_A_STEP = 12 * 24 * 2**20

has_glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="no glibc"
)


def held(keeps: bool, **variables: str) -> int:
    """Bytes in memory after a step has freed `OF_A_STEP`, more than before it."""
    code = HELD_AFTER_A_STEP.format(keeps=keeps)
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True, check=True
    )
    return int(ran.stdout)


@has_glibc
def test_the_memory_that_a_step_frees_stays_for_the_next_one():
    assert held(keeps=False) < OF_A_STEP / 2
    assert held(keeps=True) > OF_A_STEP / 2


@has_glibc
def test_what_the_user_has_set_stays():
    assert held(keeps=True, MALLOC_MMAP_THRESHOLD_="1000000") < OF_A_STEP / 2
