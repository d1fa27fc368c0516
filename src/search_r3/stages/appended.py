"""Records that grow line by line, and go back to what they were at a checkpoint.

A line is only ever added, so a kill leaves all lines before it. A checkpoint keeps how much of a record there
was and its SHA-256; a resumed run cuts off what came later, and ends with the record of a run that was never
interrupted. A record that does not begin with what the checkpoint knows was damaged, and is refused.
"""

import csv
import hashlib
import io
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from search_r3.files import keep_earlier, shell_command, sync, write_text
from search_r3.records import RecordError

log = logging.getLogger(__name__)


def _damaged(file: Path, found: str) -> RecordError:
    aside = file.with_name(f"{file.stem}_damaged{file.suffix}")
    return RecordError(
        file,
        f"{found}, so it is not the record that the checkpoint was saved with",
        f"put that one back, or go on with a new record: {shell_command('mv', file, aside)}",
    )


class Records(Callback):
    """Ties the records of a run to its checkpoints: those of the loggers and those of the stage's module.

    A module names its own in `records`.
    """

    def __init__(self) -> None:
        self._found: Mapping[str, Mapping] | None = None  # of the checkpoint that was resumed from

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        records = _records(trainer, pl_module)
        checkpoint["records"] = {record.file.name: record.checkpoint() for record in records}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._found = checkpoint.get("records", {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        for record in _records(trainer, pl_module):
            state = (self._found or {}).get(record.file.name)
            if self._found is not None and state is None:  # a checkpoint that knows nothing of the record
                keep_earlier(record.file)
            record.go_back(state)


def _records(trainer: Trainer, pl_module: LightningModule) -> list["AppendedText | MetricsTable"]:
    tables = [logger for logger in trainer.loggers if isinstance(logger, MetricsTable)]
    return [*tables, *getattr(pl_module, "records", [])]


class AppendedText:
    """A text file of whole lines."""

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        self._size, self._sha256 = 0, hashlib.sha256()

    def __deepcopy__(self, memo: dict) -> "AppendedText":
        """Itself: a copy of a module, as Lightning's WeightAveraging makes one, has no file of its own."""
        return self

    def append(self, text: str) -> None:
        """Writes whole lines behind those that are there."""
        content = text.encode()
        _append(self.file, content)
        self._size += len(content)
        self._sha256.update(content)

    def checkpoint(self) -> dict[str, int | str]:
        """Puts all on the disk and says how much it is; goes into the trainer's checkpoint."""
        _sync(self.file)
        return {"size": self._size, "sha256": self._sha256.hexdigest()}

    def go_back(self, state: Mapping[str, int | str] | None) -> None:
        """Cuts off what was added after a checkpoint, or all of it where that is None.

        Raises:
            RecordError: If the file does not begin with what the checkpoint knows.
        """
        size = 0 if state is None else int(state["size"])
        self._size, self._sha256 = 0, hashlib.sha256()
        if not self.file.exists():
            if size:
                log.warning("%s: is missing; it begins anew with the next line", self.file)
            return
        with self.file.open("rb") as stream:
            while self._size < size and (part := stream.read(min(size - self._size, 1 << 20))):
                self._sha256.update(part)
                self._size += len(part)
        if state is not None and (self._size, self._sha256.hexdigest()) != (size, state["sha256"]):
            raise _damaged(self.file, f"its first {size} bytes are others")
        os.truncate(self.file, size)


class MetricsTable(Logger):
    """Every logged step of a run as a row of `<folder>/metrics.csv`, the columns in the order of first use.

    Where a metric is logged for the first time, the file is written anew with one more column; all other
    rows are added.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.file = Path(folder) / "metrics.csv"
        self._columns: list[str] = []
        self._n_rows, self._sha256 = 0, hashlib.sha256()

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return self.file.parent.name

    @property
    def root_dir(self) -> str:
        return str(self.file.parent)

    def log_hyperparams(self, *arguments: object, **keywords: object) -> None:
        """They are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds a row."""
        row = {name: str(value) for name, value in metrics.items()} | {"step": str(step)}
        new = sorted(row.keys() - set(self._columns))
        if new:
            rows = _rows(self.file)[: self._n_rows] if self._n_rows else []
            self._columns += new
            self._write([*rows, row])
        else:
            _append(self.file, _csv(self._columns, [row]).encode())
        self._count(row)

    def checkpoint(self) -> dict[str, int | str]:
        """Puts all on the disk and says how much it is; goes into the trainer's checkpoint."""
        _sync(self.file)
        return {"rows": self._n_rows, "sha256": self._sha256.hexdigest()}

    def go_back(self, state: Mapping[str, int | str] | None) -> None:
        """Takes out the rows that were added after a checkpoint, or all where that is None.

        Raises:
            RecordError: If the first rows are not what the checkpoint knows.
        """
        n_rows = 0 if state is None else int(state["rows"])
        self._columns, self._n_rows, self._sha256 = [], 0, hashlib.sha256()
        if not self.file.exists():
            if n_rows:
                log.warning("%s: is missing; it begins anew with the next row", self.file)
            return
        try:
            rows = _rows(self.file)[:n_rows] if n_rows else []
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise _damaged(self.file, f"it cannot be read ({error})") from error
        for row in rows:
            self._count(row)
        if state is not None and (self._n_rows, self._sha256.hexdigest()) != (n_rows, state["sha256"]):
            raise _damaged(self.file, f"its first {n_rows} rows are others")
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        in_file = _header(self.file)
        self._columns.sort(key=in_file.index)
        self._write(rows)

    def _write(self, rows: list[dict[str, str]]) -> None:
        header = [dict(zip(self._columns, self._columns, strict=True))] if self._columns else []
        write_text(self.file, _csv(self._columns, [*header, *rows]))

    def _count(self, row: Mapping[str, str]) -> None:
        self._n_rows += 1
        self._sha256.update(json.dumps(row, sort_keys=True).encode() + b"\n")


def _append(file: Path, content: bytes) -> None:
    """Adds whole lines.

    Raises:
        OSError: With the name of the file.
    """
    try:
        with file.open("ab") as stream:
            stream.write(content)
    except OSError as error:
        error.filename = str(file)  # errors of `write` have none
        raise


def _csv(columns: list[str], rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _header(file: Path) -> list[str]:
    with file.open(encoding="utf-8", newline="") as stream:
        return next(csv.reader(stream), [])


def _rows(file: Path) -> list[dict[str, str]]:
    """The values of every row by column, without those that it has none of."""
    with file.open(encoding="utf-8", newline="") as stream:
        return [
            {name: value for name, value in row.items() if name is not None and value}
            for row in csv.DictReader(stream)
        ]


def _sync(file: Path) -> None:
    if file.exists():
        sync(file)
