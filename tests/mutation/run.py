"""Plants bugs, one at a time, and says which of them the tests do not see.

    make mutants [SEED=13] [N=100]

draws `N` single-line mutants of the folders `stages`, `data`, `index` and `evaluation` of the package (see
`mutants.py`) with a seed, and runs for each the tests that execute its line, fastest first, until one fails.
Which tests those are is measured first, once, by a run of the whole suite under `coverage` (see
`contexts.py`), and kept in `outputs/mutants/measured`. Where the source has changed since, lines are carried
over by a comparison, and a line that is new has the tests of its function. Delete that folder to measure
again, or add to it with `--measure [arguments of pytest]`.

The result is `outputs/mutants/seed-<SEED>.jsonl`. A run that was broken off goes on where it was. `--again
FILE...` judges the survivors once more, by test files that are new or changed.

A mutant runs in a copy of the tree, in a process forked from one that has imported the libraries. It is
killed by a failing test or import, and where tests take five minutes and four times as long as before.
"""

import argparse
import ast
import difflib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.mutation.contexts import FOLDER, hook
from tests.mutation.mutants import Mutant, sample

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("src/search_r3/stages", "src/search_r3/data", "src/search_r3/index", "src/search_r3/evaluation")
LEFT_OUT = {".git", ".venv", "outputs", "__pycache__", ".cache", ".pytest_cache", ".ruff_cache", "wandb"}
FIRST_S = 20.0
"""Seconds of tests that are tried first; the others only if these all pass."""
LIBRARIES = (
    "torch",
    "transformers.models.qwen3.modeling_qwen3",
    "pytorch_lightning",
    "peft",
    "faiss",
    "hydra",
    "pytest",
    "torchmetrics",
    "bm25s",
)


def copied(folder: Path) -> Path:
    """A copy of the tree."""
    shutil.copytree(ROOT, folder, ignore=lambda _, names: LEFT_OUT & set(names), symlinks=True)
    return folder


def paths(tree: Path) -> str:
    """The `PYTHONPATH` by which a copy's own package comes before the one that is installed."""
    return os.pathsep.join([str(tree), str(tree / "src")])


# ---- which tests run which line


def measure(folder: Path, library: Path, arguments: Sequence[str]) -> None:
    """Runs tests under `coverage` and keeps what they run, with the source that they ran."""
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(library), "coverage>=7,<8"],
        check=True,
    )
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as place:
        tree = copied(Path(place) / "tree")
        (tree / "sitecustomize.py").write_text(hook(library), encoding="utf-8")
        environment = os.environ | {FOLDER: str(folder), "PYTHONPATH": paths(tree), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.mutation.contexts", *arguments]
        subprocess.run(command, cwd=tree, env=environment, check=False)
        keep(folder, tree, library)


def keep(folder: Path, tree: Path, library: Path) -> None:
    """Turns what processes have measured below `tree` into one table, `measured.json`."""
    sys.path.append(str(library))
    import coverage

    lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for file in folder.glob("lines.*"):
        data = coverage.CoverageData(str(file))
        try:
            data.read()
        except coverage.exceptions.DataError:  # of a process that a test has killed while it was written
            continue
        for path in data.measured_files():
            name = Path(path).relative_to(tree).as_posix()
            for line, labels in data.contexts_by_lineno(path).items():
                lines[name][line].update(label for label in labels if label)
    tests: dict[str, dict] = {}
    for file in folder.glob("tests-*.json"):
        tests |= json.loads(file.read_text(encoding="utf-8"))
    sources = {name: (tree / name).read_text(encoding="utf-8") for name in lines}
    table = {name: {line: sorted(labels) for line, labels in found.items()} for name, found in lines.items()}
    content = json.dumps({"tests": tests, "lines": table, "sources": sources})
    (folder / "measured.json").write_text(content, encoding="utf-8")
    for file in (*folder.glob("lines.*"), *folder.glob("tests-*"), *folder.glob("test-of-*")):
        file.unlink()


class Measured:
    """What was measured, for the source as it is now.

    Args:
        folders: of one measurement each.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.parts = [
            json.loads((folder / "measured.json").read_text(encoding="utf-8")) for folder in folders
        ]
        self.tests = {name: facts for part in self.parts for name, facts in part["tests"].items()}
        self._by_fixture: dict[str, set[str]] = defaultdict(set)
        self._n_lines: dict[str, int] = defaultdict(int)
        for name, facts in self.tests.items():
            for fixture in facts["shared"]:
                if not fixture.startswith("::"):  # one of pytest's own
                    self._by_fixture[fixture].add(name)
        for part in self.parts:
            for found in part["lines"].values():
                for labels in found.values():
                    for label in labels:
                        self._n_lines[label.rpartition("|")[0]] += 1

    def tests_of(self, mutant: Mutant, source: str) -> list[str]:
        """The tests that run a line, those of a few seconds and few lines first; passing ones only."""
        found: set[str] = set()
        for part in self.parts:
            found |= self._labels(part, mutant, source)
        tests = set()
        for label in found:
            name, _, phase = label.rpartition("|")
            tests.add(name)
            if phase == "setup":  # of a fixture that other tests read as well
                for fixture in self.tests.get(name, {"shared": ()})["shared"]:
                    tests |= self._by_fixture.get(fixture, set())
        passing = [name for name in tests if self.tests.get(name, {}).get("outcome") == "passed"]
        return sorted(passing, key=lambda name: (self._cost(name), self._n_lines[name], name))

    def _cost(self, name: str) -> int:
        return max(0, int(self.tests[name]["seconds"] * 4)).bit_length()

    def seconds(self, name: str) -> float:
        return self.tests[name]["seconds"]

    @staticmethod
    def _labels(part: Mapping, mutant: Mutant, source: str) -> set[str]:
        """Of a line in a function; of the function where that is new or a part of its signature; else of the
        file, since what runs at import is run by no test alone."""
        lines = {int(line): labels for line, labels in part["lines"].get(mutant.path, {}).items()}
        if not lines:
            return set()
        before, body = (
            _carried_over(source, part["sources"][mutant.path]),
            _function_around(source, mutant.line),
        )
        own = lines.get(before.get(mutant.line, -1), []) if mutant.line in body else []
        if own:
            return set(own)
        found = {label for line in body for label in lines.get(before.get(line, -1), [])}
        return found or {label for labels in lines.values() for label in labels}


def _carried_over(new: str, old: str) -> dict[int, int]:
    """From a line of the new source to the same line of the old one."""
    matcher = difflib.SequenceMatcher(None, new.split("\n"), old.split("\n"), autojunk=False)
    return {
        block.a + offset + 1: block.b + offset + 1
        for block in matcher.get_matching_blocks()
        for offset in range(block.size)
    }


def _function_around(source: str, line: int) -> range:
    """Lines of the body of the innermost function that a line is in, its signature included; none outside."""
    spans = [
        range(node.body[0].lineno, node.end_lineno + 1)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.lineno <= line <= node.end_lineno
    ]
    return min(spans, key=len, default=range(0))


# ---- one mutant


class Killer:
    """A plugin that writes down the first test that fails."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed and not self.file.exists():
            self.file.write_text(report.nodeid, encoding="utf-8")

    def pytest_collectreport(self, report) -> None:
        if report.failed and not self.file.exists():
            self.file.write_text(f"collection of {report.nodeid}", encoding="utf-8")


def run_tests(tree: Path, module: str, tests: Sequence[str], limit_s: float, note: Path) -> tuple[str, str]:
    """Runs tests in a tree.

    Returns:
        `survived`, `killed`, `timeout` or `error`; and the test that failed, or what went wrong.
    """
    note.unlink(missing_ok=True)
    process = os.fork()
    if process == 0:
        _work(tree, module, tests, note)
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            failed = note.read_text(encoding="utf-8") if note.exists() else ""
            code = os.waitstatus_to_exitcode(status)
            if code == 0:
                return "survived", ""
            return ("killed", failed) if failed or code < 0 else ("error", f"pytest ended with {code}")
        time.sleep(0.05)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return "timeout", f"more than {limit_s:.0f} s"


def _work(tree: Path, module: str, tests: Sequence[str], note: Path) -> None:
    """The forked process: imports the mutated module, runs pytest, and ends."""
    code = 70
    try:
        os.setsid()
        os.chdir(tree)
        os.environ |= {"PYTHONPATH": paths(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.dont_write_bytecode = True
        sys.path[:] = [
            *paths(tree).split(os.pathsep),
            *(path for path in sys.path if Path(path or ".").resolve() != ROOT),
        ]
        for name in [name for name in sys.modules if name.split(".")[0] in ("search_r3", "tests")]:
            del sys.modules[name]
        out = os.open(note.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        import importlib

        import pytest

        try:
            importlib.import_module(module)
        except BaseException as error:
            note.write_text(f"import: {error!r}", encoding="utf-8")
            raise
        base = note.with_suffix(".tmp")
        options = ["-q", "-x", "-p", "no:cacheprovider", f"--basetemp={base}", *tests]
        code = int(pytest.main(options, plugins=[Killer(note)]))
        shutil.rmtree(base, ignore_errors=True)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def judged(mutant: Mutant, tests: Sequence[str], measured: Measured | None, place: Path) -> dict:
    """The verdict on a mutant: the first tests first, and the others if they pass."""
    source = (ROOT / mutant.path).read_text(encoding="utf-8")
    before, after = mutant.shown(source)
    started = time.monotonic()
    tree = copied(place / "tree")
    (tree / mutant.path).write_text(mutant.applied(source), encoding="utf-8")
    module = mutant.path.removeprefix("src/").removesuffix(".py").replace("/", ".")
    verdict, by, n_run = ("survived", "", 0) if tests else ("uncovered", "", 0)
    for part in _parts(tests, measured):
        expected = 20.0 * len(part) if measured is None else sum(map(measured.seconds, part))
        verdict, by = run_tests(tree, module, part, 300 + 4 * expected, place / "note")
        if verdict == "error":  # a test has other parameters than when it was measured
            part = sorted({name.partition("[")[0] for name in part})
            verdict, by = run_tests(tree, module, part, 300 + 8 * expected, place / "note")
        n_run += len(part)
        if verdict != "survived":
            break
    shutil.rmtree(tree)
    facts = {"before": before, "after": after, "verdict": verdict, "by": by, "n_tests": n_run}
    return asdict(mutant) | facts | {"seconds": round(time.monotonic() - started, 1)}


def _parts(tests: Sequence[str], measured: Measured | None) -> Iterator[list[str]]:
    """The fastest of the tests, then four times as many seconds of them, and so on."""
    if measured is None:
        yield list(tests)
        return
    part, total, limit = [], 0.0, FIRST_S
    for name in tests:
        if part and total + measured.seconds(name) > limit:
            yield part
            part, total, limit = [], 0.0, 4 * limit
        part.append(name)
        total += measured.seconds(name)
    if part:
        yield part


# ---- all of them


def main() -> None:
    """See the module."""
    arguments = _arguments()
    folder = arguments.output.resolve()
    file = folder / f"seed-{arguments.seed}.jsonl"
    library, measurements = folder / "library", folder / "measured"
    if arguments.measure is not None:
        measure(measurements / time.strftime("%Y%m%d-%H%M%S"), library, arguments.measure)
        return
    if not list(measurements.glob("*/measured.json")):
        measure(measurements / "suite", library, ["-n", str(arguments.jobs), "--dist", "loadscope"])
    drawn = sample(ROOT, FOLDERS, arguments.n, arguments.seed)
    results = {tuple(row[name] for name in Mutant.__annotations__): row for row in _read(file)}
    key = {mutant: tuple(asdict(mutant).values()) for mutant in drawn}
    measured = None
    if arguments.again is None:
        measured = Measured(sorted(path.parent for path in measurements.glob("*/measured.json")))
    for name in LIBRARIES:  # before the forks
        __import__(name)
    for mutant in drawn[arguments.job :: arguments.jobs]:
        verdict = results.get(key[mutant], {"verdict": None})["verdict"]
        if verdict not in ((None,) if measured else ("survived", "uncovered", "error")):
            continue
        if measured is None:
            tests = list(arguments.again)
        else:
            source = (ROOT / mutant.path).read_text(encoding="utf-8")
            tests = [name for name in measured.tests_of(mutant, source) if _exists(name)]
        with tempfile.TemporaryDirectory(prefix="mutant-") as place:
            row = judged(mutant, tests, measured, Path(place))
        if measured is not None or row["verdict"] not in ("survived", "error"):
            _write(file, row)
        print(
            f"{row['verdict']:9} {row['seconds']:6.1f} s  {row['path']}:{row['line']}  {row['after']}",
            flush=True,
        )
    rows = _read(file)
    counts = {
        verdict: sum(row["verdict"] == verdict for row in rows) for verdict in {r["verdict"] for r in rows}
    }
    print(f"{len(rows)} of {arguments.n} judged: {counts}", flush=True)


def _exists(test: str) -> bool:
    """Whether a measured test is still there."""
    file, _, name = test.partition("::")
    path = ROOT / file
    return path.is_file() and f"def {name.partition('[')[0]}(" in path.read_text(encoding="utf-8")


def _read(file: Path) -> list[dict]:
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _write(file: Path, row: dict) -> None:
    """Adds a row, or puts it in the place of an older one of the same mutant."""
    import fcntl

    file.parent.mkdir(parents=True, exist_ok=True)
    with (file.parent / "lock").open("w") as lock:  # several jobs write
        fcntl.flock(lock, fcntl.LOCK_EX)
        same = list(Mutant.__annotations__)
        rows = [old for old in _read(file) if any(old[name] != row[name] for name in same)]
        rows = sorted([*rows, row], key=lambda row: [str(row[name]) for name in same])
        partial = file.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        partial.replace(file)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the mutants")
    parser.add_argument("--job", type=int, default=0, help="which of them this one is")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "mutants")
    parser.add_argument("--again", nargs="+", metavar="FILE", help="judge survivors by these tests only")
    parser.add_argument("--measure", nargs=argparse.REMAINDER, help="measure tests more: arguments of pytest")
    return parser.parse_args()


if __name__ == "__main__":
    main()
