"""One thread where a forward is too small for several."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PAYS_FROM = 5e7
"""Products of a layer, its weights times the tokens, from which on several threads pay. Handing work over and
waiting for it costs some 20 microseconds for each operation of a layer. On two cores whose threads sleep
while they wait, the shipped model (0.6 million weights a layer) is 1.5 times as fast on one thread with 18
tokens, 1.2 times with 72, and level from 110 on; SmolLM2 (3.5 million) is level with 25."""


@contextmanager
def threads_for(products: float) -> Iterator[None]:
    """This thread's operations on the CPU run on one thread within, where a layer has few `products`."""
    n_threads = torch.get_num_threads()
    if n_threads == 1 or products >= PAYS_FROM:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
