"""Measures one case in this process and prints its result as the last line; see `cases.measured`.

What a row needs is imported with it, so that a process holds nothing of other rows.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from search_r3.benchmarks.peers.cases import Case
from search_r3.benchmarks.peers.comparison import Comparison, measured
from search_r3.benchmarks.peers.machine import limits, load


def main() -> None:
    """Reads a case from the first argument."""
    given = json.loads(sys.argv[1])
    result = run(Case(**given["case"]), given["settings"], Path(given["work"]))
    print(json.dumps(result), flush=True)


def run(case: Case, settings: Mapping, work: Path) -> dict:
    """The result of a case, without its name.

    Args:
        case: what is measured.
        settings: `rounds`, `max_seconds`, `precision`, `smollm2`, `scifact`, `cache_dir`, `seed`,
            `refresh_keys`, and `sizes`, of the case's model.
        work: is written to.
    """
    if case.row == "startup":
        from search_r3.benchmarks.peers.alone import starts

        return {"rows": starts(settings["rounds"])}
    if case.row == "refresh":
        from search_r3.benchmarks.peers.refresh import refresh

        return refresh(settings, work / f"refresh-{case.model}")
    if case.row == "memory":
        return _memory(case, settings, work)
    before = load()
    reached = limits(torch.bfloat16 if settings["precision"] == "bf16" else torch.float32)
    comparison = _comparison(case, settings, work)
    row = measured(comparison, settings["rounds"], settings["max_seconds"], reached)
    return {**row, "limits": reached, "load": [before, load()]}


def _comparison(case: Case, settings: Mapping, work: Path) -> Comparison:
    """What a row compares, on as many texts as its sizes say."""
    sizes = settings["sizes"]
    if case.row == "rank":
        from search_r3.benchmarks.peers.rank import rank

        return rank(sizes["rank_rows"], sizes["rank_queries"], sizes["group_size"])
    from search_r3.benchmarks.peers import encode, evaluation, grpo, rollouts, sft
    from search_r3.benchmarks.peers.subjects import load_texts, open_subject

    subject = open_subject(case.model, Path(settings["smollm2"]), work, settings["precision"])
    if case.row == "evaluation":
        return evaluation.evaluation(subject, Path(settings["scifact"]), work)
    texts = load_texts(_n_texts(case.row, sizes), Path(settings["cache_dir"]))
    if case.row in ("encode", "queries", "sft"):
        return {"encode": encode.encode, "queries": encode.queries, "sft": sft.sft}[case.row](subject, texts)
    written = sizes["new_tokens"], sizes["group_size"]
    if case.row == "grpo":
        return grpo.grpo(subject, texts, *written, work / "trl")
    compare = {"rollouts": rollouts.rollouts, "continuous": rollouts.continuous}[case.row]
    return compare(subject, texts, *written)


def _n_texts(row: str, sizes: Mapping[str, int]) -> int:
    return sizes[{"encode": "documents", "queries": "queries", "sft": "pairs"}.get(row, "prompts")]


def _memory(case: Case, settings: Mapping, work: Path) -> dict:
    from search_r3.benchmarks.peers.alone import peak_of
    from search_r3.benchmarks.peers.subjects import load_texts, open_subject

    kind, side = case.part.split()
    subject = open_subject(case.model, Path(settings["smollm2"]), work, settings["precision"])
    texts = load_texts(_n_texts(kind, settings["sizes"]), Path(settings["cache_dir"]))
    return peak_of(kind, side, subject, texts, settings["sizes"], work / "trl")
