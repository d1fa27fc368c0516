"""What is measured of one side at a time: the start of a command, and the peak of a step's memory."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from search_r3.benchmarks.memory import figure
from search_r3.benchmarks.timing import seconds_of, spread

if TYPE_CHECKING:
    from search_r3.benchmarks.peers.subjects import Subject, Texts

STARTS: Mapping[str, tuple[str, ...]] = {
    "--help": ("search_r3.train", "--help"),
    "--cfg job": ("search_r3.train", "stage=sft", "--cfg", "job"),
    "a refusal": ("search_r3.train", "stage=sft", "stage.trainer.max_stesp=1"),
}
"""Commands that do no work, by what they show."""

START_AIM_S = 0.5


def starts(rounds: int) -> list[dict]:
    """A row per command of `STARTS`: seconds from a shell to the end."""
    found = []
    for name, arguments in STARTS.items():
        command = [sys.executable, "-m", *arguments]

        def run(command: list[str] = command) -> None:
            subprocess.run(command, capture_output=True, check=False)

        run()
        seconds = [seconds_of(run) for _ in range(rounds)]
        found.append(
            {"what": name, "unit": "seconds", "ours": spread(seconds), "rounds": rounds, "equal": []}
        )
    return found


def peak_of(
    kind: str, side: str, subject: "Subject", texts: "Texts", sizes: Mapping[str, int], work: Path
) -> dict:
    """MiB that a process holds at most while it takes two steps of a kind.

    What this process holds for both sides (Python, libraries, our model) is in the figures of both; where the
    peer has a model of its own, the bytes of ours are taken out.

    Args:
        kind: "sft" or "grpo".
        side: "ours" or "peer".
        subject: the model.
        texts: of a step.
        sizes: `new_tokens` and `group_size`.
        work: where the peer writes.
    """
    from search_r3.benchmarks.replay import forget_peak

    step = _steps(kind, side, subject, texts, sizes, work)
    forget_peak()
    for _ in range(2):
        step()
    peak = figure("VmHWM") / 1024
    ours = sum(each.numel() * each.element_size() for each in subject.embedder.parameters()) / 2**20
    return {"mib": peak if side == "ours" else peak - ours}


def _steps(
    kind: str, side: str, subject: "Subject", texts: "Texts", sizes: Mapping[str, int], work: Path
) -> Callable[[], None]:
    from search_r3.benchmarks.peers import grpo, sft
    from search_r3.benchmarks.peers.subjects import sentence_transformers

    if kind == "sft" and side == "ours":
        return sft.Ours(subject, texts).step
    if kind == "sft":
        model = sentence_transformers(subject, ("sdpa",))["sdpa"]
        return sft.Theirs(subject, model, texts, sft.CHUNK_ROWS[1]).step
    given = (subject, texts, sizes["new_tokens"], sizes["group_size"])
    if side == "ours":
        return grpo.Ours(*given).step
    return grpo.Stepwise(grpo.trainer(*given, grpo.MICRO_BATCHES[-1], work)).step


def memory_row(ours: Mapping[str, float], theirs: Mapping[str, float], peer: str) -> dict:
    """The row of two peaks."""
    ratio = round(theirs["mib"] / ours["mib"], 3)
    figures = {
        side: {name: round(each["mib"], 1) for name in ("median", "lowest", "highest")}
        for side, each in (("ours", ours), ("peer", theirs))
    }
    return {
        "unit": "MiB at most", "peer_name": peer, **figures, "ratio": ratio, "spread": [ratio, ratio],
        "rounds": 1, "equal": [],
    }  # fmt: skip
