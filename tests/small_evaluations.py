"""The command on small collections, run in this process."""

import json
from pathlib import Path

import pytest
from conftest import TEXTS

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.evaluate import check, run

OPENED: list[ConfigSource] = []


def write_collection(folder: Path, ids=("d0", "d1", "d2", "d3", "d4"), judged=(), queries=5) -> Path:
    """Five documents; the query `q<i>` is the first line of the `i`-th one and has it as its positive."""
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": name, "text": text} for name, text in zip(ids, TEXTS[:5], strict=True)]
    asked = [{"_id": f"q{i}", "text": text.split("\n")[0]} for i, text in enumerate(TEXTS[:queries])]
    for name, rows in (("corpus", documents), ("queries", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"q{i}\t{ids[i]}\t1\n" for i in range(queries)] + [f"{q}\t{d}\t{g}\n" for q, d, g in judged]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


@pytest.fixture(scope="module", autouse=True)
def configs():
    """Opened once: it takes as long as an evaluation here."""
    with ConfigSource() as source:
        OPENED.append(source)
        yield
    OPENED.clear()


def call(*overrides: str) -> None:
    """What `python -m src.evaluate modes=[bm25] ...` does, in this process."""
    config = compose("evaluate", ["modes=[bm25]", *overrides], OPENED[0]).config
    check(config, False)
    run(config)


def evaluate(tmp_path: Path, *overrides: str) -> list[dict]:
    """Rows of metrics.json after `python -m src.evaluate modes=[bm25] ...` into `tmp_path/out`."""
    out = tmp_path / "out"
    call(f"beir_dir={tmp_path / 'beir'}", f"output_dir={out}", *overrides)
    rows = json.loads((out / "metrics.json").read_text())["rows"]
    assert len({row["folder"] for row in rows}) == len(rows)
    assert all((out / row["folder"] / "run.trec").is_file() for row in rows)
    return rows
