"""The processes that share a corpus: who holds which rows, and how they tell each other what they know.

Every rank holds a run of neighbouring rows, the same number up to one. All calls but `shard` are collective.
In one process nothing is sent.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from search_r3.index.rows.cache import StoreError

T = TypeVar("T")


class Ranks:
    """This process among those of a group.

    Attributes:
        rank: of this process in the group.
        size: number of processes.

    Args:
        group: of torch.distributed; the default group where None, one process where there is none.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        is_on = dist.is_available() and dist.is_initialized()
        self._group = group
        self.rank = dist.get_rank(group) if is_on else 0
        self.size = dist.get_world_size(group) if is_on else 1
        on_gpu = is_on and self.size > 1 and dist.get_backend(group) == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    def shard(self, n_rows: int) -> slice:
        """The rows that this rank holds."""
        return slice(self.rank * n_rows // self.size, (self.rank + 1) * n_rows // self.size)

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        """Every rank's array `[n, ...]`, in the order of ranks; `n` may differ and be 0."""
        if self.size == 1:
            return [array]
        own = torch.tensor([len(array)], device=self._device)
        counts = [torch.zeros_like(own) for _ in range(self.size)]
        dist.all_gather(counts, own, group=self._group)
        lengths = [int(count) for count in counts]
        if max(lengths) == 0:
            return [array] * self.size
        # Collectives need one size for all ranks.
        padded = np.zeros((max(lengths), *array.shape[1:]), dtype=array.dtype)
        padded[: len(array)] = array
        sent = torch.from_numpy(padded).to(self._device)
        received = [torch.empty_like(sent) for _ in lengths]
        dist.all_gather(received, sent, group=self._group)
        return [part[:length].cpu().numpy() for part, length in zip(received, lengths, strict=True)]

    def joined(self, array: np.ndarray) -> np.ndarray:
        """The arrays of all ranks as one, in the order of ranks."""
        return self.joined_and_own(array)[0]

    def joined_and_own(self, array: np.ndarray) -> tuple[np.ndarray, slice]:
        """The arrays of all ranks as one, in the order of ranks, and where this rank's stands in it."""
        parts = self.gather(array)
        start = sum(map(len, parts[: self.rank]))
        return array if self.size == 1 else np.concatenate(parts), slice(start, start + len(array))

    def sum(self, array: np.ndarray) -> np.ndarray:
        """The sum over ranks of arrays of one shape; the same bits on every rank."""
        return array if self.size == 1 else np.sum([part[0] for part in self.gather(array[None])], axis=0)

    def max(self, array: np.ndarray) -> np.ndarray:
        """The largest of each place over ranks, of arrays of one shape."""
        return array if self.size == 1 else np.max([part[0] for part in self.gather(array[None])], axis=0)

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's value, which can be pickled and is small."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def agree(self, error: StoreError | None) -> None:
        """Raises on all ranks what one of them met, so that none waits for one that has gone.

        Raises:
            StoreError: If a rank hands one in.
        """
        for rank, text in enumerate(self.gather_objects(None if error is None else str(error))):
            if text is not None:
                raise StoreError(text if self.size == 1 else f"rank {rank}: {text}") from error

    def together(self, action: Callable[[], T]) -> T:
        """The result of an action that may fail on one rank; then it fails on all.

        Raises:
            StoreError: If the action does, on any rank.
        """
        result, error = None, None
        try:
            result = action()
        except StoreError as failed:
            error = failed
        self.agree(error)
        return result
