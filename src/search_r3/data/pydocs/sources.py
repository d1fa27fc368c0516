"""The Python files that are mined: those of the standard library and of installed distributions."""

import importlib.metadata
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from search_r3.data.pydocs.settings import STDLIB

_SKIPPED_FOLDERS = """
test tests testing _testing idle_test _vendor vendor vendored _vendored extern externals _external
third_party thirdparty __pycache__ site-packages dist-packages lib2to3 ensurepip node_modules
"""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to mine."""

    package: str
    module: str
    path: str


def source_files(package: str) -> Iterator[SourceFile]:
    """Python files of a distribution or of the standard library, in the order of their modules.

    Tests, vendored and compiled-protocol files are left out.

    Raises:
        ValueError: If the distribution does not record its files (an editable installation).
    """
    if package == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        paths = [(path.relative_to(root).as_posix(), path) for path in root.rglob("*.py")]
        paths = [
            (name, path) for name, path in paths if name.split("/")[0].removesuffix(".py") in _STDLIB_NAMES
        ]
    else:
        distribution = importlib.metadata.distribution(package)
        if distribution.files is None:
            raise ValueError(f"{package} does not record its files; install it as a wheel, not editable")
        paths = [
            (file.as_posix(), Path(distribution.locate_file(file)))
            for file in distribution.files
            if file.suffix == ".py" and file.parts[0] != ".."
        ]
    for name, path in sorted(paths):
        if not _is_skipped(PurePosixPath(name)):
            yield SourceFile(package, _module_name(name), str(path))


_SKIPPED_PARTS = frozenset(_SKIPPED_FOLDERS.split())
_STDLIB_NAMES = frozenset(sys.stdlib_module_names) - {"this", "antigravity"}


def _is_skipped(path: PurePosixPath) -> bool:
    in_skipped_folder = any(part in _SKIPPED_PARTS for part in path.parts[:-1])
    stem = path.stem
    is_test = stem == "conftest" or stem.startswith("test_") or stem.endswith(("_test", "_tests"))
    return in_skipped_folder or is_test or stem.endswith("_pb2")


def _module_name(path: str) -> str:
    parts = path.removesuffix(".py").split("/")
    if parts[-1] == "__init__" and len(parts) > 1:
        parts = parts[:-1]
    return ".".join(parts)
