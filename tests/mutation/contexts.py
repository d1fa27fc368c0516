"""Which test runs which line: a pytest plugin, and a hook for the processes that tests start.

`coverage` is started by `sitecustomize` (`hook` is its text) in every Python process of the measured run.
A process of pytest labels what it measures `<test>|setup` or `<test>|run`; one that a test started finds the
test's name in a file named after the process that started it. Lines that run at import have no label.
"""

import atexit
import json
import os
import time
from collections.abc import Iterator
from multiprocessing.util import Finalize, register_after_fork
from pathlib import Path

import pytest

FOLDER = "MUTATION_CONTEXTS"
"""Environment variable: the folder in which measurements are put."""


def hook(library: Path) -> str:
    """The text of a `sitecustomize.py` that measures, with `coverage` from a folder of its own."""
    return (
        "import os, sys\n"
        f"if {FOLDER!r} in os.environ:\n"
        f"    sys.path.append({str(library)!r})\n"
        "    from tests.mutation.contexts import measure\n"
        "    measure()\n"
    )


def measure() -> None:
    """Measures this process to its end, and those that multiprocessing forks from it to theirs."""
    measured = _started()
    atexit.register(_finish, measured, os.getpid())
    register_after_fork(measured, _measure_forked)


def _measure_forked(of_parent: object) -> None:
    of_parent.stop()
    Finalize(None, _finish, (_started(), os.getpid()), exitpriority=0)


def _started() -> object:
    import coverage

    folder = Path(os.environ[FOLDER])
    coverage.measured = coverage.Coverage(
        data_file=folder / "lines",
        data_suffix=f"{os.getpid()}-{time.monotonic_ns()}",
        source=["src/search_r3"],
        context=_test_above(folder),
        config_file=False,
    )
    coverage.measured.start()
    return coverage.measured


def _finish(measured: object, process: int) -> None:
    if os.getpid() == process:
        measured.stop()
        measured.save()


def _test_above(folder: Path) -> str | None:
    """The test that started this process; None in a process of pytest."""
    process = os.getppid()
    while process > 1:
        note = folder / f"test-of-{process}"
        if note.exists():
            return note.read_text(encoding="utf-8") or None
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
        process = int(stat.rpartition(")")[2].split()[1])
    return None


class Contexts:
    """The plugin of one pytest process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.note = folder / f"test-of-{os.getpid()}"
        self.facts: dict[str, dict] = {}

    def _switch(self, label: str) -> None:
        import coverage

        self.note.write_text(label, encoding="utf-8")
        if hasattr(coverage, "measured"):
            coverage.measured.switch_context(label)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        self._switch(f"{item.nodeid}|setup")
        definitions = item._fixtureinfo.name2fixturedefs.values()
        shared = sorted(
            f"{each[-1].baseid}::{each[-1].argname}" for each in definitions if each[-1].scope != "function"
        )
        self.facts[item.nodeid] = {"shared": shared, "seconds": 0.0, "outcome": "passed"}
        yield

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        self._switch(f"{item.nodeid}|run")
        yield

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        yield
        self._switch("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid not in self.facts:
            return
        facts = self.facts[report.nodeid]
        facts["seconds"] += report.duration
        if report.outcome != "passed":
            facts["outcome"] = report.outcome

    def pytest_sessionfinish(self) -> None:
        self.note.unlink(missing_ok=True)
        path = self.folder / f"tests-{os.getpid()}.json"
        path.write_text(json.dumps(self.facts), encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the plugin where tests run: in every worker, and in a process without any."""
    if FOLDER in os.environ and (
        hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None)
    ):
        config.pluginmanager.register(Contexts(Path(os.environ[FOLDER])), "contexts")
