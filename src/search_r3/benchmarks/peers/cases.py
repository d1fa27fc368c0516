"""The rows of a benchmark as cases: one model, so many threads, so many busy processes beside it.

A case is measured in a process of its own, so that its threads, its memory and what another case has trained
do not reach it, and is kept in a file: a call that was interrupted goes on behind the last one.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from search_r3.benchmarks.peers.names import AIMS, NANO_ALONE, NANO_NAME, ONCE, ROWS, WITHOUT_MODEL
from search_r3.benchmarks.waiting import beside
from search_r3.cli.run import HANDED_DOWN
from search_r3.files import write_json
from search_r3.records import read_json_if_there

SIDES, STEPS = ("ours", "peer"), ("sft", "grpo")
DURATION = ("rounds", "max_seconds")
"""Settings that say how long a case is timed."""


class CaseError(RuntimeError):
    """A case could not be measured; the message says why."""


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        row: a name of `ROWS`.
        model: "nano" or "smollm2_135m"; empty where the row has none.
        threads: of torch, FAISS and tokenizers.
        busy: processes that only count beside it.
        part: what of the row is measured alone, such as "sft peer"; empty where it is whole.
    """

    row: str
    model: str
    threads: int
    busy: int
    part: str = ""

    @property
    def name(self) -> str:
        """Of its file."""
        words = (
            self.row,
            self.model,
            self.part.replace(" ", "-"),
            f"threads{self.threads}",
            f"busy{self.busy}",
        )
        return "-".join(filter(None, words))


def planned(
    rows: Sequence[str], models: Sequence[str], threads: Sequence[int], busy: Sequence[int]
) -> list[Case]:
    """All cases, the most valuable row first."""
    found = []
    for row in (row for row in ROWS if row in rows):
        its_models = [""] if row in WITHOUT_MODEL else models
        its_models = [name for name in its_models if name == NANO_NAME or row not in NANO_ALONE]
        its_threads, its_busy = ([max(threads)], [min(busy)]) if row in ONCE else (threads, busy)
        parts = [f"{step} {side}" for step in STEPS for side in SIDES] if row == "memory" else [""]
        found += [
            Case(row, model, n_threads, n_busy, part)
            for model in its_models
            for n_threads in its_threads
            for n_busy in its_busy
            for part in parts
        ]
    return found


def aim_of(case: Case) -> float | None:
    """The ratio that it should reach; None where there is none."""
    return AIMS.get((case.row, case.model), AIMS.get((case.row, "")))


@dataclass(frozen=True)
class Keeper:
    """Where cases are kept, and what makes one another.

    Attributes:
        folder: a JSON file per case is in it.
        made_with: settings, machine and commit; a case that was made with others is measured again.
    """

    folder: Path
    made_with: Mapping[str, object]

    def read(self, case: Case, timed_as_long: bool = True) -> dict | None:
        """The result of an earlier call with the same settings; None where there is none.

        Args:
            case: what was measured.
            timed_as_long: whether rounds and seconds must be the same too.
        """
        found = read_json_if_there(self.folder / f"{case.name}.json")
        made_with, key = found.get("made_with"), self._key(case)
        if made_with and not timed_as_long:
            made_with, key = _without_duration(made_with), _without_duration(key)
        return found["result"] if made_with == key else None

    def write(self, case: Case, result: Mapping) -> None:
        write_json(self.folder / f"{case.name}.json", {"made_with": self._key(case), "result": result})

    def _key(self, case: Case) -> dict:
        return json.loads(json.dumps({**self.made_with, "case": asdict(case)}))


def _without_duration(made_with: Mapping) -> dict:
    settings = {name: value for name, value in made_with["settings"].items() if name not in DURATION}
    return {**made_with, "settings": settings}


def kept_cases(folder: Path) -> list[Case]:
    """All cases of today's rows that are kept in a folder, in the order of the table."""
    told = [read_json_if_there(file).get("made_with", {}).get("case", {}) for file in folder.glob("*.json")]
    found = [Case(**case) for case in told if case.get("row") in ROWS]
    return sorted(found, key=lambda case: (list(ROWS).index(case.row), astuple(case)))


def measured(case: Case, settings: Mapping[str, object], work: Path) -> dict:
    """Measures a case in a process of its own, which other processes keep busy where it says so.

    Args:
        case: what is measured.
        settings: of `search_r3.benchmarks.peers.child`.
        work: a folder that the process may write to.

    Raises:
        CaseError: If the process fails; with the last line that it said.
    """
    given = {"case": asdict(case), "settings": dict(settings), "work": str(work)}
    program = "from search_r3.benchmarks.peers.child import main; main()"
    work.mkdir(parents=True, exist_ok=True)
    with beside(case.busy), (work / f"{case.name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", program, json.dumps(given)], env=_environment(case.threads),
            stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
        with _ended_with(process):
            said, _ = process.communicate()
    lines = said.splitlines()
    if process.returncode != 0 or not lines:
        told = (work / f"{case.name}.log").read_text("utf-8").strip().splitlines()
        last = told[-1] if told else f"exit code {process.returncode}"
        raise CaseError(f"{case.name}: {last}; all of it: {work / f'{case.name}.log'}")
    return json.loads(lines[-1])


def _environment(n_threads: int) -> dict[str, str]:
    """What threads are read from when libraries are loaded; nothing is fetched from anywhere.

    The run folder that this process hands down to ranks of its own is left out: a case may be a run itself.
    """
    own = {name: value for name, value in os.environ.items() if name not in HANDED_DOWN}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(n_threads))
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return own | threads | quiet | {"TOKENIZERS_PARALLELISM": "true" if n_threads > 1 else "false"}


@contextlib.contextmanager
def _ended_with(process: subprocess.Popen) -> Iterator[None]:
    """Ends the process, and all that it has started in its session, where the body is interrupted."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
