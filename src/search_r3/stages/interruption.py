"""Ctrl-C and SIGTERM during a fit: the step that runs is finished and saved, and then training ends.

The first signal is noted, and the checkpoint saves the step at its end, as it saves any other, so that a run
that goes on is the run that was never interrupted. A second one ends training at once. Where no step has been
completed since the last checkpoint there is nothing to wait for, and the first one does.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from pytorch_lightning import Callback, LightningModule, Trainer

from search_r3.distributed import all_true

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class HeedSignals(Callback):
    """Takes SIGINT and SIGTERM over for the time of a fit, and has every rank stop after the same step.

    Lightning answers SIGTERM by a collective from within the signal handler. Where the ranks are in another
    collective at that moment, they wait for each other for ever. Here the ranks ask each other between two
    steps whether one of them was told to stop.
    """

    def __init__(self) -> None:
        self._outer: dict[int, object] = {number: signal.getsignal(number) for number in SIGNALS}
        self._has_unsaved: Callable[[], bool] = lambda: False
        self._process = os.getpid()
        self.is_told = False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_back()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        savers = [each for each in trainer.checkpoint_callbacks if hasattr(each, "has_unsaved")]
        self._has_unsaved = lambda: any(each.has_unsaved(trainer) for each in savers)
        for number in SIGNALS:
            signal.signal(number, self._note)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, error: BaseException) -> None:
        """Lightning now ends the ranks that it has started; its observer must not take that for a crash.

        The observer looks every five seconds, and would kill this process before its end is recorded.
        """
        self._give_back()
        for thread in threading.enumerate():
            if isinstance(thread, _ChildProcessObserver):
                thread._child_processes = []

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker, which whoever started it will end
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self.is_told or not self._has_unsaved():
            raise KeyboardInterrupt
        self.is_told = True
        with contextlib.suppress(OSError, ValueError):
            print("\ninterrupted: this step is finished and saved first; once more ends at once",
                  file=sys.stderr, flush=True)  # fmt: skip

    def _give_back(self) -> None:
        for number, handler in self._outer.items():
            signal.signal(number, handler)


def stops_after_this_step(trainer: Trainer) -> bool:
    """Whether a rank was told to stop; a collective of all ranks, which all get the same answer."""
    heeding = [each for each in trainer.callbacks if isinstance(each, HeedSignals)]
    if not heeding:
        return False
    is_told = any(each.is_told for each in heeding)
    return not all_true(not is_told, trainer.strategy.root_device)
