"""What decides which rows `data=pydocs` has: its settings, the installed versions, and the key of both."""

import importlib.metadata
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from search_r3.data.splits import position
from search_r3.files import json_sha256

CODE_VERSION = 4  # raise it when the same input gives other rows, or the cache other files
STDLIB = "stdlib"
TRAINING_SPLITS = ("sft", "rl", "all")
SPLITS = ("test", "validation", "train")  # near-duplicates stay in the first split that has them

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What decides the rows besides versions; part of the cache key.

    Raises:
        ValueError: If a share is out of range.
    """

    packages: tuple[str, ...]
    include_stdlib: bool
    test_share: float
    validation_share: float
    max_documents_per_query: int
    similarity: float
    include_undocumented: bool

    def __post_init__(self) -> None:
        held_out = (self.test_share, self.validation_share)
        if not (0 < self.test_share < 1 and 0 <= self.validation_share < 1 and sum(held_out) < 1):
            raise ValueError(
                "test_share and validation_share must be in (0, 1) and leave a training share, "
                f"got {self.test_share} and {self.validation_share}"
            )


def pinned_versions(packages: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    """Version by distribution name, from a mapping or from `name==version`.

    Raises:
        ValueError: If an entry has no version or a name is listed twice.
    """
    if isinstance(packages, Mapping):
        pairs = [(str(name), str(version)) for name, version in packages.items()]
    else:
        pairs = []
        for entry in packages:
            name, separator, version = str(entry).partition("==")
            if not (name.strip() and separator and version.strip()):
                raise ValueError(f"packages: each entry must read name==version, got {entry!r}")
            pairs.append((name.strip(), version.strip()))
    versions = dict(pairs)
    if len(versions) < len(pairs):
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise ValueError(f"packages: listed twice: {', '.join(twice)}")
    return versions


def installed_versions(pinned: Mapping[str, str]) -> dict[str, str]:
    """Installed version of each distribution, without a local part such as `+cpu`.

    Raises:
        ValueError: If some are not installed; the message names them all.
    """
    installed, missing = {}, []
    for name, version in pinned.items():
        try:
            found = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            missing.append(f"{name}=={version}")
            continue
        installed[name] = found
        if found != version.partition("+")[0]:
            _LOG.warning("pydocs: %s %s is installed, %s is pinned; %s is mined", name, found, version, found)
    if missing:
        raise ValueError(
            f"packages not installed: {', '.join(missing)}. Install them (pip install {' '.join(missing)}), "
            f"or take them out of data.packages"
        )
    return installed


def cache_key(installed: Mapping[str, str], settings: Settings) -> str:
    """Hash of the Python minor version, package versions, settings and the version of this code."""
    parts = {
        "code": CODE_VERSION,
        "python": list(sys.version_info[:2]),
        "versions": dict(sorted(installed.items())),
        "settings": asdict(settings),
    }
    digest = json_sha256(parts)[:16]
    return f"py{sys.version_info[0]}{sys.version_info[1]}-{digest}"


def split_of(module: str, test_share: float, validation_share: float) -> str:
    """Split of a module: `train`, `validation` or `test`, by a hash of its dotted name and nothing else."""
    place = position(module)
    if place < test_share:
        return "test"
    return "validation" if place < test_share + validation_share else "train"
