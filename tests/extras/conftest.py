"""Before any tool is imported: ranx is not compiled, which takes longer than all tests."""

import os

os.environ.setdefault("NUMBA_DISABLE_JIT", "1")
