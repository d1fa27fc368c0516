"""The live store after kills at any moment and on a full disk: its rows are those of a checkpoint."""

import json
import os
import random
import resource
import signal
import time

import numpy as np
from live_stores import KEY, D, N, created, held, run, same, vectors

from search_r3.index.rows.live import NEVER, LiveStore
from tests.command import LIMIT_S, begun

# A run that is killed. Its trainer's checkpoint is a JSON file, replaced whole, as Lightning's is.

WIDE = 64


def step_of(step, n_rows):
    """What a step writes; depends on the step alone, so that any state can be computed without the store."""
    rng = np.random.default_rng(step)
    rows = rng.choice(n_rows, n_rows // 3, replace=False)
    return rows, rng.standard_normal((len(rows), WIDE)).astype(np.float32)


def state_after(step, n_rows):
    rows, ages = np.zeros((n_rows, WIDE), np.float32), np.full(n_rows, NEVER)
    for past in range(1, step + 1):
        chosen, new = step_of(past, n_rows)
        rows[chosen], ages[chosen] = new, past
    return rows, ages


def write_whole(path, content):
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content))
    os.replace(part, path)


def train(folder, n_rows, last_step, every=3):
    """Opens or makes the store as a run does, then steps, and writes a checkpoint every few steps."""
    file = folder / "last.json"
    if file.is_file():
        saved = json.loads(file.read_text())
        store, step = LiveStore.open(folder / "live", KEY, saved["store"]), saved["step"]
    else:
        store, step = LiveStore.create(folder / "live", KEY, (n_rows, WIDE), overwrite=True), 0
    while step < last_step:
        step += 1
        store.update(*step_of(step, n_rows), step)
        if step % every == 0:
            saved = {"step": step, "store": store.state_dict()}
            if file.is_file():
                write_whole(folder / "older.json", json.loads(file.read_text()))
            write_whole(file, saved)
            store.commit(saved["store"])
    store.close()


def test_after_kills_at_random_moments_the_rows_are_those_of_the_checkpoint(tmp_path):
    rng = random.Random(7)
    n_rows, n_kills, steps_seen = 600, 10, set()
    file, log, content = tmp_path / "last.json", tmp_path / "output.txt", ""
    for _ in range(n_kills):
        process = begun([log, log], train, tmp_path, n_rows, 10**6)
        while not file.is_file() or file.read_text() == content:  # a busy machine may take long to get there
            assert process.is_alive(), log.read_text()
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, log.read_text()
        content = file.read_text()
        saved = json.loads(content)
        with LiveStore.open(tmp_path / "live", KEY, saved["store"]) as store:
            assert same(store, state_after(saved["step"], n_rows))
        steps_seen.add(saved["step"])
    assert len(steps_seen) == n_kills


def test_a_kill_before_any_system_call_leaves_both_checkpoints(tmp_path):
    # One process forks a child for every call that changes a file; the child kills itself before that call.
    process = run(
        """
        import os, shutil, signal
        from pathlib import Path
        from test_live_store_crashes import crash_everywhere
        crash_everywhere(Path(sys.argv[1]))
        """,
        tmp_path,
    )
    output, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    n_crashes, n_older = map(int, output.split())
    assert n_crashes > 60
    assert n_older > 20


CALLS = ("write", "pwrite", "fsync", "unlink", "truncate", "ftruncate", "replace")
CRASH_ROWS = 9


def killed_at(action, number):
    """Runs `action` in a child that is killed before its `number`-th call; whether it came to that."""
    child = os.fork()
    if child == 0:
        count = 0

        def counting(real):
            def call(*arguments, **settings):
                nonlocal count
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                return real(*arguments, **settings)

            return call

        for name in CALLS:
            setattr(os, name, counting(getattr(os, name)))
        try:
            action()
        except BaseException:
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def crash_everywhere(root):
    """Kills a run at each call; then a resume of what is left, at each of its first calls; then resumes."""
    import shutil

    n_crashes = n_older = number = 0
    while True:
        folder = root / str(number)
        folder.mkdir()
        if not killed_at(lambda folder=folder: train(folder, CRASH_ROWS, 6, every=2), number):
            break
        n_crashes += 1
        if (folder / "last.json").is_file():
            again = root / f"{number}-again"
            shutil.copytree(folder, again)
            saved = json.loads((again / "last.json").read_text())
            # the resume itself is killed, somewhere else each time
            killed_at(lambda a=again, s=saved: LiveStore.open(a / "live", KEY, s["store"]), number % 17)
            with LiveStore.open(again / "live", KEY, saved["store"]) as store:
                assert same(store, state_after(saved["step"], CRASH_ROWS)), number
        for name in ("older.json", "last.json"):
            if (folder / name).is_file():
                copy = root / f"{number}-{name}"
                shutil.copytree(folder, copy)
                saved = json.loads((copy / name).read_text())
                with LiveStore.open(copy / "live", KEY, saved["store"]) as store:
                    assert same(store, state_after(saved["step"], CRASH_ROWS)), (number, name)
                n_older += name == "older.json"
                shutil.rmtree(copy)
        if number % 3 == 0:
            train(folder, CRASH_ROWS, 6, every=2)
            saved = json.loads((folder / "last.json").read_text())
            with LiveStore.open(folder / "live", KEY, saved["store"]) as store:
                assert same(store, state_after(6, CRASH_ROWS)), number
        number += 1
    print(n_crashes, n_older)


LIMITED = """
    import json, numpy, resource
    from search_r3.index.rows.live import LiveStore
    from search_r3.index.rows.cache import StoreError
    from live_stores import vectors
    folder, key, what, limit = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    store = None if what == "create" else LiveStore.open(folder, key, json.loads(what))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        if store is None:
            LiveStore.create(folder, key, (1000, 8))
        for step in range(1, 9):
            store.update(numpy.arange(5 * step), vectors(5 * step, step), step)
    except StoreError as error:
        print(error)
    try:
        store.state_dict()
    except StoreError as error:
        print(error)
    except AttributeError:
        pass
    """


def test_a_disk_without_room_for_the_journal_leaves_a_store_that_goes_back(tmp_path):
    with created(tmp_path) as store:
        store.update([1], vectors(1, 1), 0)
        state, expected = store.state_dict(), held(store)
    # 40 rows of 48 bytes would make a journal of 1920 bytes and more; rows.f32 has 1280
    process = run(LIMITED, tmp_path / "live", json.dumps(KEY), json.dumps(state), 1400)
    output, errors = process.communicate()
    first, second = output.splitlines()
    assert errors == ""
    assert "rows could not be written ([Errno 27] File too large)" in first
    assert "make room, then resume the run" in first
    assert "an earlier write failed" in second
    with LiveStore.open(tmp_path / "live", KEY, state) as store:
        assert same(store, expected)
        store.update([2], vectors(1, 2), 1)


def test_a_failure_while_rows_are_written_leaves_a_store_that_goes_back(tmp_path):
    with created(tmp_path) as store:
        state, expected = store.state_dict(), held(store)
    # room for the journal of the first rows, not for writing at the end of rows.f32 again
    limit = 40 + 12 + 5 * 48
    assert limit < N * D * 4
    process = run(
        LIMITED.replace("numpy.arange(5 * step), vectors(5 * step, step)", "[20, 21], vectors(2, 1)"),
        tmp_path / "live",
        json.dumps(KEY),
        json.dumps(state),
        limit,
    )
    output, _ = process.communicate()
    assert "rows could not be written ([Errno 27] File too large)" in output
    with LiveStore.open(tmp_path / "live", KEY, state) as store:
        assert same(store, expected)


def test_a_store_that_does_not_fit_the_disk_says_how_much_it_takes(tmp_path):
    process = run(LIMITED, tmp_path / "live", json.dumps(KEY), "create", 20_000)
    output, _ = process.communicate()
    assert "no live store of 1000 rows could be made" in output
    assert "File too large" in output
    assert [file.name for file in (tmp_path / "live").iterdir()] == ["lock"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20_000
