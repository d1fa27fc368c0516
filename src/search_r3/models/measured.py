"""Which precision and which attention take a model's forward and backward the least time on this machine.

bf16 products win where the processor has units for them and the model is wide enough, and lose elsewhere; the
backward of sdpa is slow on some processors. No rule knows all of them, and a measurement takes a second.
"""

import itertools
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from search_r3.files import write_first
from search_r3.models.checksums import ModelFolderError
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.prefix import pad_left

MEASURED = "measured"
"""Instead of a precision or an attention: the one that takes less time here."""

PRECISIONS, ATTENTIONS = ("bf16-mixed", "32-true"), ("eager", "sdpa")
CLEARLY = 1.1
"""How many times as fast another way must be to be taken instead of the first: timings differ by as much."""

_MOST_TOKENS, _MOST_ROUNDS = 1024, 5


@dataclass(frozen=True)
class Way:
    """How a model is run: `precision` as Lightning's Trainer takes it, `attention` as transformers does."""

    precision: str
    attention: str


def ways(precision: str, attention: str, first: Way) -> list[Way]:
    """The ways to choose among; `first` before all others.

    Args:
        precision: as configured; `MEASURED` leaves it open.
        attention: likewise.
        first: what is taken where nothing is clearly faster.
    """
    precisions = PRECISIONS if precision == MEASURED else (precision,)
    attentions = ATTENTIONS if attention == MEASURED else (attention,)
    open_ways = [Way(precision, attention) for precision in precisions for attention in attentions]
    return sorted(
        open_ways, key=lambda way: (way.precision != first.precision, way.attention != first.attention)
    )


def measure(
    embedder: ReasoningEmbedder, texts: Sequence[str], choices: Iterable[Way], seconds: float = 1.0
) -> dict[Way, float]:
    """Tokens per second, forward and backward, of each way that the architecture has; in the order given.

    The ways are run in turns, once each and then until the time is up, and the fastest turn of each counts:
    other work on the machine only ever slows one. The embedder keeps the attention it had, and no gradient.

    Args:
        embedder: on the CPU, with trained weights.
        texts: documents, of which as many are run as fit into its token budget, and 1,024 tokens at most.
        choices: ways.
        seconds: how long all turns may take after the first.
    """
    ids, mask = _batch(embedder, texts)
    before = embedder.causal_lm.config._attn_implementation
    best: dict[Way, float] = {}
    try:
        possible = [way for way in choices if _takes(embedder, way.attention)]
        end = time.perf_counter() + seconds
        for turn in range(_MOST_ROUNDS):
            if turn and time.perf_counter() > end:
                break
            for way in possible:
                best[way] = min(best.get(way, float("inf")), _seconds(embedder, ids, mask, way))
    finally:
        embedder.causal_lm.set_attn_implementation(before)
        embedder.zero_grad(set_to_none=True)
    return {way: int(mask.sum()) / taken for way, taken in best.items()}


def chosen(speeds: dict[Way, float]) -> Way:
    """The fastest way, where it is clearly faster than the first, which is taken else."""
    first, fastest = next(iter(speeds)), max(speeds, key=speeds.__getitem__)
    return fastest if speeds[fastest] >= CLEARLY * speeds[first] else first


def settled(
    file: Path, embedder: ReasoningEmbedder, texts: Sequence[str], choices: Sequence[Way]
) -> tuple[Way, dict[Way, float]]:
    """The way of a run, measured by whoever comes first; its other ranks and its resumption read the file.

    Raises:
        ModelFolderError: If the file holds something else.
    """
    if not file.is_file():
        speeds = measure(embedder, texts, choices)
        rows = [asdict(way) | {"tokens_per_s": round(speed, 1)} for way, speed in speeds.items()]
        write_first(file, json.dumps({"chosen": asdict(chosen(speeds)), "measured": rows}, indent=2) + "\n")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        speeds = {Way(row["precision"], row["attention"]): row["tokens_per_s"] for row in content["measured"]}
        return Way(**content["chosen"]), speeds
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFolderError(
            f"{file}: does not hold what was measured for this run: {error!r}; remove it"
        ) from error


def _batch(embedder: ReasoningEmbedder, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask `[n, L]` of documents that fit; the first one in any case."""
    most = min(embedder.token_budget, _MOST_TOKENS)
    rows = embedder.encoder.documents(list(itertools.islice(texts, 64)))
    n_rows = max(n for n in range(1, len(rows) + 1) if n == 1 or n * max(map(len, rows[:n])) <= most)
    return pad_left(rows[:n_rows], embedder.tokenizer.pad_token_id, embedder.device)


def _takes(embedder: ReasoningEmbedder, attention: str) -> bool:
    """Whether the architecture has an attention."""
    try:
        embedder.causal_lm.set_attn_implementation(attention)
    except (ValueError, ImportError):
        return False
    return embedder.causal_lm.config._attn_implementation == attention


def _seconds(embedder: ReasoningEmbedder, ids: Tensor, mask: Tensor, way: Way) -> float:
    """Of one forward and backward."""
    embedder.causal_lm.set_attn_implementation(way.attention)
    embedder.zero_grad(set_to_none=True)
    start = time.perf_counter()
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=way.precision == "bf16-mixed"):
        states = embedder.hidden_states(ids, mask, None)
    states.float().square().mean().backward()
    return time.perf_counter() - start
