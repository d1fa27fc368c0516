"""The rows of a run: updated in place, and after a kill at any moment exactly those of a checkpoint."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from search_r3.index.rows.cache import StoreError
from search_r3.index.rows.live import NEVER, LiveStore
from tests.command import LIMIT_S, begun

ROOT = Path(__file__).resolve().parents[1]
KEY = {"weights": "w", "corpus": "c"}
N, D = 40, 8


def vectors(n, seed):
    return np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)


def created(tmp_path, source=None, **settings):
    return LiveStore.create(tmp_path / "live", KEY, vectors(N, 0) if source is None else source, **settings)


def held(store):
    return np.array(store.rows), np.array(store.encoded_at)


def same(store, expected):
    return (store.rows == expected[0]).all() and (store.encoded_at == expected[1]).all()


def damaged(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_a_store_starts_as_a_copy_of_the_cache_and_its_rows_are_read_only(tmp_path):
    cache = vectors(N, 0)
    with created(tmp_path, cache) as store:
        assert (store.rows == cache).all()
        assert (store.encoded_at == 0).all()
        store.update([3], vectors(1, 1), step=4)
        assert (cache == vectors(N, 0)).all()
        for array in (store.rows, store.encoded_at):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0


def test_refreshing_every_row_of_an_empty_store_equals_copying(tmp_path):
    with created(tmp_path, (N, D)) as store:
        assert (store.rows == 0).all()
        assert (store.encoded_at == NEVER).all()
        for rows in np.array_split(np.random.default_rng(5).permutation(N), 7):
            store.update(rows, vectors(N, 0)[rows], step=0)
        assert same(store, (vectors(N, 0), np.zeros(N)))


def test_any_order_of_updates_is_what_an_array_would_hold(tmp_path):
    rng = np.random.default_rng(1)
    rows, ages = vectors(N, 0), np.zeros(N, dtype=np.int64)
    with created(tmp_path) as store:
        seen = store.rows  # one view, taken before the updates
        for step in range(1, 30):
            chosen = rng.choice(N, rng.integers(0, N), replace=False)
            rows[chosen], ages[chosen] = vectors(len(chosen), step), step
            store.update(chosen, rows[chosen], step)
        assert (seen == rows).all()
        assert same(store, (rows, ages))


def test_vectors_that_are_moved_keep_their_age(tmp_path):
    with created(tmp_path) as store:
        store.update([1, 2], vectors(2, 1), step=5)
        store.update([2, 7], vectors(2, 2), step=store.encoded_at[[2, 7]])
        assert store.encoded_at[[1, 2, 7]].tolist() == [5, 5, 0]
        assert (store.rows[[2, 7]] == vectors(2, 2)).all()


@pytest.mark.parametrize(
    ("rows", "vector", "step", "message"),
    [
        ([1, 1], vectors(2, 0), 1, "named twice"),
        ([N], vectors(1, 0), 1, f"within 0 and {N - 1}"),
        ([-1], vectors(1, 0), 1, f"within 0 and {N - 1}"),
        ([0.5], vectors(1, 0), 1, "integers"),
        ([1], vectors(2, 0), 1, r"\[1, 8\]"),
        ([1], np.full((1, D), np.nan), 1, "row 1 is not finite"),
        ([1], vectors(1, 0), -1, "cannot go back to step -1"),
    ],
)
def test_a_bad_update_is_refused_before_anything_is_written(tmp_path, rows, vector, step, message):
    with created(tmp_path) as store:
        with pytest.raises(ValueError, match=message):
            store.update(rows, vector, step)
        assert same(store, (vectors(N, 0), np.zeros(N)))
        store.update([1], vectors(1, 3), 1)


def test_a_store_goes_back_once_more_though_a_kill_had_cut_its_journal(tmp_path):
    with created(tmp_path) as store:
        store.update(np.arange(10), vectors(10, 1), 1)
        state, expected = store.state_dict(), held(store)
        store.commit(state)
        store.update([3, 4], vectors(2, 2), 2)
    journal = sorted((tmp_path / "live").glob("journal-*"))[-1]
    with journal.open("ab") as file:
        file.write(b"the begin of an entry")
    with LiveStore.open(tmp_path / "live", KEY, state) as store:
        assert same(store, expected)
        store.update([3, 20], vectors(2, 3), 2)
    with LiveStore.open(tmp_path / "live", KEY, state) as store:
        assert same(store, expected)


def test_a_store_goes_back_to_the_last_checkpoint_and_to_the_one_before(tmp_path):
    for number in (1, 2):
        folder = tmp_path / str(number)
        states, expected = {}, {}
        with LiveStore.create(folder, KEY, vectors(N, 0)) as store:
            for step in range(1, 7):
                store.update(np.arange(step, step + 9), vectors(9, step), step)
                store.update([0, step], vectors(2, 100 + step), step)  # twice within one journal
                if step % 2 == 0:
                    states[step // 2], expected[step // 2] = store.state_dict(), held(store)
                    if step < 6:
                        store.commit(states[step // 2])
            store.update(np.arange(N), vectors(N, 99), 7)
        with LiveStore.open(folder, KEY, states[number]) as store:
            assert same(store, expected[number])


def test_the_checkpoint_before_the_last_committed_one_stays_open_and_older_ones_are_dropped(tmp_path):
    states = []
    with created(tmp_path) as store:
        for step in range(1, 5):
            store.update([step], vectors(1, step), step)
            states.append(store.state_dict())
            store.commit(states[-1])
        assert len(list((tmp_path / "live").glob("journal-*"))) == 2
    with pytest.raises(StoreError, match=r"cannot go back to checkpoint 2, it keeps \[3, 4\]"):
        LiveStore.open(tmp_path / "live", KEY, states[1])
    LiveStore.open(tmp_path / "live", KEY, states[3]).close()
    LiveStore.open(tmp_path / "live", KEY, states[2]).close()


def test_a_resumed_run_goes_on_to_the_state_of_one_that_was_not_interrupted(tmp_path):
    def steps(store, first, last):
        for step in range(first, last):
            store.update([step, step + 20], vectors(2, step), step)
            store.commit(store.state_dict())

    with LiveStore.create(tmp_path / "whole", KEY, vectors(N, 0)) as whole:
        steps(whole, 1, 9)
        with created(tmp_path) as cut:
            steps(cut, 1, 5)
            state = cut.state_dict()
            cut.update([5, 30], vectors(2, 1000), 5)
        with LiveStore.open(tmp_path / "live", KEY, state) as resumed:
            steps(resumed, 5, 9)
            assert same(resumed, held(whole))
            assert resumed.state_dict() == whole.state_dict()


def test_a_checkpoint_without_a_change_since_the_last_is_the_same_one(tmp_path):
    with created(tmp_path) as store:
        store.update([1], vectors(1, 1), 1)
        state = store.state_dict()
        assert store.state_dict() == state
        store.commit(state)
        store.commit(state)
        json.dumps(state)  # goes into a checkpoint that is loaded with weights_only
        with pytest.raises(ValueError, match="checkpoint 2 cannot be committed"):
            store.commit({**state, "number": 2})


def test_ages_and_checksums_are_written_once_per_checkpoint_and_not_at_every_update(tmp_path):
    with created(tmp_path) as store:
        file = tmp_path / "live" / "ages.bin"
        before = file.read_bytes()
        for step in (1, 2, 3):
            store.update(np.arange(N), vectors(N, step), step)
            assert (store.encoded_at == step).all()
        assert file.read_bytes() == before
        state = store.state_dict()
        found = np.frombuffer(file.read_bytes(), [("step", "<i8"), ("checksum", "<u4"), ("unused", "<u4")])
        assert (found["step"] == 3).all()
        expected = [zlib.crc32(row.tobytes(), 3) for row in vectors(N, 3)]
        assert found["checksum"].tolist() == expected
        store.update([4], vectors(1, 4), 4)
    with LiveStore.open(tmp_path / "live", KEY, state) as store:
        assert (store.rows == vectors(N, 3)).all()


def test_a_checkpoint_of_an_undone_part_of_the_run_is_refused_and_nothing_is_lost(tmp_path):
    with created(tmp_path) as store:
        store.update([1], vectors(1, 1), 1)
        first = store.state_dict()
        store.update([2], vectors(1, 2), 2)
        undone = store.state_dict()
    with LiveStore.open(tmp_path / "live", KEY, first) as store:
        store.update([2], vectors(1, 3), 2)
        second, expected = store.state_dict(), held(store)
        store.update([1, 2], vectors(2, 4), 3)
    with pytest.raises(StoreError, match="a part of this run that was undone"):
        LiveStore.open(tmp_path / "live", KEY, undone)
    with LiveStore.open(tmp_path / "live", KEY, second) as store:
        assert same(store, expected)


def test_another_key_a_missing_store_and_another_size_are_refused(tmp_path):
    with created(tmp_path) as store:
        state = store.state_dict()
    with pytest.raises(StoreError, match="made for another weights and is not used"):
        LiveStore.open(tmp_path / "live", {**KEY, "weights": "other"}, state)
    with pytest.raises(StoreError, match="there is no live store"):
        LiveStore.open(tmp_path / "elsewhere", KEY, state)
    with pytest.raises(StoreError, match="the checkpoint has 7"):
        LiveStore.open(tmp_path / "live", KEY, {**state, "n_rows": 7})
    with pytest.raises(StoreError, match="holds the rows of a run"):
        created(tmp_path)
    created(tmp_path, overwrite=True).close()


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,)])
def test_a_store_without_rows_is_refused(tmp_path, shape):
    with pytest.raises(ValueError, match="N > 0"):
        created(tmp_path, shape)


@pytest.mark.parametrize(
    ("name", "offset", "message"),
    [
        ("rows.f32", 4 * D * 11 + 3, "row 11 does not match its checksum"),
        ("ages.bin", 16 * 11, "row 11 does not match its checksum"),
        ("ages.bin", 16 * 11 + 12, "damaged"),
        ("facts.json", 0, "facts.json cannot be read"),
        ("journal-000000.bin", 60, "damaged"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, name, offset, message):
    with created(tmp_path) as store:
        state = store.state_dict()
        store.update([1], vectors(1, 1), 1)
    damaged(tmp_path / "live" / name, offset)
    with pytest.raises(StoreError, match=message):
        LiveStore.open(tmp_path / "live", KEY, state)


def test_a_truncated_file_is_refused(tmp_path):
    with created(tmp_path) as store:
        state = store.state_dict()
    os.truncate(tmp_path / "live" / "rows.f32", 100)
    with pytest.raises(StoreError, match=r"rows\.f32 should have"):
        LiveStore.open(tmp_path / "live", KEY, state)


def run(script, *arguments, **settings):
    """A real process that has the store's code at hand."""
    head = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
    command = [sys.executable, "-c", head + textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)


def test_a_second_writer_is_kept_out_until_the_first_dies(tmp_path):
    with created(tmp_path) as store:
        state = store.state_dict()
    first = run(
        """
        import json, time
        from search_r3.index.rows.live import LiveStore
        store = LiveStore.open(sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]))
        print("open", flush=True)
        time.sleep(600)
        """,
        tmp_path / "live",
        json.dumps(KEY),
        json.dumps(state),
    )
    try:
        assert first.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match="another process has this run's rows open"):
            LiveStore.open(tmp_path / "live", KEY, state)
        with pytest.raises(StoreError, match="another process has this run's rows open"):
            created(tmp_path, overwrite=True)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    LiveStore.open(tmp_path / "live", KEY, state).close()


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
        from test_live_store import crash_everywhere
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
    from test_live_store import vectors
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
