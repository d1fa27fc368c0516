"""`stage=rl strategy=ddp_cpu` stopped in the middle of a run: the same command goes on as if undisturbed."""

import json
import os
import signal
import time

import psutil
import pytest
from rl_runs import likely_folder
from test_rl_resume import N_STEPS, checkpoint, same, small_run, write_triples

from tests.command import ENVIRONMENT, LIMIT_S, ROOT, become, begun
from tests.forked_rank import fork_the_second_rank

SHARDS = [f"index/shard-{rank}-of-2/{name}" for rank in range(2) for name in ("rows.f32", "ages.bin")]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    place = tmp_path_factory.mktemp("given")
    return [*small_run(write_triples(place / "rows.jsonl"), likely_folder(place)), "strategy=ddp_cpu"]


def train(arguments, gate, held_at):
    """The process of rank 0: `python -m src.train`, held when the table has the lines of a step."""
    from search_r3.stages.rl.completions import Completions

    fork_the_second_rank()
    write = Completions.write

    def then_wait(self, by_rank, loggers):
        write(self, by_rank, loggers)
        if held_at is not None and f'"step": {held_at},' in self.record.file.read_text():
            gate.touch()
            while gate.exists():
                time.sleep(0.01)

    Completions.write = then_wait
    become("src.train", arguments, ROOT, ENVIRONMENT)


def started(arguments, place, held_at=None):
    """The command in a process group of its own, so that whatever it starts can be ended with it."""
    given = [*arguments, "if_exists=resume"]
    given += [f"output_dir={place / 'run'}", f"stage.datamodule.cache_dir={place / 'cache'}"]
    log = place / "output.txt"
    log.unlink(missing_ok=True)
    return begun([log, log], train, given, place / "held", held_at)


def ended(process, place):
    """Exit code and output; nothing that it started is left."""
    try:
        process.join(LIMIT_S)
        deadline = time.monotonic() + LIMIT_S
        while alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive(process.pid), "a rank outlived the run"
    finally:
        for left in alive(process.pid):
            left.kill()
    return process.exitcode, (place / "output.txt").read_text()


def alive(group):
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        except ProcessLookupError:
            pass
    return found


def wait_until_held(process, place):
    """At step 3 the last checkpoint is that of two steps, at step 5 that of four."""
    deadline = time.monotonic() + LIMIT_S
    while not (place / "held").exists():
        assert process.is_alive(), (place / "output.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ranks(process):
    """The process of rank 0, and that of rank 1, which is its child."""
    first = psutil.Process(process.pid)
    (second,) = first.children()
    return first, second


def kill_the_second(process):
    ranks(process)[1].kill()


def kill_the_first(process):
    ranks(process)[0].kill()


def ask_to_stop(process):
    ranks(process)[0].terminate()


ENDS = {
    kill_the_first: (3, -signal.SIGKILL),
    kill_the_second: (3, 1),
    ask_to_stop: (5, 130),
}
"""What happens to one run, one after the other: at which step, and the exit code."""


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory):
    place = tmp_path_factory.mktemp("undisturbed")
    code, output = ended(started(arguments, place), place)
    assert code == 0, output
    return place / "run"


def test_a_run_on_two_ranks_goes_on_as_if_undisturbed_whatever_ends_it(arguments, undisturbed, tmp_path):
    for number, (end, (step, expected)) in enumerate(ENDS.items()):
        process = started(arguments, tmp_path, held_at=step)
        wait_until_held(process, tmp_path)
        end(process)
        (tmp_path / "held").unlink()
        code, output = ended(process, tmp_path)
        assert code == expected, (end.__name__, output)
        assert ("resuming from" in output) == (number > 0), output
    code, output = ended(started(arguments, tmp_path), tmp_path)
    assert code == 0, output
    assert "resuming from" in output
    run = tmp_path / "run"
    for name in ("model/model.safetensors", "completions.jsonl", *SHARDS):
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name
    same(*(checkpoint(each) for each in (run, undisturbed)))
    steps = [json.loads(line)["step"] for line in (run / "completions.jsonl").open()]
    assert sorted(set(steps)) == list(range(N_STEPS))
