"""`python -m src.train stage=rl` killed at chosen moments: what it goes on to is what it would have been.

Every run is a process of its own, forked from one that has imported everything, and dies of a real signal.
"""

import contextlib
import csv
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import TEXTS
from rl_runs import likely_folder

from tests.command import ENVIRONMENT, become, forked

N_STEPS = 6
IS_TIMED = ("seconds", "time/", "throughput/")


# What a process does at its moment


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def be_asked_to_stop():
    os.kill(os.getpid(), signal.SIGTERM)


def while_writing_rows(is_journal, end):
    """In the middle of what the index writes at step 4: half of the bytes are there."""
    from search_r3.index.rows import files, journal, live

    write_all, update, at = files.write_all, live.LiveStore.update, {"step": 0}

    def seen_update(self, rows, vectors, step):
        at["step"] = int(step)
        return update(self, rows, vectors, step)

    def half(file, content, offset=None):
        if at["step"] == 4 and (offset is None) == is_journal:
            write_all(file, memoryview(content)[: len(content) // 2], offset)
            end()
        return write_all(file, content, offset)

    live.LiveStore.update = seen_update
    files.write_all = journal.write_all = half


def before_the_first_checkpoint():
    import search_r3.index.rows.live as live

    live.LiveStore.update = lambda *_: die()


def while_the_cache_is_filled():
    from search_r3.models.embedder import ReasoningEmbedder

    embed, calls = ReasoningEmbedder.embed_documents_and_count, []

    def third(self, texts, progress=False):
        calls.append(1)
        if len(calls) == 3:
            die()
        return embed(self, texts, progress)

    ReasoningEmbedder.embed_documents_and_count = third


def at_a_checkpoint(is_in_place):
    """Of step 4; before it replaces the one of step 3, or after it, when the index does not know yet."""
    replace, seen = os.replace, []

    def at_the_third(source, target):
        if Path(target).name == "last.ckpt":
            seen.append(1)
            if len(seen) == 3 and not is_in_place:
                die()
        replace(source, target)
        if len(seen) == 3:
            die()

    os.replace = at_the_third


def while_old_journals_are_dropped():
    unlink, seen = os.unlink, []

    def then_die(path, **arguments):
        unlink(path, **arguments)
        if Path(path).name.startswith("journal-"):
            seen.append(1)
            if len(seen) == 2:
                die()

    os.unlink = then_die


def while_the_table_is_written():
    from search_r3.stages.rl.completions import Completions

    write, seen = Completions.write, []

    def cut(self, *arguments, **keywords):
        write(self, *arguments, **keywords)
        seen.append(1)
        if len(seen) == 5:
            file = self.record.file
            os.truncate(file, file.stat().st_size - 20)
            die()

    Completions.write = cut


def with_a_full_disk():
    """From step 4 on no file takes a byte more, as far as the system can be made to say so."""
    import resource

    import search_r3.index.rows.live as live

    update = live.LiveStore.update

    def limited(self, rows, vectors, step):
        limit = 1 if step == 4 else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            return update(self, rows, vectors, step)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    live.LiveStore.update = limited


MOMENTS = {
    "while the cache is filled": while_the_cache_is_filled,
    "before the first checkpoint": before_the_first_checkpoint,
    "half a journal entry": lambda: while_writing_rows(True, die),
    "half a row": lambda: while_writing_rows(False, die),
    "a checkpoint not in its place": lambda: at_a_checkpoint(False),
    "a checkpoint that the index does not know": lambda: at_a_checkpoint(True),
    "journals dropped in part": while_old_journals_are_dropped,
    "half a line of the table": while_the_table_is_written,
    "asked to stop": lambda: while_writing_rows(False, be_asked_to_stop),
    "full disk": with_a_full_disk,
}
ENDS = dict.fromkeys(MOMENTS, -signal.SIGKILL) | {"asked to stop": 130, "full disk": 1}


def train(arguments, place, moment=None):
    """The process: `python -m src.train`, which does something else at its moment."""
    if moment is not None:
        MOMENTS[moment]()
    become("src.train", arguments, place, ENVIRONMENT)


@pytest.fixture(scope="module")
def call():
    """Exit code and output of one command; negative codes are signals."""

    def run(arguments, place, moment=None):
        done = forked(train, arguments, place, moment, is_merged=True)
        return done.returncode, done.stdout

    return run


def write_triples(file, n=20):
    rows = []
    for number in range(n):
        query, code = TEXTS[number % 5].split("\n", 1)
        rows.append({"query": f"{query} {number}", "positive": f"{code} # {number}"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def small_run(rows, model):
    """What a run of seconds is given, from a file of `write_triples` and a model folder on."""
    return [
        "stage=rl",
        "strategy.precision=32-true",
        "data=triples",
        f'data.files=["{rows}"]',
        "data.columns.hard_negatives=null",
        "data.validation_share=0.2",
        f"model.path={model}",
        f"stage.trainer.max_steps={N_STEPS}",
        "stage.trainer.val_check_interval=3",
        "stage.trainer.limit_val_batches=1",
        "stage.callbacks.checkpoint.save_every_n_steps=2",
        "stage.datamodule.batch_size=3",
        "stage.datamodule.encode_batch=6",
        "stage.datamodule.validation_queries=3",
        "stage.datamodule.validation_documents=8",
        "stage.module.rollouts.group_size=3",
        "stage.module.completions.every_n_steps=1",
        "stage.module.optimization.learning_rate=0.002",
        "refresh.budget=5",
        "refresh.background=0.1",
        "refresh.audit_every_n_steps=2",
    ]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    place = tmp_path_factory.mktemp("given")
    return small_run(write_triples(place / "rows.jsonl"), likely_folder(place))


def folders(arguments, place):
    return [*arguments, f"output_dir={place / 'run'}", f"stage.datamodule.cache_dir={place / 'cache'}"]


@pytest.fixture(scope="module")
def undisturbed(call, arguments, tmp_path_factory):
    place = tmp_path_factory.mktemp("undisturbed")
    code, output = call(folders(arguments, place), place)
    assert code == 0, output
    return place / "run"


def checkpoint(folder):
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    del state["records"]["metrics.csv"]["sha256"]  # the table has seconds in it
    return state


def same(left, right, where="checkpoint"):
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            same(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for number, pair in enumerate(zip(left, right, strict=True)):
            same(*pair, f"{where}/{number}")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    else:
        assert left == right or left != left, where


def logged(folder, name):
    """By step what was logged, timings aside."""
    with (folder / "csv" / name).open() as file:
        rows = [
            {key: value for key, value in row.items() if value and not any(t in key for t in IS_TIMED)}
            for row in csv.DictReader(file)
        ]
    return {(row["step"], "train/reward" in row): row for row in rows}


def assert_same_run(folder, whole):
    files = [
        "model/model.safetensors",
        "completions.jsonl",
        "index/shard-0-of-1/rows.f32",
        "index/shard-0-of-1/ages.bin",
    ]
    for name in files:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    same(*(checkpoint(each) for each in (folder, whole)))
    rows = [json.loads((each / "metrics.json").read_text())["rows"] for each in (folder, whole)]
    for ours, theirs in zip(*rows, strict=True):
        assert ours | {"model": ""} == theirs | {"model": ""}
    ours, theirs = logged(folder, "metrics.csv"), logged(whole, "metrics.csv")
    assert ours
    assert ours == theirs


def test_a_run_that_is_not_disturbed_moves_weights_and_rows(undisturbed):
    facts = (undisturbed / "index" / "shard-0-of-1" / "ages.bin").read_bytes()
    ages = [int.from_bytes(facts[at : at + 8], "little") for at in range(0, len(facts), 16)]
    assert len(set(ages)) > 2
    lines = [json.loads(line) for line in (undisturbed / "completions.jsonl").open()]
    assert sorted({line["step"] for line in lines}) == list(range(N_STEPS))
    assert len({line["reward"] for line in lines}) > 2


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_ends_at_any_moment_goes_on_as_if_undisturbed(
    call, arguments, undisturbed, tmp_path, moment
):
    command = [*folders(arguments, tmp_path), "if_exists=resume"]
    code, output = call(command, tmp_path, moment)
    assert code == ENDS[moment], output
    assert "Traceback" not in output
    if moment == "full disk":
        assert "rows could not be written" in output
        assert "File too large" in output
        assert "make room, then resume the run" in output
    code, output = call(command, tmp_path)
    assert code == 0, output
    assert ("resuming from" in output) == (moment not in list(MOMENTS)[:2]), output
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_second_run_on_the_rows_of_another_is_refused_and_leaves_them(
    call, arguments, undisturbed, tmp_path
):
    store = undisturbed / "index"
    before = (store / "shard-0-of-1" / "rows.f32").read_bytes()
    command = [*folders(arguments, tmp_path), f"stage.datamodule.store={store}"]
    code, output = call(command, tmp_path)
    assert code == 1, output
    assert f"{store}" in output
    assert "holds the rows of a run" in output
    with locked(store / "shard-0-of-1"):
        code, output = call([*command, f"output_dir={tmp_path / 'again'}"], tmp_path)
    assert code == 1, output
    assert "another process has this run's rows open" in output
    assert (store / "shard-0-of-1" / "rows.f32").read_bytes() == before


@contextlib.contextmanager
def locked(folder):
    """As an open store holds it."""
    import fcntl

    with (folder / "lock").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def test_a_run_whose_model_folder_was_replaced_does_not_go_on_with_its_rows(call, arguments, tmp_path):
    from search_r3.models.folder import load_embedder, save_embedder

    place = tmp_path / "model"
    place.mkdir()
    folder = likely_folder(place)
    command = [
        *folders([a for a in arguments if not a.startswith("model.path")], tmp_path),
        f"model.path={folder}",
        "if_exists=resume",
        "stage.trainer.max_steps=2",
    ]
    code, output = call(command, tmp_path)
    assert code == 0, output
    embedder = load_embedder(folder)
    with torch.no_grad():
        embedder.causal_lm.get_output_embeddings().weight += 0.1
    save_embedder(embedder, folder, {}, is_trained=True)
    more = [a for a in command if "max_steps" not in a]
    code, output = call([*more, "stage.trainer.max_steps=3"], tmp_path)
    assert code == 1, output
    assert "made for another weights and is not used" in output
    assert "rm -r" in output
