"""Every command of an experiment means something, and `make reproduce` runs them in order."""

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import reproduce
from tests import test_readme

ROOT = Path(__file__).resolve().parents[1]
MADE_AGAIN = sorted((ROOT / "experiments").glob("*/commands.sh"))
BENCHMARKS = {"src.benchmarks.refresh": "bench_refresh", "src.benchmarks.scale": "bench_scale"}
"""Commands whose configuration has another name than their module."""


def name_of_folder(path: Path) -> str:
    return path.parent.name


# ---- commands


def commands_of_another_kind() -> list:
    """Those of `commands.sh` that `test_readme` passes by, where they stand in the READMEs."""
    commands = [
        (path.parent.name, command)
        for path in MADE_AGAIN
        for command in reproduce.experiment(path.parent.name).commands
    ]
    seen = re.compile(r"python -m src\.\w+ |make ")
    return [pytest.param(command, id=name) for name, command in commands if not seen.match(command)]


@pytest.mark.parametrize("command", commands_of_another_kind())
def test_a_command_means_something(command):
    words, _ = reproduce.argument_list(command, dict.fromkeys(reproduce.DATA, "a folder"))
    program, *arguments = words
    if program == "make":
        test_readme.check_means_something(shlex.join(words))
        return
    flag, module, *overrides = arguments
    assert (program, flag) == (sys.executable, "-m")
    assert importlib.util.find_spec(module), module
    if module in BENCHMARKS:
        test_readme._check_composes(BENCHMARKS[module], overrides, is_sweep=False)
    elif module.startswith("src."):
        test_readme.check_means_something(shlex.join(["python", *arguments]))
    else:
        source = Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in overrides if word.startswith("--"))


@pytest.mark.parametrize("path", MADE_AGAIN, ids=name_of_folder)
def test_commands_write_below_one_folder_and_read_what_earlier_ones_wrote(path):
    """Every path in `outputs/` lies below the experiment's own, and in one that an earlier command writes."""
    name, known = path.parent.name, []
    for command in reproduce.experiment(path.parent.name).commands:
        words = [word.split("=", 1)[-1] for word in shlex.split(command)]
        places = [word for word in words if word.startswith("outputs")]
        written = [
            word.split("=", 1)[-1]
            for flag, word in zip(["", *shlex.split(command)], shlex.split(command), strict=False)
            if flag in ("--output", "--reasonings") or re.match(r"(output_dir|output|QUICKSTART|HOPS)=", word)
        ]
        assert written
        assert all(place.startswith(f"outputs/reproduce/{name}") for place in places)
        for place in set(places) - set(written):
            within = [folder for folder in known if f"{place}/".startswith(f"{folder}/")]
            holds = [folder for folder in known if folder.startswith(f"{place}/")]
            assert within or holds, place
        known += written


@pytest.mark.parametrize("path", MADE_AGAIN, ids=name_of_folder)
def test_what_a_user_has_to_bring_is_declared(path):
    asked = reproduce.experiment(path.parent.name)
    text = " ".join(asked.commands)

    assert set(asked.data) == set(re.findall(r"\$(\w+)", text)) <= set(reproduce.DATA)
    if "BEIR_DIR" in asked.data:
        benchmarks = ",".join(re.findall(r"benchmarks=\[(.*?)\]", text)).split(",")
        assert set(asked.data["BEIR_DIR"]) == set(benchmarks) - {"pydocs", "entailmentbank"}  # those of data=


# ---- make reproduce


def make(*words: str, **variables: str) -> subprocess.CompletedProcess:
    command = ["make", "--no-print-directory", "reproduce", f"VENV={sys.prefix}", *words]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")} | variables
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_without_a_name_the_experiments_are_listed():
    found = make(NAME="a-machine")  # as some systems have it in the environment

    lines = found.stdout.splitlines()
    assert found.returncode == 0, found.stderr
    assert len(lines) == 2 + len(MADE_AGAIN)
    assert re.fullmatch(r"bm25 +BEIR_DIR +1 minute +Does our BM25 agree .*\?", lines[4])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["NAME=bm52"], r"reproduce: NAME=bm52 is no experiment; choose from base, .*, waiting"),
        (["NAME=speed"], r"reproduce: NAME=speed is kept as it was measured .*; choose from base, .*"),
        (
            ["NAME=bm25"],
            r"reproduce: bm25 needs BEIR_DIR=<folder .* scifact, cosqa, cranfield>: make reproduce .*",
        ),
        (["NAME=bm25", "BEIR_DIR=docs"], r"reproduce: BEIR_DIR=docs has no scifact; bm25 needs .*"),
    ],
)
def test_what_cannot_start_is_one_line_that_says_what_to_do(words, told):
    found = make(*words)

    own = [line for line in found.stderr.splitlines() if not line.startswith("make: ***")]
    assert found.returncode == 2
    assert not found.stdout
    assert re.fullmatch(told, "\n".join(own))


def some_commands(*commands: str) -> reproduce.Experiment:
    return reproduce.Experiment("some", "no time", {"BEIR_DIR": ["x"]}, commands)


def test_commands_run_in_order_up_to_the_first_that_fails(tmp_path, capfd):
    """With a folder whose name has a blank, a variable in front, and the Python that runs this."""
    folder = tmp_path / "my beir"
    said = "python -c 'import os, sys; print(sys.argv[1:], os.environ.get(\"SPEED\"))'"
    asked = some_commands(f'SPEED=2 {said} beir_dir="$BEIR_DIR"', "python -c 'raise SystemExit(3)'", said)

    code = reproduce.run(asked, {"BEIR_DIR": str(folder)}, root=tmp_path)

    told = capfd.readouterr()
    assert code == 3
    assert [line for line in told.out.splitlines() if line.startswith("['")] == [f"['beir_dir={folder}'] 2"]
    assert told.err == "reproduce: command 2 of 3 ended with 3; the same make command goes on from there\n"
    assert (tmp_path / "outputs" / "reproduce" / "some").is_dir()


def test_all_commands_that_end_well_are_0(tmp_path, capfd):
    assert reproduce.run(some_commands("python -c pass"), {}, root=tmp_path) == 0
    assert "outputs/reproduce/some/" in capfd.readouterr().out


WAITS = 'python -c \'import signal, time; open("started", "w").close(); time.sleep(60)\''


@pytest.mark.parametrize(("send", "number"), [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGINT)])
def test_a_runner_that_is_ended_ends_its_command_and_starts_no_other(tmp_path, send, number):
    """A SIGTERM reaches the runner alone; Ctrl-C reaches all that a terminal runs."""
    program = (
        "import sys; from pathlib import Path; from experiments import reproduce;"
        "asked = reproduce.Experiment('some', '', {}, [sys.argv[1], sys.argv[1]]);"
        "sys.exit(reproduce.run(asked, {}, Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", program, WAITS, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    runner = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < until:
        time.sleep(0.05)
    send(runner.pid, number)

    _, told = runner.communicate(timeout=30)
    assert runner.returncode == 128 + number
    assert told.splitlines()[-1].startswith(f"reproduce: command 1 of 2 ended with {128 + number}; ")
