"""Two processes and one run folder: who may work in it, and what a dead one leaves."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys

import pytest

from search_r3.cli.run_lock import held, is_held
from search_r3.cli.run_status import state_of, taken, write_status
from search_r3.errors import UsageError
from search_r3.folders import make_folder
from tests.command import ENVIRONMENT, LIMIT_S

HOLDER = """
import sys
from pathlib import Path
from search_r3.cli.run_status import taken, write_status
with taken(Path(sys.argv[1])):
    write_status(Path(sys.argv[1]), "running")
    print("taken", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has taken a folder, and the folder; the process ends with its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "taken\n"
    yield process, tmp_path
    process.kill()
    process.communicate(timeout=LIMIT_S)


def test_a_second_process_is_kept_out_and_told_by_whom(holder):
    process, folder = holder

    who = rf"process {process.pid} on {socket.gethostname()} works in it"
    with pytest.raises(UsageError, match=who), taken(folder):
        pass
    assert state_of(folder) == "running"


def test_a_holder_that_ends_gives_the_folder_back(holder):
    process, folder = holder
    process.communicate("\n", timeout=LIMIT_S)

    with taken(folder):
        assert is_held(folder)
    assert not is_held(folder)


def test_a_killed_holder_gives_the_folder_back_whoever_has_its_number_now(holder):
    process, folder = holder
    process.send_signal(signal.SIGKILL)
    process.wait()
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"pid": os.getppid()}))

    assert state_of(folder) == "interrupted"
    with taken(folder):
        assert is_held(folder)


def test_a_run_of_another_machine_is_left_alone_until_its_lock_file_is_removed(tmp_path):
    with taken(tmp_path):
        write_status(tmp_path, "running")
    status = json.loads((tmp_path / "status.json").read_text())
    (tmp_path / "status.json").write_text(json.dumps(status | {"host": "node-7"}))

    assert state_of(tmp_path) == "running"
    with pytest.raises(UsageError, match="a run on node-7") as refused, taken(tmp_path):
        pass
    remedy = str(refused.value).partition("any more: ")[2].partition(",")[0]
    subprocess.run(remedy, shell=True, check=True)
    assert state_of(tmp_path) == "interrupted"
    with taken(tmp_path):
        assert is_held(tmp_path)


def test_the_holder_may_take_the_folder_again_and_keeps_it_until_its_outermost_end(tmp_path):
    with held(tmp_path):
        with held(tmp_path / "."):
            pass
        assert is_held(tmp_path)
    assert not is_held(tmp_path)


def waiting(end):
    end.send("started")
    end.recv()


def test_a_worker_that_outlives_the_holder_does_not_keep_the_folder(tmp_path):
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    with held(tmp_path):
        worker = fork.Process(target=waiting, args=(theirs,))
        worker.start()
        assert ours.recv() == "started"
    try:
        assert not is_held(tmp_path)
        with held(tmp_path):
            assert is_held(tmp_path)
    finally:
        ours.send(None)
        worker.join()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    folder = make_folder(tmp_path / "run")
    folder.chmod(0o500)
    with pytest.raises(UsageError, match=r"lock: cannot be opened \(Permission denied\)"), held(folder):
        pass


def test_a_lock_that_is_a_folder_is_refused(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(UsageError, match=r"lock: cannot be opened \(Is a directory\)"), held(tmp_path):
        pass
