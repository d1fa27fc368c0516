"""What this project keeps other packages from doing to a GPU; seen on a CPU by what they are left."""

import os
import subprocess
import sys

import torch
from conftest import build_embedder


def python(code, folder):
    """What a process prints that finds a package `jax` in `folder`."""
    package = folder / "jax"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("print('jax takes the memory')\n")
    (package / "lax.py").write_text("def top_k(scores, k):\n    return scores, k\n")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bm25_does_not_start_jax_which_would_take_the_memory_of_a_gpu(tmp_path):
    assert "jax takes the memory" in python("import bm25s", tmp_path / "bare")  # the test can fail
    code = "import search_r3.index.backends.bm25\nprint('ranks')\nimport jax"
    said = python(code, tmp_path / "ours")
    assert said.split("\n")[:2] == ["ranks", "jax takes the memory"]  # who wants it has it


def test_a_jax_that_is_there_already_stays(tmp_path):
    code = "import jax\nimport search_r3.index.backends.bm25\nimport sys\nprint(sys.modules['jax'] is jax)"
    assert "True" in python(code, tmp_path / "there")


def test_cudnn_is_none_of_the_kernels_of_attention():
    torch.backends.cuda.enable_cudnn_sdp(True)
    build_embedder()
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.mem_efficient_sdp_enabled()
