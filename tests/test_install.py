"""The package as it is installed: from a checkout by `make setup`, from a wheel, and not at all."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import search_r3
from search_r3.shipped import CONF, ROOT
from search_r3.web.app import FILES
from tests.command import ENVIRONMENT, PYTHONPATH, run

LAUNCHED = """
import runpy, sys
sys.argv = ["src.train", "--help"]
try: runpy.run_module("src.train", run_name="__main__")
except SystemExit: pass
print(sorted(name for name in sys.modules if name.startswith("src")))
"""


def test_the_tests_are_of_this_checkout():
    assert Path(search_r3.__file__).parents[2] == Path(__file__).resolve().parents[1], "run: make setup"


def test_a_launcher_loads_the_package_under_one_name():
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHED],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.splitlines()[-1] == "['src']"


@pytest.mark.parametrize("command", ["train", "benchmarks.refresh"])
def test_a_python_without_the_package_names_make_setup(command):
    done = subprocess.run(
        [sys.executable, "-S", "-m", f"src.{command}"],  # a Python without site-packages has nothing of ours
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "make setup" in done.stderr
    assert f".venv/bin/python -m src.{command}" in done.stderr


def test_a_package_of_another_checkout_is_not_taken_for_this_one(tmp_path):
    (tmp_path / "search_r3").mkdir()
    (tmp_path / "search_r3" / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-m", "src.train", "--help"],
        cwd=ROOT,
        env=ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{PYTHONPATH}"},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert str(tmp_path / "search_r3") in done.stderr
    assert "make setup" in done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """`bin` of an environment that has the wheel, and the libraries of this one, but not the checkout."""
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(place), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(place.glob("*.whl"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place / "venv")], check=True)
    python = place / "venv" / "bin" / "python"
    install = [*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    libraries = [path for path in sys.path if path.endswith("site-packages")] or [
        sysconfig.get_path("purelib")
    ]
    packages = next((place / "venv" / "lib").glob("python*/site-packages"))
    (packages / "libraries.pth").write_text("\n".join(libraries) + "\n")
    return python.parent


def call(installed: Path, folder: Path, *arguments: object) -> str:
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [installed / "search-r3", *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_has_every_configuration_and_the_base_that_they_name(installed):
    with zipfile.ZipFile(next(installed.parents[1].glob("*.whl"))) as wheel:
        names = set(wheel.namelist())

    assert {f"search_r3/{path.relative_to(ROOT)}" for path in CONF.rglob("*.yaml")} <= names
    for name in ("nano_base", "nano_demo"):
        assert f"search_r3/experiments/{name}/model/model.safetensors" in names
    assert {f"search_r3/web/page/{name}" for name, _ in FILES.values()} <= names
    assert not any(name.startswith(("src/", "tests/", "train")) for name in names)


def write_collection(folder: Path) -> None:
    """Sixteen documents in BEIR's layout, each asked for once, half of them in the test split."""
    (folder / "qrels").mkdir(parents=True)
    words = [
        "ant",
        "bee",
        "cat",
        "dog",
        "elk",
        "fox",
        "gnu",
        "hen",
        "ibis",
        "jay",
        "kite",
        "lark",
        "mole",
        "newt",
        "owl",
        "pug",
    ]
    documents = [{"_id": f"d{word}", "title": "", "text": f"the {word} lives here"} for word in words]
    queries = [{"_id": f"q{word}", "text": f"where is the {word}"} for word in words]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, part in (("train", words[:8]), ("test", words[8:])):
        lines = [f"q{word}\td{word}\t1\n" for word in part]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))


def test_a_wheel_trains_goes_on_and_evaluates_in_another_folder(installed, nano_folder, tmp_path):
    write_collection(tmp_path / "animals")
    first = [f"model.path={nano_folder}", "data=beir", "data.path=animals", "stage.datamodule.batch_size=4"]

    assert "train one stage" in call(installed, tmp_path)
    call(installed, tmp_path, "train", "stage=sft", *first, "stage.trainer.max_steps=2", "output_dir=run")
    call(installed, tmp_path, "train", "resume=run", "stage.trainer.max_steps=3")
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "`python -m search_r3.evaluate model.path=<folder>`" in card
    assert "python -m src." not in card
    modes = "modes=[bm25,direct]"
    call(installed, tmp_path, "evaluate", "model.path=run/model", "benchmarks=[animals]", "beir_dir=.", modes,
         "output_dir=scores")  # fmt: skip

    content = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert content["commit"].startswith("search-r3 ")
    assert [(row["mode"], row["n_queries"]) for row in content["rows"]] == [("bm25", 8), ("direct", 8)]


def test_a_wheel_finds_the_base_that_it_ships(installed, tmp_path):
    config = call(installed, tmp_path, "train", "stage=sft", "--cfg", "job", "--resolve")

    base = Path(next(line for line in config.splitlines() if "nano_base" in line).split(": ")[1])
    assert (base / "model.safetensors").is_file()
    assert not base.is_relative_to(ROOT)


def test_a_wheel_names_the_commands_that_it_has(installed, tmp_path):
    for command in ("train", "search", "report", "gate", "compare"):
        told = call(installed, tmp_path, command, "--help")
        assert f"python -m search_r3.{command}" in told
        assert "python -m src." not in " ".join(told.split())
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    program = [installed / "search-r3", "report", "nowhere"]
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stderr == "error: nowhere: no such file or folder\n"
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [*program[:2], "empty"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert "`python -m search_r3.evaluate` writes it" in done.stderr


def test_an_unknown_command_is_told_the_nearest():
    done = subprocess.run(
        [sys.executable, "-m", "search_r3", "trian"],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 2
    assert "train" in done.stderr


def test_the_package_itself_as_a_command_is_recorded_as_it_was_called():
    program = "from search_r3.cli.command_line import command_line, resume_command; from pathlib import Path"
    code = (
        f"{program}\nimport sys, importlib.util\n"
        "sys.modules['__main__'].__spec__ = importlib.util.find_spec('search_r3.__main__')\n"
        "print(command_line()); print(resume_command(Path('run')))"
    )
    arguments = [sys.executable, "-c", code, "train", "stage=sft"]
    done = subprocess.run(arguments, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "python -m search_r3 train stage=sft",
        "python -m search_r3 train resume=run",
    ]


def test_help_of_a_command_says_how_it_is_called():
    assert "python -m src.train" in run("train", "--help").stdout
