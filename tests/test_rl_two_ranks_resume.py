"""`stage=rl strategy=ddp_cpu` stopped in the middle of a run: the same command goes on as if undisturbed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from test_rl import likely_folder
from test_rl_resume import N_STEPS, same, small_run, write_triples

from tests.command import LIMIT_S

SHARDS = [f"index/shard-{rank}-of-2/{name}" for rank in range(2) for name in ("rows.f32", "ages.bin")]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    place = tmp_path_factory.mktemp("given")
    return [*small_run(write_triples(place / "rows.jsonl"), likely_folder(place)), "strategy=ddp_cpu"]


def started(arguments, place):
    """The command in a process group of its own, so that whatever it starts can be ended with it."""
    command = [sys.executable, "-m", "src.train", *arguments, "if_exists=resume"]
    command += [f"output_dir={place / 'run'}", f"stage.datamodule.cache_dir={place / 'cache'}"]
    with (place / "output.txt").open("w") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[1],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def ended(process, place):
    """Exit code and output; nothing that it started is left."""
    try:
        code = process.wait(LIMIT_S)
        deadline = time.monotonic() + LIMIT_S
        while alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive(process.pid), "a rank outlived the run"
    finally:
        for left in alive(process.pid):
            left.kill()
    return code, (place / "output.txt").read_text()


def alive(group):
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        except ProcessLookupError:
            pass
    return found


def wait_for_step(process, place, step):
    """Until the table has lines of a step: the checkpoint of the step before the last even one is written."""
    table, deadline = place / "run" / "completions.jsonl", time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        if table.exists() and f'"step": {step},' in table.read_text():
            return
        time.sleep(0.02)
    raise AssertionError((place / "output.txt").read_text())


def ranks(process):
    """The process of rank 0, and that of rank 1, which rank 0 has started."""
    first = psutil.Process(process.pid)
    return first, next(child for child in first.children() if "src.train" in " ".join(child.cmdline()))


def kill_the_second(process):
    ranks(process)[1].kill()


def kill_the_first(process):
    ranks(process)[0].kill()


def ask_to_stop(process):
    ranks(process)[0].terminate()


ENDS = {
    kill_the_first: -signal.SIGKILL,
    kill_the_second: 1,
    ask_to_stop: 130,
}


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory):
    place = tmp_path_factory.mktemp("undisturbed")
    code, output = ended(started(arguments, place), place)
    assert code == 0, output
    return place / "run"


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_a_run_on_two_ranks_goes_on_as_if_undisturbed(arguments, undisturbed, tmp_path, end):
    process = started(arguments, tmp_path)
    wait_for_step(process, tmp_path, 3)
    end(process)
    code, output = ended(process, tmp_path)
    assert code == ENDS[end], output
    code, output = ended(started(arguments, tmp_path), tmp_path)
    assert code == 0, output
    assert "resuming from" in output
    run = tmp_path / "run"
    for name in ("model/model.safetensors", "completions.jsonl", *SHARDS):
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name
    same(*(torch.load(each / "checkpoints" / "last.ckpt", weights_only=True) for each in (run, undisturbed)))
    steps = [json.loads(line)["step"] for line in (run / "completions.jsonl").open()]
    assert sorted(set(steps)) == list(range(N_STEPS))
