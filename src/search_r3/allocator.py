"""What the C library does with memory that a step has freed."""

import contextlib
import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""The names of the two parameters in glibc's `malloc.h`."""
KEPT = {
    "MALLOC_TRIM_THRESHOLD_": (TRIM_THRESHOLD, 2**31 - 1),
    "MALLOC_MMAP_THRESHOLD_": (MMAP_THRESHOLD, 32 * 2**20),
}
"""Bytes: what may stay free at the end of the heap, and the size from which a block is mapped alone. Both
are the highest that glibc takes. By the variable with which a user sets the parameter."""


def keep_freed_memory() -> None:
    """Memory that a step frees stays with this process, for the next step; nothing where there is no glibc.

    glibc gives back what is free at the end of the heap, and the next step faults each page in anew. Three
    steps of SmolLM2 (32 texts of 64 tokens, forward and backward, two threads) spent 5 to 6 of 30 s of
    processor time in the kernel, and 1.5 to 2.3 s of 28 with this; the peak of memory is the same. A
    parameter that the user has set by its variable stays.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for variable, (parameter, n_bytes) in KEPT.items():
            if variable not in os.environ:
                mallopt(parameter, n_bytes)
