"""What the machine can do is read, not guessed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from search_r3.cli.devices import check_device, cpu_dtype, cpu_precision, cpu_ranks
from search_r3.cores import usable_cores
from search_r3.errors import UsageError
from tests.command import PYTHONPATH, run

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("fpu sse2 avx512f avx512_bf16", "bf16-mixed"),
        ("fpu amx_bf16 amx_tile", "bf16-mixed"),
        ("fpu sse2 avx2 avx512f", "32-true"),  # bf16 would be emulated, and slow
        ("", "32-true"),
    ],
)
def test_bf16_is_taken_where_the_processor_multiplies_it(tmp_path, monkeypatch, flags, precision):
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    assert cpu_precision(cpuinfo(tmp_path, flags)) == precision
    assert cpu_dtype(cpuinfo(tmp_path, flags)) == {"bf16-mixed": "bfloat16", "32-true": "float32"}[precision]


@pytest.mark.parametrize("named", ["model.path=m", "model=sentence_transformer"])
def test_an_evaluation_reads_weights_in_what_the_processor_multiplies(named):
    done = run("evaluate", named, "model.dtype=${cpu_dtype:}", "--cfg", "job", "--resolve")
    assert f"dtype: {cpu_dtype()}" in done.stdout


@pytest.mark.parametrize(
    ("limit", "precision"),
    [
        ("AVX2", "32-true"),
        ("avx512_core_vnni", "32-true"),
        ("AVX512_CORE_BF16", "bf16-mixed"),
        ("AVX10_1_512_AMX", "bf16-mixed"),
        ("DEFAULT", "bf16-mixed"),
        ("", "bf16-mixed"),
    ],
)
def test_bf16_is_not_taken_where_onednn_is_kept_from_it(tmp_path, monkeypatch, limit, precision):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert cpu_precision(cpuinfo(tmp_path, "fpu avx512_bf16")) == precision


def cpuinfo(folder, flags):
    """As Linux tells it of two processors."""
    file = folder / "cpuinfo"
    file.write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n")
    return file


def test_fp32_is_taken_where_nothing_says_what_the_processor_can(tmp_path, monkeypatch):
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    assert cpu_precision(tmp_path / "absent") == "32-true"


@pytest.mark.parametrize(("n_cores", "n_ranks"), [(1, 1), (2, 2), (3, 2), (4, 4), (7, 4), (64, 4)])
def test_ranks_of_a_small_model_are_a_power_of_two_and_at_most_four(n_cores, n_ranks):
    assert cpu_ranks(n_cores) == n_ranks


@pytest.mark.parametrize(
    ("quota", "n_cores"),
    [("100000 100000", 1), ("50000 100000", 1), ("199999 100000", 1), ("max 100000", None), ("", None)],
)
def test_cores_are_counted_as_a_container_may_use_them(tmp_path, quota, n_cores):
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    visible = len(os.sched_getaffinity(0))

    assert usable_cores(tmp_path / "cpu.max") == (n_cores or visible)
    assert usable_cores(tmp_path / "absent") == visible


@pytest.mark.parametrize("command", ["train", "evaluate", "search", "serve", "encode"])
def test_a_command_line_is_read_without_importing_what_is_slow(command):
    program = f"import search_r3.{command}, sys; print({{'torch', 'numpy', 'faiss'}} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    shown = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )

    assert shown.stdout == "set()\n"


def test_waiting_threads_sleep_unless_the_user_says_otherwise():
    program = "import os, search_r3, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    for given, expected in ((None, "PASSIVE False"), ("ACTIVE", "ACTIVE False")):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        environment |= {"PYTHONPATH": PYTHONPATH} | ({"OMP_WAIT_POLICY": given} if given else {})
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True
        )
        assert done.stdout.strip() == expected, done.stderr


LAUNCHERS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "src").rglob("*.py")
    if "search_r3" not in path.parts and path.name != "__init__.py"
)


def test_every_launcher_goes_through_the_package_that_sets_the_policy():
    """What comes of a launcher is `search_r3` first of all, and ranks and workers inherit what it sets."""
    assert "src.train" in LAUNCHERS
    for launcher in LAUNCHERS:
        source = (ROOT / Path(*launcher.split("."))).with_suffix(".py").read_text()
        assert [line for line in source.splitlines() if "import" in line] == ["from src import launch"], (
            launcher
        )
    import src

    assert "torch" not in Path(src.__file__).read_text()


def test_importing_the_package_after_torch_changes_nothing_but_what_children_inherit():
    child = "import os; print(os.environ['OMP_WAIT_POLICY'])"
    program = (
        "import subprocess, sys, torch\n"
        "facts = lambda: (torch.get_num_threads(), (torch.ones(99, 99) @ torch.ones(99, 99)).sum().item())\n"
        "before = facts()\n"
        "import search_r3\n"
        "assert before == facts()\n"
        f"sys.exit(subprocess.run([sys.executable, '-c', {child!r}]).returncode)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"PYTHONPATH": PYTHONPATH}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "PASSIVE"), done.stderr


def test_the_tests_themselves_have_the_policy():
    assert os.environ["OMP_WAIT_POLICY"]


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "CPU", "cpu0", "meta", "", "cuda:999"])
def test_a_device_that_is_not_here_is_refused_by_its_key(device):
    with pytest.raises(UsageError, match=f"^model.device={device}[: ]"):
        check_device({"device": device})


def test_a_refused_device_is_told_before_the_corpus_is_read(tmp_path):
    (tmp_path / "corpus.jsonl").write_text("no row\n")
    given = [f"model.path={ROOT / 'experiments/nano_base/model'}", f"corpus={tmp_path}", "query=a"]
    done = run("search", *given, "model.device=gpu", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: model.device=gpu: must be cpu, cuda, cuda:<number>")


@pytest.mark.parametrize("device", ["cpu", "cpu:0", "mps", "xpu:1"])
def test_a_device_without_cuda_is_left_to_torch(device):
    check_device({"device": device})
