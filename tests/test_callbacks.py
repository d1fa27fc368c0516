"""What runs beside a fit: its time by part, and the record of its end."""

import signal
import subprocess
import sys
import time

import pytest
from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from small_fits import N_STEPS, Pairs, Watch, fit

from search_r3.stages.interruption import HeedSignals
from search_r3.stages.throughput import Throughput


def test_throughput_books_time_under_the_part_that_took_it(tmp_path, caplog):
    class Slow(Pairs):
        def validation_step(self, batch, batch_idx):
            time.sleep(0.3)

    throughput, before, after = Throughput(log_every_n_steps=2), Watch(), Watch()
    with caplog.at_level("INFO", logger="search_r3.stages.throughput"):
        trainer = fit(tmp_path, Slow(), callbacks=[before, throughput, after])
    facts = throughput.summary()
    shares = {part: facts[f"{part}_share"] for part in Throughput.PARTS}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(share > 0 for share in shares.values())
    # two validations of 0.3 s, and longer on a busy machine: the hooks around this one's say how long
    at_least = sum(end - start for start, end in zip(after.began, before.ended, strict=True))
    at_most = sum(end - start for start, end in zip(before.began, after.ended, strict=True))
    assert 0.6 <= at_least <= shares["validation"] * facts["seconds"] + 1e-6
    assert shares["validation"] * facts["seconds"] <= at_most
    assert facts["n_steps"] == N_STEPS - 1
    seconds = facts["seconds"] * (1 - shares["validation"] - shares["save"])
    assert facts["pairs_per_s"] == pytest.approx(8 * 7 / seconds)  # 8 pairs in each of 7 steps
    assert facts["tokens_per_s"] == pytest.approx(48 * 7 / seconds)
    assert trainer.callback_metrics["throughput/pairs_per_s"] > 0
    assert 0 < trainer.callback_metrics["time/backward"] < 1
    heading, *parts, rates = throughput.table().splitlines()
    assert heading.split() == ["part", "seconds", "share"]
    assert [line.split()[0] for line in parts] == list(Throughput.PARTS)
    for line in parts:
        part, taken, share = line.split()
        assert float(taken) == pytest.approx(shares[part] * facts["seconds"], abs=0.051)
        assert float(share.rstrip("%")) == pytest.approx(100 * shares[part], abs=0.051)
    assert rates.startswith(f"{N_STEPS - 1} steps: ")
    assert throughput.table() in caplog.text


@pytest.mark.parametrize(
    ("error", "is_ended"), [(KeyboardInterrupt(), False), (RuntimeError("a rank died"), False), (None, True)]
)
def test_the_first_rank_records_its_own_end_whatever_has_become_of_the_others(error, is_ended):
    """Two real processes stand for the first rank, which the observer would end, and the second."""
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    first, second = subprocess.Popen(sleep), subprocess.Popen(sleep)
    observer = _ChildProcessObserver(first.pid, [second], sleep_period=0.2)
    try:
        observer.start()
        if error is not None:
            HeedSignals().on_exception(None, None, error)
        second.kill()
        observer.join(60)
        assert not observer.is_alive()
        if is_ended:
            first.wait(60)
        assert first.poll() == (-signal.SIGKILL if is_ended else None)
    finally:
        first.kill()
        second.kill()
        first.wait()
        second.wait()
