"""Where a run's index is on disk, and what is saved there beside a checkpoint: its backend and its rule.

<folder>/shard-<rank>-of-<size>/              this rank's live rows
<folder>/shard-<rank>-of-<size>/state-<c>/    of the rows' checkpoint `c`: index/ and rule/, where they have
                                              something that cannot be made again from the rows
"""

import os
import re
import shutil
from pathlib import Path

from search_r3.distributed import Ranks
from search_r3.index.backends.base import Index
from search_r3.index.rows.cache import StoreError
from search_r3.index.rules.base import Rule


def shard_folder(folder: str | Path, ranks: Ranks) -> Path:
    """Where this rank's rows are."""
    return Path(folder) / f"shard-{ranks.rank}-of-{ranks.size}"


def state_folder(shard: Path, number: int) -> Path:
    """Where the backend and the rule of a checkpoint are saved."""
    return shard / f"state-{number:06d}"


def saved_folders(shard: Path) -> list[Path]:
    """Of all checkpoints, the oldest first."""
    return sorted(p for p in shard.glob("state-*") if re.fullmatch(r"state-\d{6,}", p.name) and p.is_dir())


def save_state(shard: Path, number: int, index: Index | None, rule: Rule) -> list[str]:
    """Writes what cannot be made again from the rows of a checkpoint, unless that is there.

    Args:
        shard: this rank's folder.
        number: of the rows' checkpoint.
        index: None before the index is built, when there is nothing to write.
        rule: of the run.

    Returns:
        Names of what is there.

    Raises:
        StoreError: If the disk is full or fails.
    """
    folder = state_folder(shard, number)
    try:
        if not folder.exists() and index is not None:
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            index.save(part / "index")
            rule.save(part / "rule")
            os.replace(part, folder)
    except OSError as error:
        raise StoreError(f"{folder}: could not be written ({error}); make room, then resume") from error
    return sorted(child.name for child in folder.iterdir()) if folder.exists() else []


def forget_states(shard: Path, first: int = 0, last: int | None = None) -> None:
    """Drops what was saved, but for the checkpoints from `first` to `last`."""
    for folder in saved_folders(shard):
        number = int(folder.name.partition("-")[2])
        if number < first or (last is not None and number > last):
            shutil.rmtree(folder)
