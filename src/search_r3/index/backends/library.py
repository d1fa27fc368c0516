"""FAISS beside torch: each brings an OpenMP of its own, and on macOS the two in one process crash or hang.

Everything that needs `faiss` takes it from here. torch is imported first, always; on macOS FAISS then keeps
to one thread. Elsewhere it uses all.
"""

import sys

import torch  # noqa: F401

import faiss  # isort: skip

__all__ = ["faiss", "settle"]


def settle(platform: str) -> None:
    """Keeps FAISS to one thread on macOS.

    Args:
        platform: as `sys.platform` has it.
    """
    if platform == "darwin":
        faiss.omp_set_num_threads(1)


settle(sys.platform)
