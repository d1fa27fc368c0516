"""One text of tens of megabytes is read, trained on, mined and evaluated in a small multiple of its size."""

import json
import re

import pytest
from conftest import TEXTS

from tests.command import forked

MEGABYTES = 16
BOUND = 240
"""MiB; it was about 100 for each of these megabytes, and a process has some 50 that are not for them."""
LONG = (TEXTS[0] + " getHTTPResponse größe 漢字\n") * (MEGABYTES * 10_000)
KINDS = {
    "words": lambda: LONG[: MEGABYTES << 20],
    "one word": lambda: "a" * (MEGABYTES << 20),
    "blanks": lambda: "sum" + " " * (MEGABYTES << 20),
}


def status(name: str) -> int:
    """A figure of this process in MiB: VmRSS is held now, VmHWM is the most that was."""
    with open("/proc/self/status") as file:
        return int(re.search(rf"{name}:\s+(\d+) kB", file.read())[1]) >> 10


def growth(job, *arguments) -> None:
    """Prints what a function needs at most, in MiB above what this process has held before."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the most is what is held now
    before = status("VmRSS")
    job(*arguments)
    print("grew by", status("VmHWM") - before, flush=True)


def peak(job, *arguments) -> int:
    """MiB that a function needs in a process of its own."""
    done = forked(growth, job, *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(re.search(r"grew by (\d+)", done.stdout)[1])


def collection(folder, text, query):
    """A BEIR folder in which one document and one query are the given ones."""
    (folder / "qrels").mkdir(parents=True)
    documents = {"d0": TEXTS[0], "d1": TEXTS[1], "long": text}
    queries = {"q0": "sum of two integers", "q1": query}
    for name, rows in (("corpus", documents), ("queries", queries)):
        with (folder / f"{name}.jsonl").open("w") as file:
            for key, value in rows.items():
                file.write(json.dumps({"_id": key, "text": value}, ensure_ascii=False) + "\n")
    (folder / "qrels" / "test.tsv").write_text("q0\td0\t1\nq1\tlong\t1\n")
    return folder


def evaluated(folder, model_folder, out, modes) -> None:
    from search_r3.data.beir.benchmark import load_benchmark
    from search_r3.evaluation.benchmark import evaluate_benchmark
    from search_r3.evaluation.rankers import Model, Settings
    from search_r3.models.folder import load_embedder

    settings = Settings(top_k=100, analyzer="code", k1=1.2, b=0.75, seed=0)
    model = Model("nano", load_embedder(model_folder)) if modes != ["bm25"] else None
    benchmark = load_benchmark(folder)
    for mode in modes:
        row = evaluate_benchmark(benchmark, mode, out, settings, model, None, out / "cache")
        print(row["metrics"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_document_is_encoded_and_ranked(nano_folder, tmp_path, kind):
    folder = collection(tmp_path / "long", KINDS[kind](), "sum")
    assert peak(evaluated, folder, nano_folder, tmp_path, ["direct", "reasoning"]) < BOUND


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_document_is_indexed_by_words(tmp_path, kind):
    folder = collection(tmp_path / "long", KINDS[kind](), "sum")
    assert peak(evaluated, folder, None, tmp_path, ["bm25"]) < BOUND


def test_a_long_query_is_evaluated(nano_folder, tmp_path):
    folder = collection(tmp_path / "long", "sum", KINDS["words"]())
    assert peak(evaluated, folder, nano_folder, tmp_path, ["direct", "reasoning"]) < BOUND


def rows_of(file):
    from search_r3.data.triples import load_triples

    return load_triples([str(file)], validation_share=0.0, with_reasoning=True)


def mined(file) -> None:
    from search_r3.data.negatives import RankRule
    from search_r3.stages.sft.mining import mine_by_bm25

    data = rows_of(file)
    print(len(mine_by_bm25(data.examples, data.corpus, RankRule(), 1, 2)), data.corpus.fingerprint)


def tokenizer_trained(file) -> None:
    from search_r3.models.nano import train_tokenizer

    train_tokenizer(rows_of(file).texts, 400)


def write_rows(file, long):
    rows = [{"query": "sum", "positive": long, "hard_negatives": [TEXTS[0]]}]
    rows += [{"query": f"q{n}", "positive": TEXTS[n], "hard_negatives": [TEXTS[4]]} for n in range(3)]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def test_a_row_with_long_texts_is_read_reasoned_about_and_mined_for(tmp_path):
    write_rows(tmp_path / "rows.jsonl", KINDS["words"]())
    assert peak(mined, tmp_path / "rows.jsonl") < BOUND


def test_a_tokenizer_is_trained_on_a_long_text_in_pieces(tmp_path):
    """About 240 MiB for 8 MB; 715 where it is read whole."""
    write_rows(tmp_path / "rows.jsonl", KINDS["words"]()[: 8 << 20])
    assert peak(tokenizer_trained, tmp_path / "rows.jsonl") < 400
