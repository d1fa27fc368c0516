"""Tables of the experiments in the generated world."""

from collections.abc import Mapping

from experiments.markdown import by_mode, cell, content, score
from search_r3.markdown import table


def hops(files: Mapping[str, str]) -> str:
    """A line for each run of `make hops`: BM25, both modes of SFT and of RL, two controls."""
    return by_mode(
        "seed",
        {
            "BM25": cell(mode="bm25"),
            "SFT direct": cell(mode="direct", model="sft/model"),
            "SFT reasoning": cell(mode="reasoning", model="sft/model"),
            "RL direct": cell(mode="direct", model="rl/model"),
            "RL reasoning": cell(mode="reasoning", model="rl/model"),
            "SFT writes, RL embeds": cell(mode="base-reasoning", model="rl/model"),
            "another query's reasoning": cell(mode="shuffled-reasoning", model="rl/model"),
        },
        files,
    )


HOPS_RUNS = {
    "1": "hops/metrics_2026_11_25_seed1.json",
    "2": "hops/metrics_2026_11_25_seed2.json",
    "3": "hops/metrics_2026_11_25_seed3.json",
    "1, two threads": "hops/metrics_2026_11_25_seed1_2threads.json",
    "1, AVX2 kernels": "hops/metrics_2026_11_25_seed1_avx2.json",
}


def freshness(file: str, has_seconds: bool = True) -> str:
    """A line for each run: what it cost, what its audits found, and what it reached.

    Args:
        file: that `experiments.freshness.outcome` wrote.
        has_seconds: False where runs were held up by other work, so that their seconds say nothing.
    """
    lines = []
    for run in content(file)["rows"]:
        audits = [f"{run['audits']['difference']:.3f}", f"{run['audits']['sign_agreement']:.0%}"]
        share = f"{run['documents_per_step'] / run['corpus']:.1%}"
        cost = [f"{run['documents_per_step']:,.0f} ({share})"]
        cost += [f"{run['seconds_per_step']:.1f}"] if has_seconds else []
        lines.append((f"`{run['rule']}`", run["seed"], *cost, *audits, score(run)))
    seconds = (">seconds per step",) if has_seconds else ()
    header = ("rule", "seed", ">pages per step", *seconds, ">rewards off by", ">signs agree")
    return table((*header, ">nDCG@10"), lines)


def hops_rules() -> str:
    """RL in the generated world under every refresh rule."""
    modes = ("direct", "reasoning", "shuffled-reasoning")
    return table(
        ("rule", ">RL direct", ">RL reasoning", ">another query's reasoning", "commit"),
        [
            (
                f"`{rule}`",
                *(score(next(line for line in part["rows"] if line["mode"] == mode)) for mode in modes),
                f"`{part['commit'][:7]}`",
            )
            for rule, part in content("hops/metrics_rules.json").items()
        ],
    )
