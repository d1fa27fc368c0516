"""Where rows of texts come from: files of JSON lines, or a Hugging Face data set. Nothing is checked here."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from search_r3.data.jsonl import DataError, numbered_lines, parse_object
from search_r3.folders import can_be_on_hub
from search_r3.records import clipped

if TYPE_CHECKING:
    import datasets

_SAVED = ("state.json", "dataset_dict.json")
"""A file that `save_to_disk` writes: of a data set, and of several splits."""


def raw_rows(
    files: str | Sequence[str] | None, dataset: str | None, config: str | None, split: str
) -> Iterator[tuple[str, int, dict]]:
    """(file or data set, number from 1, row) of each row, nothing of it checked.

    Args:
        files: JSONL files, plain or gzip; one path or several. Either these or `dataset`.
        dataset: name on the hub, or a local folder.
        config: configuration of that data set.
        split: of that data set.

    Raises:
        DataError: If a file or the data set is missing, cannot be read or holds no row.
        ValueError: If not exactly one of `files` and `dataset` is given.
    """
    if (files is None) == (dataset is None):
        raise ValueError("give exactly one of files=[<jsonl>, ...] and dataset=<name or folder>")
    if files is None:
        return _dataset_rows(str(dataset), config, split)
    return _file_rows([files] if isinstance(files, str | Path) else files)


def _file_rows(files: Sequence[str | Path]) -> Iterator[tuple[str, int, dict]]:
    if not files:
        raise ValueError("files: the list is empty")
    has_rows = False
    for path in map(Path, files):
        for line, text in numbered_lines(path):
            has_rows = True
            yield str(path), line, parse_object(text, path, line)
    if not has_rows:  # one of several may be empty, as a shard
        raise DataError(", ".join(map(str, files)), 0, "no row stands there")


def _dataset_rows(dataset: str, config: str | None, split: str) -> Iterator[tuple[str, int, dict]]:
    """Rows of a Hugging Face data set; its rows are counted from 1, as lines are."""
    folder = Path(dataset)
    if folder.is_file():
        raise DataError(
            dataset, 0, "is a file where dataset= is a folder or a name on the hub; files= reads JSON lines"
        )
    if not folder.exists() and not can_be_on_hub(dataset):
        raise DataError(dataset, 0, "no such folder")
    for number, row in enumerate(_loaded(folder, config, split), start=1):
        yield dataset, number, dict(row)


def _loaded(folder: Path, config: str | None, split: str) -> "datasets.Dataset":
    """A split of a data set.

    Raises:
        DataError: If it cannot be had, with the reason of the library that reads it.
    """
    import datasets  # it is slow to import and needed for this source only

    is_saved = any((folder / name).is_file() for name in _SAVED)
    try:
        if not is_saved:
            return datasets.load_dataset(str(folder), config, split=split)
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        said = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else error
        raise DataError(folder, 0, f"cannot be read as a data set ({clipped(said or error)})") from error
    if not isinstance(loaded, datasets.DatasetDict):
        if split not in ("train", str(loaded.split)):
            rule = f"is one data set, which has no split {split!r}; leave dataset_split out"
            raise DataError(folder, 0, rule)
        return loaded
    if split not in loaded:
        raise DataError(folder, 0, f"no split {split!r}; splits: {', '.join(loaded)}")
    return loaded[split]
