"""Round numbers on an axis, and where a value stands on it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, 1, 2 or 5 times a power of ten apart, at most `most` of them.

    >>> ticks(0.13, 0.87)
    [0.2, 0.4, 0.6, 0.8]
    """
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** (math.floor(math.log10(span / most)) - 1)
    for step in (power * factor for factor in (1, 2, 5, 10, 20, 50, 100, 200)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def number(value: float) -> str:
    """A number in few characters, as on an axis.

    >>> [number(each) for each in (0, 0.25, 1234, 45000, 2_500_000, 0.00012)]
    ['0', '0.25', '1,234', '45k', '2.5M', '1.2e-4']
    """
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.4g}M" if size < 1e9 else _short(value)
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if size >= 1e-3 or value == 0 else _short(value)


def _short(value: float) -> str:
    digits, power = f"{value:.3e}".split("e")
    return f"{float(digits):g}e{int(power)}"


@dataclass(frozen=True)
class Scale:
    """From a value to a place: `low` is at 0, `high` at 1.

    Attributes:
        low: end of the axis.
        high: end of the axis, above `low`.
        is_log: whether places are those of `log(1 + value)`; `low` is then at least 0.
    """

    low: float
    high: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Place of a value, from 0 to 1."""
        if self.is_log:
            low, high = math.log1p(self.low), math.log1p(self.high)
            return (math.log1p(value) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[float]:
        """Round numbers on it."""
        if not self.is_log:
            return ticks(self.low, self.high)
        powers = [0.0, *(factor * 10.0**power for power in range(9) for factor in (1, 3))]
        return [value for value in powers if self.low <= value <= self.high]


def scale_of(values: Sequence[float], margin: float = 0.06) -> Scale:
    """An axis that holds finite values with a margin, and 0 where that is near."""
    low, high = min(values), max(values)
    if low == high == 0:
        return Scale(0.0, 1.0)
    if low >= 0 and low < 0.4 * high:
        return Scale(0.0, high * (1 + margin))
    if high <= 0 and high > 0.4 * low:
        return Scale(low * (1 + margin), 0.0)
    size = max(abs(low), abs(high))
    pad = margin * (high - low) if high - low > 1e-6 * size else 0.1 * size  # the rest is rounding
    return Scale(low - pad, high + pad)
