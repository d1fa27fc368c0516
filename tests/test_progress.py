"""What is seen of long work: lines in a file, a bar on a terminal, nothing where it is switched off."""

import fcntl
import io
import os
import pty
import re
import struct
import termios
import time
from contextlib import suppress

import pytest
import pytorch_lightning as pl
import torch

from search_r3.progress import Progress, progress_over
from search_r3.stages.progress import StepProgress
from tests.tiny_stage import TinyDataModule, TinyModule, load_tiny


def count_in_log(n, seconds_each=0.0, **settings):
    log = io.StringIO()
    with Progress(n, "embed", "texts", stream=log, **settings) as progress:
        for _ in range(n):
            time.sleep(seconds_each)
            progress.update()
    return log.getvalue()


def test_a_log_gets_plain_lines_and_no_carriage_return():
    started = time.monotonic()
    text = count_in_log(40, seconds_each=0.01, line_every_s=0.1)
    elapsed = time.monotonic() - started  # 0.4 s, or as long as a busy machine takes

    assert "\r" not in text
    lines = text.splitlines()
    assert 2 <= len(lines) <= elapsed / 0.1 + 1  # one per 0.1 s, and the last
    assert lines[-1].startswith("embed: 40/40 texts, ")
    assert all(re.search(r" texts/s, 00:\d\d gone, 00:\d\d left$", line) for line in lines)


def test_work_shorter_than_the_interval_leaves_one_line():
    assert len(count_in_log(1000).splitlines()) == 1


def test_nothing_is_written_where_it_is_switched_off_or_broken_off():
    assert count_in_log(5, is_shown=False) == ""
    log = io.StringIO()
    with pytest.raises(KeyError), Progress(5, "embed", "texts", stream=log):
        raise KeyError
    assert log.getvalue() == ""


@pytest.mark.parametrize(
    ("settings", "done", "elapsed_s", "line"),
    [
        ({"total": 40}, 10, 4.0, "x: 10/40 rows, 2.5 rows/s, 00:04 gone, 00:12 left"),  # 30 rows at 2.5/s
        ({"total": 40, "initial": 20}, 10, 4.0, "x: 30/40 rows, 2.5 rows/s, 00:04 gone, 00:04 left"),
        ({"total": None}, 10, 4.0, "x: 10 rows, 2.5 rows/s, 00:04 gone"),
        ({"total": 40}, 0, 4.0, "x: 0/40 rows, 0 rows/s, 00:04 gone, ? left"),
        ({"total": 7200}, 3600, 3600.0, "x: 3,600/7,200 rows, 1 rows/s, 1:00:00 gone, 1:00:00 left"),
        (
            {"total": 4_000_000, "is_scaled": True},
            1_000_000,
            1.0,
            "x: 1.00M/4.00M rows, 1.00M rows/s, 00:01 gone, 00:03 left",
        ),
    ],
)
def test_a_line_has_count_rate_and_remaining_time(settings, done, elapsed_s, line):
    progress = Progress(what="x", unit="rows", stream=io.StringIO(), **settings)
    progress.update(done)

    assert progress.line(elapsed_s) == line


def read_until_closed(terminal):
    """What was written, in pieces as they arrive; Linux ends it with an error, others with nothing."""
    with suppress(OSError):
        while piece := os.read(terminal, 10_000):
            yield piece


def test_a_terminal_gets_a_bar_that_is_redrawn():
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # rows, columns
    with os.fdopen(slave, "w") as terminal, Progress(3, "embed", "texts", stream=terminal) as progress:
        progress.update(3, values=lambda: "loss 0.5")
    shown = b"".join(read_until_closed(master)).decode()
    os.close(master)

    assert "\r" in shown
    assert "3/3" in shown


def test_values_are_asked_for_only_when_something_is_shown():
    asked = []
    log = io.StringIO()
    with Progress(100, "x", "rows", stream=log) as progress:
        for _ in range(100):
            progress.update(values=lambda: asked.append(1) or "loss 0.5")

    assert len(asked) == 1
    assert log.getvalue().endswith("left, loss 0.5\n")


def test_items_pass_through_in_order_and_are_counted(capsys):
    assert list(progress_over(iter("abc"), 3, "read", "files")) == ["a", "b", "c"]
    assert "read: 3/3 files" in capsys.readouterr().err


def test_training_writes_sparse_lines_with_its_loss(capsys, embedder):
    trainer = pl.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, callbacks=[StepProgress()],
    )  # fmt: skip
    trainer.fit(TinyModule(embedder), TinyDataModule(load_tiny(), embedder))

    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training")]
    assert line.startswith("training: 3/3 steps, ")
    assert "train/loss " in line
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


@pytest.mark.parametrize(("asked", "shown"), [(("train/loss", "nothing"), ["loss"]), (("nothing",), [])])
def test_values_that_a_step_does_not_log_are_left_out(capsys, embedder, asked, shown):
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, callbacks=[StepProgress(asked)],
    )  # fmt: skip
    trainer.fit(TinyModule(embedder), TinyDataModule(load_tiny(), embedder))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training")]
    assert lines
    assert [name for name in ("loss", "nothing") if name in lines[-1]] == shown
