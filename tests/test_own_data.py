"""A data set of one's own: a function of any name and a YAML file, outside the checkout."""

import json

import pytest

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.errors import UsageError
from search_r3.evaluate import check, run
from tests.command import ROOT
from tests.command import run as command

READER = """
from search_r3.data.types import Benchmark, Corpus, TrainingData

def from_my_shelf():
    texts = ["def getLargestFile(): pass", "def read_all(): pass", "a list of names"]
    corpus = Corpus(["a", "b", "c"], texts)
    test = Benchmark("shelf", corpus, {"q": "largest file"}, {"q": {"a": 1}}, holds_code=True)
    return TrainingData("shelf", corpus, [], test=test)
"""


def write_collection(folder):
    """Two documents of code; only by its parts does the identifier of the first answer the queries."""
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (
        ("corpus", {"a": "def getLargestFile(): pass", "b": "def read_all(): pass"}),
        ("queries", {"q": "largest", "r": "largest file"}),
    ):
        lines = [json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    for split, query in (("test", "q"), ("train", "r")):
        (folder / "qrels" / f"{split}.tsv").write_text(f"{query}\ta\t1\n")


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_shelf.py").write_text(READER)
    (tmp_path / "configs" / "data").mkdir(parents=True)
    (tmp_path / "configs" / "data" / "shelf.yaml").write_text("_target_: my_shelf.from_my_shelf\n")
    monkeypatch.syspath_prepend(tmp_path)
    with ConfigSource(tmp_path / "configs") as source:
        yield source, tmp_path / "out"


def evaluated(mine, *overrides: str) -> dict:
    source, out = mine
    config = compose("evaluate", ["modes=[bm25]", f"output_dir={out}", *overrides], source).config
    check(config, False)
    run(config)
    (row,) = json.loads((out / "metrics.json").read_text())["rows"]
    return row


def test_a_benchmark_goes_by_the_choice_of_data_whatever_its_reader_is_called(mine):
    row = evaluated(mine, "data=shelf", "benchmarks=[shelf]")
    assert (row["benchmark"], row["n_docs"]) == ("shelf", 3)
    with pytest.raises(UsageError, match=r"this data= holds out is benchmarks=\[shelf\]"):
        evaluated(mine, "data=shelf", "benchmarks=[my_shelf]")


def test_the_name_can_be_chosen(mine):
    assert evaluated(mine, "data=shelf", "held_out=books", "benchmarks=[books]")["benchmark"] == "shelf"


@pytest.mark.parametrize(
    ("overrides", "analyzer"),
    [
        (["data=shelf", "benchmarks=[shelf]"], "code"),  # as its reader says
        (["data=shelf", "benchmarks=[shelf]", "bm25.analyzer=english"], "english"),
        (["benchmarks=[cosqa]"], "code"),  # of conf/evaluate.yaml
        (["benchmarks=[sub/cosqa]"], "code"),
        (["benchmarks=[cosqa]", "bm25.code=[]"], "english"),
        (["benchmarks=[other]"], "english"),
        (["benchmarks=[other]", "bm25.code=[cosqa,other]"], "code"),
        (["data=beir", "data.path=beir/other", "benchmarks=[beir]"], "english"),
        (["data=beir", "data.path=beir/other", "benchmarks=[beir]", "data.holds_code=true"], "code"),
    ],
)
def test_a_collection_of_code_has_its_identifiers_split_where_it_says_that_it_is_one(
    mine, tmp_path, monkeypatch, overrides, analyzer
):
    monkeypatch.chdir(tmp_path)
    for name in ("cosqa", "sub/cosqa", "other"):
        write_collection(tmp_path / "beir" / name)
    row = evaluated(mine, "beir_dir=beir", *overrides)
    assert row["model"].startswith(f"bm25 ({analyzer},")
    assert row["metrics"]["ndcg@10"] == (1.0 if analyzer == "code" else 0.0)


def test_the_collections_of_code_are_a_list(mine):
    with pytest.raises(UsageError, match=r"bm25\.code=cosqa: a list is needed, as bm25\.code=\[cosqa\]"):
        evaluated(mine, "bm25.code=cosqa")


def test_a_sweep_knows_the_choice_too(mine, tmp_path):
    done = command(
        "evaluate", "--config-dir", str(tmp_path / "configs"), "--multirun", "data=shelf",
        "benchmarks=[shelf]", "modes=[bm25]", "bm25.b=0.5,0.75",
        cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("outputs/multirun/*/*/*/shelf/bm25/run.trec"))) == 2


@pytest.mark.parametrize(
    ("module", "overrides", "message"),
    [
        ("train", ["data=beir", "data.path=gone"], "data.path=gone: no such folder"),
        ("train", ["data=beir", "data.path=."], "data.path=.: there is no corpus.jsonl in this folder"),
        (
            "train",
            ["data=beir", "data.path=mine", "data.reasonings=gone.jsonl"],
            "data.reasonings=gone.jsonl",
        ),
        ("train", ["data=triples", "data.files=[a.jsonl,gone.gz]"], "data.files=gone.gz: no such file"),
        (
            "train",
            ["data=triples", "data.files=a.jsonl", "data.corpus=mine"],
            "data.corpus=mine: is a folder",
        ),
        (
            "train",
            ["data=triples", "data.files=a.jsonl", "data.test=a.jsonl"],
            "data.test=a.jsonl: is a file",
        ),
        ("train", ["data=mixture", "data.sources.beir.path=gone"], "data.sources.beir.path=gone: no such"),
        ("train", ["data=entailmentbank", "data.path=gone"], "data.path=gone: no such folder"),
        ("evaluate", ["modes=[bm25]", "benchmarks=[beir]", "data=beir", "data.path=gone"], "data.path=gone:"),
    ],
)
def test_data_that_is_not_there_is_refused_before_there_is_a_run_folder(tmp_path, module, overrides, message):
    write_collection(tmp_path / "mine")
    (tmp_path / "a.jsonl").write_text('{"query": "a", "positive": "b", "hard_negatives": []}\n')
    before = sorted(tmp_path.rglob("*"))
    stage = ["stage=sft"] if module == "train" else []
    done = command(module, *stage, *overrides, cwd=tmp_path)
    assert done.returncode != 0
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_collection_that_is_not_asked_need_not_be_there(mine, tmp_path):
    write_collection(tmp_path / "other")
    overrides = ["data=beir", "data.path=gone", "benchmarks=[other]", f"beir_dir={tmp_path}"]
    assert evaluated(mine, *overrides)["benchmark"] == "other"
