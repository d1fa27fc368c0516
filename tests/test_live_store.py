"""The rows of a run: updated in place, brought back to a checkpoint, and refused where they are damaged."""

import json
import os
import signal
import zlib

import numpy as np
import pytest
from live_stores import KEY, D, N, created, held, run, same, vectors

from search_r3.index.rows.cache import StoreError
from search_r3.index.rows.live import NEVER, LiveStore


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
