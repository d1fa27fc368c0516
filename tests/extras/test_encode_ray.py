"""`src.encode engine=ray`: real workers of a Ray of this machine, one of which is killed."""

import os
import pickle
import signal
import sys
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pytest
from ray import cloudpickle
from small_collection import write_collection

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.data.beir.documents import load_corpus
from search_r3.demo import MODEL
from search_r3.encode import check, run
from search_r3.errors import UsageError
from search_r3.evaluation.ranking import corpus_key
from search_r3.evaluation.ray_engine import Cluster, Worker, by_ray
from search_r3.evaluation.shards import shards_of
from search_r3.index.encoded import gaps, whole
from search_r3.models.folder import load_embedder

FOLDER = Path(__file__).resolve().parents[2] / MODEL
SHARD_ROWS = 16
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
TWO = Cluster(address=None, n_workers=2, worker_cpus=1, has_gpu=False)


@dataclass(frozen=True)
class Mortal:
    """Reads the model; the first worker that has encoded a shard is killed within its second one."""

    flag: Path

    def __call__(self):
        embedder = load_embedder(FOLDER)
        embed, n_calls = embedder.embed_documents_and_count, 0

        def mortal(texts, progress=False):
            nonlocal n_calls
            n_calls += 1
            if n_calls == 2:
                try:
                    os.close(os.open(self.flag, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    return embed(texts)
                os.kill(os.getpid(), signal.SIGKILL)
            return embed(texts)

        embedder.embed_documents_and_count = mortal
        return embedder


@dataclass(frozen=True)
class Refusing:
    """A machine that has no such model."""

    def __call__(self):
        raise UsageError("model.path=there: not a model folder")


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return write_collection(tmp_path_factory.mktemp("collection") / "small")


def encode(collection, output, *overrides):
    given = [f"model.path={FOLDER}", f"corpus={collection}", f"output={output}", f"shard_rows={SHARD_ROWS}"]
    with ConfigSource() as source:
        config = compose("encode", [*given, *overrides], source).config
    check(config, False)
    run(config)
    return output


@pytest.fixture(scope="module")
def by_one_process(collection, tmp_path_factory):
    return encode(collection, tmp_path_factory.mktemp("local") / "vectors")


def table(folder):
    return pyarrow.dataset.dataset(folder, format="parquet").to_table()


def test_the_command_leaves_what_one_process_leaves_and_keeps_what_is_there(
    collection, by_one_process, tmp_path, capsys
):
    output = encode(collection, tmp_path / "vectors", "engine=ray", "workers=2")
    assert table(output).equals(table(by_one_process))
    first, *others = sorted(output.glob("*.parquet"))
    first.unlink()
    left = {file: file.stat().st_mtime_ns for file in others}
    capsys.readouterr()

    encode(collection, output, "engine=ray", "workers=1")

    assert f"encoded {SHARD_ROWS} documents in" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in left} == left
    assert table(output).equals(table(by_one_process))


def test_a_worker_that_is_killed_comes_back_and_nothing_is_missing_or_twice(
    collection, by_one_process, tmp_path
):
    corpus, output = load_corpus(collection / "corpus.jsonl", in_memory_mib=0), tmp_path / "vectors"
    output.mkdir()
    key = corpus_key(corpus, load_embedder(FOLDER))
    facts = {"model": str(FOLDER), **key, "n_rows": len(corpus)}
    done = []

    shards = list(shards_of(corpus, gaps([], len(corpus)), SHARD_ROWS))
    by_ray(TWO, Mortal(tmp_path / "killed"), shards, output, facts, done.append)

    assert (tmp_path / "killed").exists()
    assert len(shards) > 4
    assert sum(done) == len(corpus)
    assert len(whole(output, key, corpus.ids)) == len(shards)
    assert table(output).equals(table(by_one_process))


@pytest.mark.parametrize("problem", ["model", "room"])
def test_what_a_worker_or_ray_refuses_is_told_in_a_line(collection, tmp_path, problem):
    corpus = load_corpus(collection / "corpus.jsonl")
    cluster = Cluster(None, 1, 1, has_gpu=problem == "room")
    said = {
        "model": "model.path=there: not a model folder",
        "room": "a worker needs 1 CPUs and a GPU, and Ray has",
    }[problem]

    with pytest.raises(UsageError, match=said):
        by_ray(cluster, Refusing(), shards_of(corpus, [(0, 4)], 4), tmp_path, {}, lambda n: None)
    assert not list(tmp_path.glob("rows-*"))
    left = {thread.name for thread in threading.enumerate()}
    assert not left & {"Prefetcher", "iter_threaded"}, "one that asks Ray for anything now ends the process"


def test_a_worker_with_another_model_or_without_the_folder_refuses(collection, tmp_path):
    corpus = load_corpus(collection / "corpus.jsonl")
    (shard,) = shards_of(corpus, [(0, 4)], 4)
    batch = {"shard": np.array([pickle.dumps(shard)], dtype=object)}
    key, load = corpus_key(corpus, load_embedder(FOLDER)), partial(load_embedder, FOLDER)

    for folder, facts, said in (
        (tmp_path, {**key, "weights": "0" * 64}, "a worker reads another model"),
        (tmp_path / "none", key, "a worker's machine has no such folder"),
    ):
        row = Worker(load, folder, facts)(batch)
        assert said in row["problem"][0]
        assert row["is_refused"][0]
    row = Worker(load, tmp_path, key)(batch)
    assert (row["n_documents"][0], row["problem"][0]) == (4, "")
    assert [file.name for file in tmp_path.glob("rows-*")] == [shard.file_name]


def test_a_cluster_that_is_not_there_is_told(collection, tmp_path):
    cluster = Cluster("127.0.0.1:1", None, 1, has_gpu=False)
    with pytest.raises(UsageError, match=r"address=127\.0\.0\.1:1: no Ray cluster there"):
        by_ray(cluster, Refusing(), [], tmp_path, {}, lambda n: None)
