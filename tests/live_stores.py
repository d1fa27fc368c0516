"""Small live stores and what is read back of them."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np

from search_r3.index.rows.live import LiveStore

ROOT = Path(__file__).resolve().parents[1]
KEY = {"weights": "w", "corpus": "c"}
N, D = 40, 8


def vectors(n, seed):
    return np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)


def created(tmp_path, source=None, **settings):
    return LiveStore.create(tmp_path / "live", KEY, vectors(N, 0) if source is None else source, **settings)


def held(store):
    return np.array(store.rows), np.array(store.encoded_at)


def same(store, expected):
    return (store.rows == expected[0]).all() and (store.encoded_at == expected[1]).all()


def run(script, *arguments, **settings):
    """A real process that has the store's code at hand."""
    head = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
    command = [sys.executable, "-c", head + textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)
