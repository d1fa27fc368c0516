"""Does memory grow with the corpus? `python -m src.benchmarks.memory`: an evaluation's peak at several sizes.

Collections of made-up texts are evaluated, each in a process of its own, with all texts and vectors on the
disk. Anonymous memory is what the process cannot give back; pages of mapped files, which the system drops
where others need the room, are told apart. The slope between the smallest and the largest corpus is what a
document costs.
"""

import json
import random
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from search_r3.cli.last_resort import Parser, run_command
from search_r3.cli.provenance import provenance
from search_r3.errors import UsageError
from search_r3.files import write_json
from search_r3.folders import make_folder
from search_r3.shipped import ROOT

BASE = ROOT / "experiments" / "nano_base" / "model"
MODES = ("direct", "bm25")
_QUERIES = 100
_EVERY_S = 0.02
"""Between two looks at the process's memory."""


def write_collection(folder: Path, n_documents: int, n_words: int = 12, seed: int = 0) -> Path:
    """A collection in BEIR layout of texts of random words; each query is the beginning of a document."""
    draw = random.Random(seed)
    letters = "bcdfglmnprstv"
    words = [
        "".join(draw.choice(letters) + draw.choice("aeiou") for _ in range(draw.randint(1, 4)))
        for _ in range(5000)
    ]
    (folder / "qrels").mkdir(parents=True)
    queries: list[str] = []
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for row in range(n_documents):
            text = " ".join(draw.choices(words, k=n_words))
            file.write(json.dumps({"_id": f"d{row:09}", "title": "", "text": text}) + "\n")
            if len(queries) < _QUERIES:
                queries.append(" ".join(text.split()[:4]))
    rows = [json.dumps({"_id": f"q{row}", "text": text}) for row, text in enumerate(queries)]
    (folder / "queries.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    judged = "".join(f"q{row}\td{row:09}\t1\n" for row in range(len(queries)))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", encoding="utf-8")
    return folder


def figure(name: str) -> int:
    """A figure of `/proc/self/status` in KiB."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


class Watch:
    """How much this process's memory grew at most, pages of mapped files apart, between entering and leaving.

    Attributes:
        before: KiB on entering.
        grown_kib: above that, known on leaving; 0 where the system does not tell.
    """

    def __init__(self, every_s: float = _EVERY_S) -> None:
        self.before = self._most = figure("RssAnon")
        self.grown_kib, self._every_s = 0, every_s
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_done.set()
        self._thread.join()
        self.grown_kib = max(self._most, figure("RssAnon")) - self.before

    def _look(self) -> None:
        while not self._is_done.wait(self._every_s):
            self._most = max(self._most, figure("RssAnon"))


def evaluated(collection: str, mode: str, model: str, scratch: str) -> dict[str, int]:
    """Evaluates a collection in this process and gives its peaks in KiB, above those of the model."""
    from search_r3.data.beir.benchmark import load_benchmark
    from search_r3.evaluation.benchmark import evaluate_benchmark
    from search_r3.evaluation.rankers import Model, Settings
    from search_r3.models.folder import load_embedder

    embedder = load_embedder(model)
    embedder.embed_queries(["what torch allocates once"])
    with Watch() as watch:
        benchmark = load_benchmark(collection, in_memory_mib=0)
        evaluate_benchmark(
            benchmark, mode, Path(scratch) / "out", Settings(100, "english", 1.2, 0.75, 0),
            Model("model", embedder), cache_dir=Path(scratch) / "cache",
        )  # fmt: skip
    return {
        "anonymous_kib": watch.grown_kib, "resident_kib": figure("VmHWM"), "started_with_kib": watch.before
    }  # fmt: skip


def measured(n_documents: int, mode: str, model: Path, n_words: int) -> dict:
    """The peaks of a fresh process on a collection of so many documents, each of `n_words` words."""
    with TemporaryDirectory() as folder:
        collection = write_collection(Path(folder) / "collection", n_documents, n_words)
        given = (str(collection), mode, str(model), folder)
        program = (
            "import json; from search_r3.benchmarks.memory import evaluated as e; "
            f"print(json.dumps(e(*{given!r})))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"{mode}, {n_documents} documents: {(done.stderr.splitlines() or ['failed'])[-1]}")
    return {"documents": n_documents, "mode": mode, **json.loads(done.stdout.splitlines()[-1])}


def slope(rows: Sequence[dict]) -> float:
    """Bytes of anonymous memory that a document more costs, between the smallest and the largest corpus."""
    ordered = sorted(rows, key=lambda row: row["documents"])
    first, last = ordered[0], ordered[-1]
    more = last["anonymous_kib"] - first["anonymous_kib"]
    return 1024 * more / (last["documents"] - first["documents"])


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints a line per corpus and mode, and writes them where that is asked for."""
    parser = Parser(prog="python -m src.benchmarks.memory", description=__doc__)
    parser.add_argument("--documents", type=int, nargs="+", default=[50_000, 200_000], help="of each corpus")
    parser.add_argument("--modes", nargs="+", default=list(MODES), help="direct, bm25")
    parser.add_argument(
        "--model", type=Path, default=BASE, help="a model folder; the shipped base by default"
    )
    parser.add_argument("--words", type=int, default=12, help="of a document")
    parser.add_argument("--output", type=Path, help="a JSON file of the rows")
    arguments = parser.parse_args(argv)
    if len(set(arguments.documents)) < 2 or min(arguments.documents) < _QUERIES:
        raise UsageError(f"--documents needs two sizes of at least {_QUERIES}, got {arguments.documents}")
    if arguments.output:
        make_folder(arguments.output.parent, "--output")  # before minutes of encoding
    rows = []
    for mode in arguments.modes:
        its = []
        for n_documents in sorted(set(arguments.documents)):
            its.append(measured(n_documents, mode, arguments.model, arguments.words))
            row = its[-1]
            print(
                f"{mode}, {n_documents:,} documents: {row['anonymous_kib'] / 1024:.1f} MiB anonymous, "
                f"{row['resident_kib'] / 1024:.0f} MiB resident at most", flush=True,
            )  # fmt: skip
        print(f"{mode}: {slope(its):.0f} bytes for a document more", flush=True)
        rows += its
    if arguments.output:
        write_json(arguments.output, {**provenance(), "rows": rows})
    return 0


if __name__ == "__main__":
    run_command(main)
