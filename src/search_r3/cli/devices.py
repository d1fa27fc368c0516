"""Which accelerators this process may use, answered without importing torch (three seconds)."""

import contextlib
import ctypes
import importlib.metadata
import os
import re
from collections.abc import Mapping
from pathlib import Path

from search_r3.cores import usable_cores
from search_r3.errors import UsageError

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
_ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Variables that keep oneDNN, which multiplies for torch, from newer instructions."""

_ISA_WITHOUT_BF16 = frozenset(
    {"sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni"}
)

DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "xla")
"""Kinds of devices of torch that a model can be read on."""


def visible_gpus() -> int:
    """CUDA devices that the driver knows and CUDA_VISIBLE_DEVICES does not hide.

    NVML is asked, because it leaves the process free to fork later; the CUDA runtime does not.
    """
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return 0
    count = ctypes.c_uint(0)
    if nvml.nvmlInit_v2() != 0 or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return 0
    nvml.nvmlShutdown()
    return min(count.value, _listed(os.environ.get("CUDA_VISIBLE_DEVICES"), count.value))


def _listed(visible: str | None, count: int) -> int:
    """How many devices CUDA_VISIBLE_DEVICES lists: CUDA stops reading at the first invalid entry."""
    if visible is None:
        return count
    number = 0
    for entry in visible.split(","):
        entry = entry.strip()
        if not entry or entry.startswith("-") or (entry.isdigit() and int(entry) >= count):
            break
        number += 1
    return number


def check_device(model: Mapping[str, object]) -> None:
    """Refuses a `model.device` of a command that only reads, if there is none of that name here.

    Raises:
        UsageError: With the key and what it may be.
    """
    device = str(model.get("device", "cpu"))
    named = re.fullmatch(r"([a-z]+)(:[0-9]+)?", device)
    if named is None or named[1] not in DEVICES:
        raise UsageError(
            f"model.device={device}: must be cpu, cuda, cuda:<number>, or {', '.join(DEVICES[2:])}"
        )
    if named[1] != "cuda":
        return
    is_cpu_build = torch_is_cpu_build()
    gpus = 0 if is_cpu_build else visible_gpus()
    if gpus == 0:
        why = "the installed torch is a CPU build" if is_cpu_build else "none is visible"
        raise UsageError(
            f"model.device={device} needs a CUDA device: {why}. model.device=cpu runs without one"
        )
    if named[2] and int(named[2][1:]) >= gpus:
        raise UsageError(f"model.device={device}: {gpus} CUDA devices are visible, the first is cuda:0")


def cpu_ranks(n_cores: int | None = None, most: int = 4) -> int:
    """Processes that share the steps of a small model: 1, 2 or 4, and no more than there are cores.

    A small model's products are too small for threads: two processes of one thread take 0.66 of the time of
    one process, with one thread or two (nano, two cores).

    Args:
        n_cores: None for `usable_cores`.
        most: each holds the run's data and model anew.
    """
    n_cores = usable_cores() if n_cores is None else n_cores
    return 1 << (min(n_cores, most).bit_length() - 1)


def torch_is_cpu_build() -> bool:
    """Whether the installed torch says in its version that it was built without CUDA."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("torch").endswith("+cpu")
    return False


def cpu_precision(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The precision that trains fastest on this CPU, as `Trainer(precision=...)` takes it.

    "bf16-mixed" where the processor multiplies bf16 in hardware (it halves the time of a step, see
    experiments/README.md), "32-true" where it does not, where ONEDNN_MAX_CPU_ISA keeps oneDNN from it, and
    where Linux does not say.
    """
    limit = next((os.environ[name] for name in _ISA_LIMITS if name in os.environ), "")
    if limit.lower() in _ISA_WITHOUT_BF16:
        return "32-true"
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, flags = line.partition(":")
            if name.strip() == "flags":
                return "32-true" if _BF16_FLAGS.isdisjoint(flags.split()) else "bf16-mixed"
    return "32-true"


def cpu_dtype(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The dtype that weights are read in fastest on this CPU: as `cpu_precision`, "bfloat16" or "float32"."""
    return "bfloat16" if cpu_precision(cpuinfo) == "bf16-mixed" else "float32"
