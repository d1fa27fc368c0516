"""Progress of long work: a bar on a terminal, sparse plain lines in a file or a pipe.

A bar that is redrawn fills a log with carriage returns; a log without any sign of life looks dead. So each
loop of the project counts through this one object, and what is shown depends on where it is shown.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")
LINE_EVERY_S = 15.0
VALUES_EVERY_S = 0.5


class Progress:
    """Counts items of a known or unknown total; used as a context manager.

    A line has count, rate, time gone and time left. There is at most one in `line_every_s` seconds, and one
    at the end; none where the work was broken off by an exception.

    Args:
        total: items in all; None where that is unknown.
        what: what is being done, in a word or two.
        unit: the items, in the plural.
        is_shown: False shows nothing, as on ranks other than the first.
        initial: items that an earlier run has done; they are in the count and not in the rate.
        is_scaled: whether counts are written as 1.2M, as for bytes.
        line_every_s: seconds between two lines where the output is no terminal.
        stream: where it is shown; standard error where None.
    """

    def __init__(
        self,
        total: int | None,
        what: str,
        unit: str,
        is_shown: bool = True,
        initial: int = 0,
        is_scaled: bool = False,
        line_every_s: float = LINE_EVERY_S,
        stream: TextIO | None = None,
    ) -> None:
        self.total, self.what, self.unit, self.is_shown = total, what, unit, is_shown
        self.n = self._initial = initial
        self._is_scaled, self._line_every_s = is_scaled, line_every_s
        self._stream = sys.stderr if stream is None else stream
        self._started_at = self._shown_at = time.monotonic()
        self._values: Callable[[], str] | None = None
        self._bar: tqdm | None = None
        if is_shown and self._stream.isatty():
            self._bar = tqdm(
                total=total, initial=initial, desc=what, unit=f" {unit}", unit_scale=is_scaled,
                dynamic_ncols=True, file=self._stream,
            )  # fmt: skip

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *rest: object) -> None:
        self.close(is_finished=error_type is None)

    def update(self, n: int = 1, values: Callable[[], str] | None = None) -> None:
        """Counts `n` more items.

        Args:
            n: items.
            values: gives a text to show beside the count. It is called only when something is shown, since
                reading a metric from a GPU waits for it.
        """
        self.n += n
        self._values = values
        if not self.is_shown:
            return
        is_due = time.monotonic() - self._shown_at >= self._line_every_s
        if self._bar is None:
            if is_due:
                self._print_line()
            return
        if values is not None and time.monotonic() - self._shown_at >= VALUES_EVERY_S:
            self._shown_at = time.monotonic()
            self._bar.set_postfix_str(values(), refresh=False)
        self._bar.update(n)

    def close(self, is_finished: bool = True) -> None:
        """Ends the display; a second call does nothing."""
        if self._bar is not None:
            self._bar.close()
        elif self.is_shown and is_finished:
            self._print_line()
        self.is_shown, self._bar = False, None

    def line(self, elapsed_s: float) -> str:
        """The count after so many seconds: "embed: 10/40 texts, 5 texts/s, 00:02 gone, 00:06 left"."""
        rate = (self.n - self._initial) / elapsed_s if elapsed_s > 0 else 0.0
        total = "" if self.total is None else f"/{self._count(self.total)}"
        parts = [f"{self._count(self.n)}{total} {self.unit}", f"{self._count(rate)} {self.unit}/s"]
        parts.append(f"{tqdm.format_interval(elapsed_s)} gone")
        if self.total is not None:
            left_s = max(self.total - self.n, 0) / rate if rate > 0 else None
            parts.append(f"{'?' if left_s is None else tqdm.format_interval(left_s)} left")
        if self._values is not None and (values := self._values()):
            parts.append(values)
        return f"{self.what}: {', '.join(parts)}"

    def _count(self, number: float) -> str:
        if self._is_scaled:
            return tqdm.format_sizeof(number)
        if isinstance(number, int):
            return f"{number:,}"
        return f"{number:,.3g}" if number < 100 else f"{number:,.0f}"

    def _print_line(self) -> None:
        self._shown_at = time.monotonic()
        print(self.line(self._shown_at - self._started_at), file=self._stream, flush=True)


def progress_over(items: Iterable[T], total: int, what: str, unit: str) -> Iterator[T]:
    """The items, counted as they are taken; see `Progress`."""
    with Progress(total, what, unit) as progress:
        for item in items:
            yield item
            progress.update()
