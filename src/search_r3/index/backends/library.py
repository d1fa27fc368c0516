"""FAISS beside torch: each brings an OpenMP of its own, and on macOS the two in one process crash or hang.

Everything that needs `faiss` takes it from here. torch is imported first, always; on macOS FAISS then keeps
to one thread. Elsewhere it uses all.
"""

import sys

import numpy as np
import torch  # noqa: F401

import faiss  # isort: skip

__all__ = ["add_to_lists", "faiss", "make_room", "settle"]


def settle(platform: str) -> None:
    """Keeps FAISS to one thread on macOS.

    Args:
        platform: as `sys.platform` has it.
    """
    if platform == "darwin":
        faiss.omp_set_num_threads(1)


def make_room(index: object, lists: np.ndarray) -> None:
    """Makes empty inverted lists as long as they will be: one that grows takes up to twice the memory.

    Args:
        index: an `IndexIVF`.
        lists: `[N]` integers, the list of each row that will be added.
    """
    for number, size in enumerate(np.bincount(lists, minlength=index.nlist).tolist()):
        for length in (size, 0):
            index.invlists.resize(number, length)


def add_to_lists(index: object, vectors: np.ndarray, lists: np.ndarray) -> None:
    """Adds vectors `[n, D]` whose lists `[n]` are known, so that they are not looked for twice."""
    known = np.ascontiguousarray(lists, dtype=np.int64)
    index.add_core(len(vectors), faiss.swig_ptr(vectors), None, faiss.swig_ptr(known))


settle(sys.platform)
