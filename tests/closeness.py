"""How near two computations of one thing come in fp32."""

import torch
from torch import Tensor

ULP = 2.0**-23
"""The spacing of fp32 numbers at 1; at a value of 17 it is 16 times that."""


def assert_close_in_ulps(actual: Tensor, expected: Tensor, ulps: float, name: str = "") -> None:
    """Two tensors differ by rounding alone.

    A sum in another order, by another processor or number of threads, is off by a few ulps of its largest
    term, however near to 0 it ends. So the tolerance is `ulps` times the ulp of the largest expected value,
    at every place alike; an absolute tolerance would be below the arithmetic for large values, and a relative
    one for those that cancel.

    Args:
        actual: any shape.
        expected: the same shape.
        ulps: 16 for a sum of a few terms, 256 through a model of two layers.
        name: said where they differ.
    """
    largest = float(expected.abs().max())
    torch.testing.assert_close(
        actual, expected, atol=ulps * ULP * largest, rtol=0, msg=lambda text: f"{name}: {text}"
    )
