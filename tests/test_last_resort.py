"""However a command ends, one line on standard error says why, and the exit code is not 0."""

import errno
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import search_r3.__main__
from search_r3.cli.last_resort import run_command
from search_r3.cli.run_folder import Failed, Interrupted, recorded
from search_r3.data.jsonl import DataError
from search_r3.errors import UsageError
from search_r3.files import REMEDIES
from search_r3.folders import make_folder
from tests.command import PYTHONPATH
from tests.tiny_stage import write_configs

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "src.train",
    "src.evaluate",
    "src.search",
    "src.serve",
    "src.demo",
    "src.encode",
    "src.export",
    "src.tune",
    "src.report",
    "src.check",
    "src.compare",
    "src.upgrade",
    "src.base",
    "src.gate",
    "src.bench",
    "src.entailmentbank",
    "src.benchmarks.base_parity",
    "src.benchmarks.gpu",
    "src.benchmarks.growth",
    "src.benchmarks.memory",
    "src.benchmarks.popularity",
    "src.benchmarks.padding",
    "src.benchmarks.prefix",
    "src.benchmarks.refresh",
    "src.benchmarks.scale",
    "src.benchmarks.waiting",
)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_a_terminal_that_lacks_a_character_gets_its_escape(monkeypatch, encoding):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))

    def table():
        print("0.1 → 0.2")
        return 0

    with pytest.raises(SystemExit) as ended:
        run_command(table)
    assert ended.value.code == 0
    expected = "0.1 → 0.2" if encoding == "utf-8" else "0.1 \\u2192 0.2"
    assert written.getvalue().decode(encoding).strip() == expected


def test_the_package_tells_its_version(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["search-r3", "--version"])
    search_r3.__main__.main()
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert capsys.readouterr().out == f"search-r3 {declared}\n"


def test_every_module_that_can_be_run_ends_in_the_last_resort():
    found = {}
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if '__name__ == "__main__"' in text:
            found[".".join(path.relative_to(ROOT).with_suffix("").parts)] = text

    launchers = {name for name in found if not name.startswith("src.search_r3.")}
    assert launchers == set(COMMANDS)
    behind = {name: name.replace("src.", "src.search_r3.", 1) for name in COMMANDS}
    assert found.keys() - launchers == {"src.search_r3.__main__", *behind.values()}
    for name in COMMANDS:
        assert f'launch("{name.removeprefix("src.")}")' in found[name]
        assert found[behind[name]].endswith('if __name__ == "__main__":\n    run_command(main)\n'), name


def arguments(command, place, tmp_path, nano_folder):
    """A command line that is right but for the place that it writes to."""
    tiny = ["--config-dir", str(write_configs(tmp_path / "configs"))]
    tiny += ["stage=tiny", "data=tiny", "model=tiny"]
    if command == "src.train":
        return [*tiny, f"output_dir={place}"]
    if command == "src.evaluate":
        return ["modes=[bm25]", f"output_dir={place}"]
    if command in ("src.search", "src.serve"):
        corpus = tmp_path / "corpus.jsonl"
        corpus.write_text('{"_id": "d", "text": "a text"}\n')
        own = "query=x" if command == "src.search" else "port=0"
        return [f"model.path={nano_folder}", f"corpus={corpus}", own, f"cache_dir={place}"]
    if command in ("src.encode", "src.export"):
        corpus = tmp_path / "corpus.jsonl"
        corpus.write_text('{"_id": "d", "text": "a text"}\n')
        own = ["to=faiss"] if command == "src.export" else []
        return [f"model.path={nano_folder}", f"corpus={corpus}", *own, f"output={place}/vectors"]
    if command == "src.tune":
        space = tmp_path / "space.yaml"
        space.write_text("stage.module.learning_rate: {low: 0.1, high: 1.0}\n")
        return [*tiny, f"space={space}", f"study={place}.db"]
    if command == "src.report":
        file = tmp_path / "metrics.json"
        row = {"benchmark": "b", "mode": "bm25", "model": "bm25", "n_queries": 2, "n_docs": 3}
        row |= {"metrics": {"ndcg@10": 0.5}, "ci95": {"ndcg@10": [0.4, 0.6]}}
        content = {"command": "c", "commit": "1", "seed": 1, "rows": [row]}
        file.write_text(json.dumps(content))
        return [str(file), f"--output={place}/metrics.json"]
    if command == "src.compare":
        files = {"a": "q Q0 d 1 1 a", "b": "q Q0 d 1 2 b", "qrels": "q 0 d 1"}
        for name, line in files.items():
            (tmp_path / name).write_text(f"{line}\n")
        return [
            *(str(tmp_path / name) for name in "ab"),
            f"--qrels={tmp_path / 'qrels'}",
            f"--output={place}",
        ]
    if command in ("src.check", "src.upgrade", "src.benchmarks.popularity"):
        return [str(place)]
    if command == "src.bench":
        return ["rows=[rank]", f"output_dir={place}"]
    if command == "src.gate":
        return [str(tmp_path), f"--output={place}/mode/auto.yaml"]
    if command == "src.entailmentbank":
        return [str(tmp_path), f"--output={place}"]
    if command == "src.demo":
        return [f"--folder={place}"]
    if command == "src.base":
        return [f"--output={place}"]
    if command == "src.benchmarks.base_parity":
        return [f"--folder={place}"]
    if command == "src.benchmarks.gpu":
        return ["--device=cpu", "--shape=tiny", f"--output={place}/gpu.json"]
    if command == "src.benchmarks.growth":
        return [f"--output={place}"]
    if command == "src.benchmarks.padding":
        return [str(tmp_path), f"--model={nano_folder}", f"--output={place}/padding.json"]
    if command == "src.benchmarks.prefix":
        return [f"--output={place}/prefix.json"]
    if command == "src.benchmarks.memory":
        return [f"--output={place}/memory.json"]
    if command == "src.benchmarks.waiting":
        return [f"--output={place}/waiting.json"]
    if command == "src.benchmarks.refresh":
        return [f"model.path={nano_folder}", f"output_dir={place}"]
    drift = tmp_path / "drift"
    drift.mkdir(exist_ok=True)
    (drift / "facts.json").write_text("{}")
    return [f"drift_dir={drift}", f"output_dir={place}"]


pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a module as `python -m` does; exit code and what is on standard error."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)

    def run_module(command, argv):
        monkeypatch.setattr(sys, "argv", [command, *argv])
        with pytest.raises(SystemExit) as end:
            runpy.run_module(command, run_name="__main__")
        return end.value.code, capsys.readouterr().err

    yield run_module
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("place", ["below a file", "a name too long", "a link to nowhere"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_made_is_one_line(run, tmp_path, nano_folder, command, place):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "deeper")
    path = {"below a file": "file/x", "a name too long": "n" * 300, "a link to nowhere": "link"}[place]
    path += "/below" if place == "a link to nowhere" else ""

    code, told = run(command, arguments(command, path, tmp_path, nano_folder))

    assert code in (1, 2)
    (line,) = told.strip().splitlines()
    assert line.startswith("error: ")
    assert path[:20] in line


@pytest.mark.parametrize("command", COMMANDS)
def test_an_argument_that_no_command_has_is_one_line(run, command):
    code, told = run(command, ["--no-such-flag"])

    assert code == 2
    assert told.startswith("error: ")
    assert len(told.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (UsageError("seed=x: no"), 2, "error: seed=x: no"),
        (DataError("c.jsonl", 5, "no id"), 2, "error: c.jsonl, line 5: no id\n"),
        (ValueError("two\nlines"), 1, "error: ValueError: two lines (tests/test_last_resort.py:"),
        (MemoryError(), 1, "error: MemoryError (tests/"),
        (OSError(30, "Read-only file system", "x/y"), 1, "error: x/y: Read-only file system"),
        (BrokenPipeError(32, "Broken pipe"), 1, "error: standard output was closed"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (SystemExit("bad words"), 1, "error: bad words"),
        (SystemExit(3), 3, "error: ended with exit code 3"),
        (GeneratorExit(), 1, "error: GeneratorExit"),
        (SystemExit(), 0, ""),
        (SystemExit(0), 0, ""),
        (Failed("told by then"), 1, ""),
        (Interrupted("told by then"), 130, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_whatever_is_raised_ends_in_a_line_and_a_code(capsys, raised, code, line):
    def main():
        raise raised

    with pytest.raises(SystemExit) as end:
        run_command(main)

    told = capsys.readouterr().err
    assert end.value.code == code
    assert told.startswith(line)
    assert len(told.splitlines()) == (1 if line else 0)


def test_a_signal_that_comes_after_the_job_changes_nothing():
    program = (
        "import atexit, os, signal\n"
        "from search_r3.cli.last_resort import run_command\n"
        "def interrupt(*_):\n    raise KeyboardInterrupt\n"
        "signal.signal(signal.SIGTERM, interrupt)\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "run_command(lambda: 0)"
    )
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_code_of_a_command_that_ran_is_its_own(capsys):
    with pytest.raises(SystemExit) as end:
        run_command(lambda: 5)

    assert end.value.code == 5
    assert capsys.readouterr().err == ""


OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 110.00 MiB. GPU 0 has a total capacity of 79.18 GiB of which "
    "1.25 MiB is free. Process 608 has 66.00 MiB memory in use. See documentation for Memory Management (https://pytorch.org)"
)


@pytest.mark.parametrize(
    "raised",
    [
        torch.OutOfMemoryError(OUT_OF_MEMORY),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["GPU", "cuBLAS", "CPU"],
)
def test_who_runs_out_of_memory_is_told_which_keys_need_less(tmp_path, capsys, raised):
    with pytest.raises(Failed), recorded(tmp_path, "job.log"):
        raise raised
    with pytest.raises(SystemExit):
        run_command(lambda: (_ for _ in ()).throw(raised))

    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 2  # of a job with a run folder, and of a command without one
    for line in told:
        assert "model.token_budget" in line
        assert "model.gradient_checkpointing=true" in line
        assert "Process 608" not in line
        assert ("1.25 MiB is free. Forwards" in line) == (str(raised) == OUT_OF_MEMORY)


def test_a_tensor_larger_than_the_memory_is_told_so(capsys):
    with pytest.raises(SystemExit):
        run_command(lambda: torch.empty(2**52))

    assert "model.token_budget" in capsys.readouterr().err


@pytest.mark.parametrize("raised", [ValueError("no row"), SystemExit("no row"), MemoryError("no row")])
def test_a_failed_job_is_told_and_recorded(tmp_path, capsys, raised):
    with pytest.raises(Failed, match="no row"), recorded(tmp_path, "job.log"):
        raise raised

    assert f"error: {type(raised).__name__}: no row" in capsys.readouterr().err
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"


def test_a_job_whose_failure_cannot_be_recorded_is_told_all_the_same(tmp_path, capsys):
    def job():
        (tmp_path / "status.json").unlink()
        (tmp_path / "status.json").mkdir()  # no file can take its place
        raise ValueError("no row")

    with pytest.raises(Failed), recorded(tmp_path, "job.log"):
        job()

    assert "error: ValueError: no row" in capsys.readouterr().err


def test_a_closed_pipe_and_a_full_disk_are_told():
    program = (
        "from search_r3.cli.last_resort import run_command\nrun_command(lambda: print('x' * 10**6) or 0)"
    )
    command = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    told = process.stderr.read()
    process.stderr.close()

    assert process.wait() == 1
    assert told == "error: standard output was closed before everything was written\n"
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
        assert (done.returncode, done.stderr) == (
            1,
            f"error: No space left on device; {REMEDIES[errno.ENOSPC]}\n",
        )


def test_a_folder_is_made_with_its_parents_and_nothing_is_left_in_it(tmp_path):
    folder = tmp_path / "a" / "b"

    assert make_folder(folder) == folder
    assert list(folder.iterdir()) == []
    assert make_folder(folder) == folder
    (folder / "file").touch()
    with pytest.raises(UsageError, match=r"^store=.*file: cannot be written to \(File exists\)"):
        make_folder(folder / "file", "store")


def test_a_forked_worker_ends_by_sigterm_without_a_word_and_the_command_is_interrupted():
    program = (
        "import os, signal, time\n"
        "from search_r3.cli.command import interrupter\n"
        "signal.signal(signal.SIGTERM, interrupter())\n"
        "awake, told = os.pipe()\n"
        "worker = os.fork()\n"
        "if worker == 0: os.write(told, b'x'); [time.sleep(0.1) for _ in range(600)]\n"
        "os.read(awake, 1)\n"  # Python forgets a signal that comes while it forks
        "os.kill(worker, signal.SIGTERM)\n"
        "print(os.WTERMSIG(os.waitpid(worker, 0)[1]))\n"
        "try: os.kill(os.getpid(), signal.SIGTERM); [time.sleep(0.1) for _ in range(600)]\n"
        "except KeyboardInterrupt: print('interrupted')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == ([str(int(signal.SIGTERM)), "interrupted"], "")
