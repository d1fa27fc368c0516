"""What the processes of a run tell each other: every collective of the project but those of sharded weights.

Every call here is collective unless it says otherwise: all ranks make it, in the same order, or they wait for
each other for ever. In one process nothing is sent. Three calls send: `everyones`, `reduced` and
`Ranks.gather_objects`; all others are made of them.
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike
from torch import Tensor, nn

T = TypeVar("T")
Argument = TypeVar("Argument")
Result = TypeVar("Result")


def own_place() -> tuple[int, int]:
    """The number of this process and how many there are; not collective."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


# ---- tensors


def everyones(values: Tensor) -> list[Tensor]:
    """The tensors of all ranks, of one shape and dtype, in the order of ranks."""
    n_ranks = own_place()[1]
    if n_ranks == 1:
        return [values]
    received = [torch.empty_like(values) for _ in range(n_ranks)]
    dist.all_gather(received, values)
    return received


def reduced(values: Tensor, how: Literal["sum", "max", "min"] = "sum") -> Tensor:
    """The sum, largest or smallest of each place over ranks; a new tensor where there are several."""
    if own_place()[1] == 1:
        return values
    result = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, getattr(dist.ReduceOp, how.upper()))
    return result


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean over ranks of a floating-point tensor."""
    return reduced(value) / own_place()[1]


def all_true(flag: bool, device: torch.device | str) -> bool:
    """Whether a statement holds on every rank; `device` is that of the process group's backend."""
    return bool(reduced(torch.tensor(int(flag), device=device), "min"))


def row_counts(n_rows: int, device: torch.device | str = "cpu") -> list[int]:
    """How many rows each rank holds, in the order of ranks; `device` as in `all_true`."""
    if own_place()[1] == 1:
        return [n_rows]
    return [int(count) for count in everyones(torch.tensor([n_rows], device=device))]


def share_of_count(n_rows: int, device: torch.device | str = "cpu") -> float:
    """Rows on all ranks divided by the number of ranks: the denominator that makes ranks average correctly.

    At least one row's share, so that a batch that is empty everywhere divides by something.
    """
    return max(sum(row_counts(n_rows, device)), 1) / own_place()[1]


def gather_rows(rows: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """The rows of all ranks, in the order of ranks, with gradient; on one rank the rows themselves.

    The backward pass sums what every rank's loss says about a row. It is collective too: where one rank's
    loss depends on the result, every rank's must, and `rows` must need a gradient on all ranks or on none.

    Args:
        rows: `[M, ...]`, any dtype; `M` may differ between ranks and may be 0.
        counts: what `row_counts(M)` gave, to save asking again.

    Returns:
        `[sum of M, ...]`. This rank's rows start at `sum(counts[:rank])`.
    """
    rank, n_ranks = own_place()
    if n_ranks == 1:
        return rows
    counts = row_counts(len(rows), rows.device) if counts is None else counts
    if counts[rank] != len(rows):
        raise ValueError(f"counts {list(counts)} do not fit the {len(rows)} rows of rank {rank}")
    return _Gather.apply(rows, tuple(counts))


def _parts(rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Every rank's `[count, ...]`; rows are filled up, since collectives need one size for all ranks."""
    if max(counts) == 0:
        return [rows] * len(counts)
    own = rows.new_zeros(max(counts), *rows.shape[1:])
    own[: len(rows)] = rows
    return [part[:count] for part, count in zip(everyones(own), counts, strict=True)]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.counts = counts
        return torch.cat(_parts(rows, counts))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        total = reduced(gradient)  # gloo has no reduce-scatter; a batch of embeddings is small
        return total.split(ctx.counts)[own_place()[0]], None


# ---- arrays, values and errors


class Ranks:
    """This process among the others, who share a corpus: every rank holds a run of neighbouring rows.

    Attributes:
        rank: of this process.
        size: number of processes.
    """

    def __init__(self) -> None:
        self.rank, self.size = own_place()
        on_gpu = self.size > 1 and dist.get_backend() == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    def shard(self, n_rows: int) -> slice:
        """The rows that this rank holds, the same number on every rank up to one; not collective."""
        return slice(self.rank * n_rows // self.size, (self.rank + 1) * n_rows // self.size)

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        """Every rank's array `[n, ...]`, in the order of ranks; `n` may differ and be 0."""
        if self.size == 1:
            return [array]
        own = torch.from_numpy(np.array(array)).to(self._device)
        parts = _parts(own, row_counts(len(own), self._device))
        return [part.cpu().numpy() for part in parts]

    def joined(self, array: np.ndarray) -> np.ndarray:
        """The arrays of all ranks as one, in the order of ranks."""
        return self.joined_and_own(array)[0]

    def joined_and_own(self, array: np.ndarray) -> tuple[np.ndarray, slice]:
        """The arrays of all ranks as one, in the order of ranks, and where this rank's stands in it."""
        parts = self.gather(array)
        start = sum(map(len, parts[: self.rank]))
        return array if self.size == 1 else np.concatenate(parts), slice(start, start + len(array))

    def sum(self, values: ArrayLike) -> ArrayLike:
        """The sum over ranks of numbers, or of arrays of one shape; the same bits on every rank."""
        return values if self.size == 1 else np.sum(self._stacked(values), axis=0)

    def max(self, values: ArrayLike) -> ArrayLike:
        """The largest over ranks of numbers, or of each place of arrays of one shape."""
        return values if self.size == 1 else np.max(self._stacked(values), axis=0)

    def _stacked(self, values: ArrayLike) -> np.ndarray:
        return self.joined(np.asarray(values)[None])

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's value, which can be pickled and is small."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def agree(self, error: RuntimeError | None) -> None:
        """Raises on all ranks what one of them met, so that none waits for one that has gone.

        Raises:
            RuntimeError: If a rank hands one in; of its kind, which one text must be enough to make.
        """
        for rank, told in enumerate(self.gather_objects(_told(error))):
            if told is not None:
                kind, text = told
                raise kind(text if self.size == 1 else f"rank {rank}: {text}") from error

    def together(self, action: Callable[[], T]) -> T:
        """The result of an action that may fail on one rank; then it fails on all.

        Raises:
            RuntimeError: If the action does, on any rank; of the same kind on all.
        """
        result, error = None, None
        try:
            result = action()
        except RuntimeError as failed:
            error = failed
        self.agree(error)
        return result

    def led(
        self,
        action: Callable[[Callable[[Argument], Result]], T],
        call: Callable[[Argument], Result],
    ) -> T | None:
        """An action of the first rank, which may have all ranks make a call, as often as it needs.

        Args:
            action: of the first rank alone; is handed what makes the call on all ranks.
            call: of an argument that can be pickled and is not None. Collective; a RuntimeError that it
                raises, it raises on every rank, as `agree` does.

        Returns:
            What the action gave, on the first rank; None on the others.

        Raises:
            RuntimeError: On every rank, if the action raises one; of its kind.
        """
        return self._lead(action, call) if self.rank == 0 else self._follow(call)

    def _lead(
        self,
        action: Callable[[Callable[[Argument], Result]], T],
        call: Callable[[Argument], Result],
    ) -> T:
        """Sends each argument, and at the end None and what went wrong, as `_follow` reads them."""
        result, error = None, None

        def call_by_all(argument: Argument) -> Result:
            self.gather_objects((argument, None))
            return call(argument)

        try:
            result = action(call_by_all)
        except RuntimeError as failed:  # between two calls, so the others listen
            error = failed
        self.gather_objects((None, _told(error)))
        if error is not None:
            raise error
        return result

    def _follow(self, call: Callable[[Argument], Result]) -> None:
        argument, told = self.gather_objects(None)[0]
        while argument is not None:
            with contextlib.suppress(RuntimeError):  # it is on every rank, and the first one ends this
                call(argument)
            argument, told = self.gather_objects(None)[0]
        if told is not None:
            kind, text = told
            raise kind(text)


PATIENCE = datetime.timedelta(days=30)
"""How long a process waits for the next chunk, since the first one asks queries meanwhile."""


@contextlib.contextmanager
def process_group() -> Iterator[Ranks]:
    """The processes that a launcher started with this one, while the body runs; this one alone without.

    A group that there is already is taken.
    """
    is_ours = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if is_ours:
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks()
    finally:
        if is_ours:
            dist.destroy_process_group()


def _told(error: RuntimeError | None) -> tuple[type[RuntimeError], str] | None:
    """What the other ranks hear of an error."""
    return None if error is None else (type(error), str(error))


# ---- forwards


class Decoding(Protocol):
    """What `equal_forwards` asks of a model; a `ReasoningEmbedder` has it."""

    device: torch.device
    decoder: nn.Module
    embed_token_id: int

    def embed_ids(self, sequences: Sequence[Sequence[int]]) -> Tensor: ...


@contextlib.contextmanager
def equal_forwards(model: Decoding) -> Iterator[None]:
    """Within, every rank runs the decoder equally often, however long its texts and reasonings are.

    Before each forward the ranks tell each other that they go on. One that is through runs forwards of a
    single token for as long as another goes on, since sharded weights can only be used by all ranks at once.
    There must be no other collective inside.
    """
    if own_place()[1] == 1:
        yield
        return
    is_running, n_running = torch.ones((), device=model.device), 0

    def announce(*_: object) -> None:
        nonlocal n_running
        n_running = reduced(is_running)

    # First of all hooks, so that it comes before those that fetch sharded weights.
    handle = model.decoder.register_forward_pre_hook(announce, prepend=True)
    try:
        yield
    finally:
        handle.remove()
    is_running.zero_()
    while True:
        announce()
        if not n_running:
            return
        model.embed_ids([[model.embed_token_id]])
