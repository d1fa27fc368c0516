"""Which of a run's processes this one is, by what a launcher says before any of them talks to the others; and
what the strategy that joins them is called."""

import os
from collections.abc import Mapping

SHARDED = "search_r3.stages.sharding.ShardedStrategy"
"""What `strategy=fsdp` builds."""


def strategy_name(value: object) -> str:
    """Lightning's name of a configured strategy, or the class that is built; "auto" where none is named."""
    return str((value.get("_target_") if isinstance(value, Mapping) else value) or "auto")


def own_rank() -> str:
    """Rank of this process under torchrun, SLURM or Lightning's own launcher; "0" on its own."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name]
    node, local = os.environ.get("NODE_RANK", "0"), os.environ.get("LOCAL_RANK", "0")
    return local if node == "0" else f"{node}.{local}"


def is_first() -> bool:
    """Whether this is the process that keeps the record of the run, and that judges what is in its folder."""
    return own_rank() == "0"


def launched() -> tuple[int, int] | None:
    """How many processes torchrun started, and how many of them on this machine; None without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
