"""Stored embeddings: encoded once, resumed after a kill, refused where they are another's or damaged."""

import hashlib
import json
import logging
import os
import resource
import shlex
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from search_r3.index.rows.cache import StoreError, open_store, store_folder, stored_embeddings
from tests.command import LIMIT_S, begun

TEXTS = [f"document {number}" for number in range(25)]
KEY = {"weights": "w", "prompts": "p", "dtype": "torch.float32", "corpus": "c"}


def embed(texts):
    """A vector that depends on the text alone."""
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(texts), 32).astype(np.float32)


def uncounted(embedding):
    """What embeds as a store asks for it: with how many texts are cut, which nobody counts here."""
    return lambda texts: (embedding(texts), None)


class Counting:
    """Embeds, counts, and fails once when told to."""

    def __init__(self, fail_at=None):
        self.n, self.fail_at = 0, fail_at

    def __call__(self, texts):
        if self.fail_at is not None and self.n >= self.fail_at:
            raise RuntimeError("out of memory")
        self.n += len(texts)
        return torch.from_numpy(embed(texts))


def stored(root, embedding=embed, key=KEY, texts=TEXTS):
    return stored_embeddings(root, key, texts, uncounted(embedding), chunk_size=4, progress=False)


def test_progress_counts_what_an_earlier_run_has_done(tmp_path, capsys):
    with pytest.raises(RuntimeError, match="out of memory"):
        stored(tmp_path, Counting(fail_at=12))
    for _ in range(2):  # nothing is left to encode in the second
        stored_embeddings(tmp_path, KEY, TEXTS, uncounted(embed), chunk_size=4, progress=True)

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("embed: 25/25 documents, ")


def test_rows_are_encoded_once_and_read_only(tmp_path):
    first, second = Counting(), Counting()
    rows = stored(tmp_path, first)
    assert (np.asarray(rows) == embed(TEXTS)).all()
    assert rows.dtype == np.float32
    assert not rows.flags.writeable
    assert (np.asarray(stored(tmp_path, second)) == embed(TEXTS)).all()
    assert (first.n, second.n) == (25, 0)


def test_an_interrupted_encoding_goes_on_where_it_stopped(tmp_path):
    first, second = Counting(fail_at=12), Counting()
    with pytest.raises(RuntimeError, match="out of memory"):
        stored(tmp_path, first)
    folder = store_folder(tmp_path, KEY)
    with pytest.raises(StoreError, match="12 of 25 rows"):
        open_store(folder, KEY, 25)
    with (folder / "done.jsonl").open("a") as file:
        file.write('{"start": 12, "sto')  # torn by the interruption
    assert (np.asarray(stored(tmp_path, second)) == embed(TEXTS)).all()
    assert second.n == 25 - 12


def test_an_interruption_within_the_first_chunk_starts_anew(tmp_path):
    with pytest.raises(RuntimeError):
        stored(tmp_path, Counting(fail_at=0))
    assert (np.asarray(stored(tmp_path)) == embed(TEXTS)).all()


def test_every_part_of_the_key_has_its_own_rows(tmp_path):
    for name in KEY:
        other = Counting()
        stored(tmp_path, other, key={**KEY, name: "another"})
        assert other.n == 25
    assert len({store_folder(tmp_path, {**KEY, name: "another"}) for name in KEY}) == len(KEY)


def messages(caplog):
    return [record.getMessage() for record in caplog.records]


def test_what_is_encoded_again_is_said_with_the_reason_and_the_old_folder(tmp_path, caplog):
    caplog.set_level("INFO")
    stored(tmp_path)
    stored(tmp_path)
    stored(tmp_path, key={**KEY, "corpus": "another"})
    assert messages(caplog) == []  # the first rows of a corpus, and those that are used, need no word
    old, changed = store_folder(tmp_path, KEY), {**KEY, "weights": "other", "prompts": "other"}
    stored(tmp_path, key=changed)
    (message,) = messages(caplog)
    new = store_folder(tmp_path, changed)
    assert message.startswith(
        f"the same documents are in {old}, embedded with other weights and another token"
    )
    assert f"those rows are not used, and 25 documents are encoded into {new}." in message
    assert message.endswith(f" rm -r {shlex.quote(str(old))}")
    caplog.clear()
    (tmp_path / "nonsense").mkdir()
    (tmp_path / "nonsense" / "key.json").write_text("[1]")
    os.utime(old / "key.json", (0, 0))
    stored(tmp_path, key={**KEY, "dtype": "other", "more": "m"})
    (message,) = messages(caplog)
    assert f"are in {new} (and 1 more beside it), embedded with other weights and another tok" in message
    assert "another data type and another more;" in message


def test_pitfall_8_rows_of_another_key_are_refused_not_trusted(tmp_path):
    stored(tmp_path)
    store_folder(tmp_path, KEY).rename(store_folder(tmp_path, {**KEY, "weights": "other"}))
    with pytest.raises(StoreError, match=r"another key.*rm -r"):
        stored(tmp_path, key={**KEY, "weights": "other"})


def test_another_number_of_documents_is_refused(tmp_path):
    stored(tmp_path)
    for texts in (TEXTS[:20], [*TEXTS, "more"]):
        with pytest.raises(StoreError, match="another n_rows"):
            stored(tmp_path, texts=texts)


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_changed_byte_is_found_and_named(tmp_path, is_complete):
    if is_complete:
        stored(tmp_path)
    else:
        with pytest.raises(RuntimeError):
            stored(tmp_path, Counting(fail_at=12))
    file = store_folder(tmp_path, KEY) / "rows.npy"
    content = bytearray(file.read_bytes())
    content[128 + 6 * 32 * 4] ^= 1  # in row 6, behind the 128 bytes of header
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"rows 4 to 7 do not match.*rm -r"):
        stored(tmp_path)


@pytest.mark.parametrize("name", ["of us", "it's", "a' b'"])
def test_the_command_that_is_told_removes_the_damaged_rows_and_no_more(tmp_path, name):
    root, beside = tmp_path / name, tmp_path / "a"
    stored(root)
    beside.mkdir()
    (store_folder(root, KEY) / "key.json").write_text("nonsense")
    with pytest.raises(StoreError) as refused:
        stored(root)

    subprocess.run(str(refused.value).partition("anew: ")[2], shell=True, check=True, cwd=tmp_path)
    stored(root)
    assert beside.is_dir()


@pytest.mark.parametrize("content", ["nonsense\n", "{}\n"])
@pytest.mark.parametrize("name", ["rows.npy", "key.json", "done.jsonl"])
def test_a_damaged_file_is_refused_with_its_folder(tmp_path, name, content):
    stored(tmp_path)
    (store_folder(tmp_path, KEY) / name).write_text(content)
    with pytest.raises(StoreError, match="rm -r"):
        stored(tmp_path)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda texts: embed(texts)[1:], "so many texts"),
        (lambda texts: embed(texts)[0], "so many texts"),
        (lambda texts: np.where(embed(texts) == embed(TEXTS)[9], np.nan, embed(texts)), "not finite"),
        (lambda texts: embed(texts)[:, : 32 - len(texts) % 4], "width 31 after 32"),
    ],
)
def test_what_is_no_embedding_never_gets_into_the_store(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        stored(tmp_path, bad)


def test_no_documents_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one document"):
        stored(tmp_path, texts=[])


def test_a_full_disk_is_one_error_before_anything_is_encoded_in_vain(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    counting = Counting()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))  # 25 rows of 128 bytes do not fit
    try:
        with pytest.raises(StoreError, match=r"cannot be written.*Make room"):
            stored(tmp_path, counting)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert counting.n == 4
    assert (np.asarray(stored(tmp_path)) == embed(TEXTS)).all()


def narrow(texts):
    """A value per text: the line of a finished chunk is then larger than all of the rows."""
    return embed(texts)[:, :1]


@pytest.mark.parametrize(("name", "limit", "n_kept"), [("key.json", 50, 0), ("done.jsonl", 400, 3 * 4)])
def test_a_full_disk_is_the_same_error_whichever_file_meets_it(tmp_path, name, limit, n_kept):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(StoreError) as caught:
            stored(tmp_path, narrow)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    folder, message = store_folder(tmp_path, KEY), str(caught.value)
    assert message.startswith(f"{folder}: ")
    assert "File too large" in message
    assert "Make room or choose another folder" in message
    lines = (folder / "done.jsonl").read_text().split("\n")[:-1] if n_kept else []
    assert [json.loads(line)["stop"] for line in lines] == list(range(4, n_kept + 1, 4))
    assert (folder / "key.json").exists() == (name != "key.json")
    assert (np.asarray(stored(tmp_path, narrow)) == narrow(TEXTS)).all()


def test_a_place_where_no_folder_can_be_made_is_one_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        StoreError, match=r"cannot be written there \(Not a directory\)\. Make room or choose"
    ):
        stored(tmp_path / "file" / "cache")


def write_slowly(root, flag, go_on):
    """Writes the store and holds in its midst; in a process of its own."""

    def slowly(texts):
        if texts[0] == TEXTS[8]:
            flag.touch()
            while not go_on.exists():
                time.sleep(0.05)
        return embed(texts), None

    stored_embeddings(root, KEY, TEXTS, slowly, chunk_size=4, progress=False)


@contextmanager
def another_writer(folder):
    """Another process in the midst of writing the store; it goes on when `go_on` is there."""
    flag, log = folder / "is_writing", folder / "output.txt"
    writer = begun([log, log], write_slowly, folder / "store", flag, folder / "go_on")
    try:
        wait_until(flag.exists, writer)
        yield writer
    finally:
        writer.kill()
        writer.join()


def wait_until(is_so, writer):
    deadline = time.monotonic() + LIMIT_S
    while not is_so():
        assert writer.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Waiting(logging.Handler):
    """Notes that a line says so."""

    def __init__(self):
        super().__init__()
        self.is_told = threading.Event()

    def emit(self, record):
        if "waiting for it" in record.getMessage():
            self.is_told.set()


@pytest.fixture
def waiting():
    handler, logger = Waiting(), logging.getLogger("search_r3.index.rows.cache")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.is_told
    logger.removeHandler(handler)
    logger.setLevel(level)


def stored_meanwhile(folder, counting):
    """Of a thread that wants the same store."""
    pool = ThreadPoolExecutor(1)
    found = pool.submit(stored, folder / "store", counting)
    pool.shutdown(wait=False)
    return found


def test_of_two_processes_one_encodes_and_the_other_waits_for_it(tmp_path, waiting):
    counting = Counting()
    with another_writer(tmp_path) as writer:
        found = stored_meanwhile(tmp_path, counting)
        assert waiting.wait(LIMIT_S)
        assert not found.done()
        (tmp_path / "go_on").touch()
        assert (np.asarray(found.result(LIMIT_S)) == embed(TEXTS)).all()
        writer.join(LIMIT_S)
        assert writer.exitcode == 0
    assert counting.n == 0


def test_who_waits_takes_over_what_a_killed_process_finished(tmp_path, waiting):
    counting = Counting()
    with another_writer(tmp_path) as writer:
        found = stored_meanwhile(tmp_path, counting)
        assert waiting.wait(LIMIT_S)
        writer.kill()
        assert (np.asarray(found.result(LIMIT_S)) == embed(TEXTS)).all()
    assert counting.n == 25 - 8
    lines = (store_folder(tmp_path / "store", KEY) / "done.jsonl").read_text().splitlines()
    assert [json.loads(line)["start"] for line in lines] == [0, 4, 8, 12, 16, 20, 24]
