"""Runs what a test needs of a distributed run in two real processes over gloo."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.command import FORKED, THREADS, end_with_the_tests

T = TypeVar("T")


def on_two_ranks(function: Callable[..., T], *arguments: object) -> list[T]:
    """What a function gives on each of two ranks, which run it at the same time.

    Each rank is a new process, in a gloo group, and with the environment that torchrun sets,
    so that a Lightning trainer with `strategy="ddp", devices=2` takes it for one of its processes.

    Args:
        function: `(rank, *arguments)` to a result that `torch.save` can write; at the top of a module, where
            a new process finds it by its name.
        arguments: can be pickled.

    Returns:
        The results of rank 0 and of rank 1.

    Raises:
        ProcessRaisedException: If the function fails on a rank; the other rank is stopped.
    """
    with TemporaryDirectory() as folder:
        given = (_free_port(), Path(folder), function, arguments)
        mp.start_processes(_work, given, nprocs=2, start_method=FORKED.get_start_method())
        return [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def _work(rank: int, port: int, folder: Path, function: Callable, arguments: tuple) -> None:
    end_with_the_tests()
    torch.set_num_threads(THREADS)
    facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    os.environ.update({name: str(value) for name, value in facts.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"})
    dist.init_process_group("gloo")
    torch.save(function(rank, *arguments), folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
