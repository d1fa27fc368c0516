"""Which figures stand in which table of which document; how a table looks is in `experiments/markdown.py`.

A new table is a function here and a line in `FIGURES`.
"""

import csv
import re
from collections.abc import Callable, Mapping, Sequence

from experiments.front_page import results
from experiments.markdown import (
    EXPERIMENTS,
    METRIC,
    by_mode,
    cell,
    commit,
    content,
    cut_off,
    number,
    over_runs,
    row,
    rows,
    score,
    span,
    thousands,
    words,
)
from experiments.science_figures import (
    after_facts,
    answers,
    before_and_after_rl,
    best_of_n,
    best_of_n_pairs,
    blended,
    blended_pairs,
    elsewhere,
    gain,
    lora_losses,
    lora_validation,
    mixture,
    mixture_seen,
    more_sft,
    popularity,
    rival,
    rl_pairs,
    second_rl_run,
    seed_pairs,
    seeds,
    short_best_of_n,
    short_rl_run,
)
from experiments.timings import bench, bench_busy, bench_equal, gpu, gpu_graphs, padding, prefix, waiting
from experiments.world_figures import HOPS_RUNS, freshness, hops, hops_rules
from search_r3.markdown import table

SEEDS = (1, 2, 3)


# ---- experiments on pydocs and CoSQA


def bm25() -> str:
    """BM25 on public collections, by analyzer."""
    names = {"scifact": "SciFact", "cosqa": "CoSQA", "cranfield": "Cranfield"}
    found = [row("bm25/metrics_auto.json", benchmark="scifact")]
    found += [row(f"bm25/metrics_{analyzer}.json", benchmark="cosqa") for analyzer in ("english", "auto")]
    found += [row("bm25/metrics_auto.json", benchmark="cranfield")]
    return table(
        ("collection", "analyzer", ">queries", ">nDCG@10 (95 % interval)", ">recall@100"),
        [
            (
                names[line["benchmark"]],
                re.search(r"\((\w+),", line["model"])[1],
                thousands(line["n_queries"]),
                score(line),
                number(line["metrics"]["recall@100"]),
            )
            for line in found
        ],
    )


def evaluations(file: str) -> str:
    """All rows of one metrics.json of `python -m src.evaluate`."""
    return table(
        ("collection", "mode", ">queries", ">documents", ">nDCG@10 (95 % interval)", ">recall@100"),
        [
            (
                line["benchmark"],
                line["mode"],
                thousands(line["n_queries"]),
                thousands(line["n_docs"]),
                score(line),
                number(line["metrics"]["recall@100"]),
            )
            for line in content(file)["rows"]
        ],
    )


MODES = {
    "bm25": "BM25 (code)",
    "base-direct": "untrained base, direct",
    "direct": "direct",
    "reasoning": "reasoning",
    "base-reasoning": "the base writes",
    "shuffled-reasoning": "another query's reasoning",
}


def sft_seeds() -> str:
    """Three seeds of SFT on all pairs, on two collections."""
    lines = []
    for benchmark, stem in (("pydocs-test", "metrics"), ("cosqa", "metrics_cosqa")):
        files = [f"sft_quickstart/{stem}_seed{seed}.json" for seed in SEEDS]
        for mode in [line["mode"] for line in content(files[0])["rows"]]:
            found = [row(file, benchmark=benchmark, mode=mode) for file in files]
            lines.append((benchmark, MODES[mode], *map(score, found), *_means(found)))
    header = ("collection", "mode", ">seed 1", ">seed 2", ">seed 3", ">mean", ">recall@100", ">tokens")
    return table((*header, ">no embed token"), lines)


def _means(found: Sequence[Mapping]) -> tuple[str, ...]:
    """Means over seeds of nDCG@10, recall@100, tokens and queries without the embed token."""

    def mean(value: Callable[[Mapping], float]) -> float:
        return sum(map(value, found)) / len(found)

    return (
        number(mean(lambda line: line["metrics"][METRIC])),
        number(mean(lambda line: line["metrics"]["recall@100"])),
        f"{mean(lambda line: line['tokens_per_query']):.1f}",
        thousands(mean(lambda line: line["missing_embed_token"])),
    )


def one_run_of_sft(pydocs: str, cosqa: str | None = None) -> str:
    """A line for each mode of one SFT model, on pydocs and CoSQA where it was evaluated on both."""
    files = {"pydocs-test": pydocs} | ({"cosqa": cosqa} if cosqa else {})
    lines = []
    for mode in [line["mode"] for line in content(pydocs)["rows"]]:
        found = [rows(file, benchmark=name, mode=mode) for name, file in files.items()]
        lines.append((MODES[mode], *(score(line[0]) if line else "" for line in found)))
    return table(("nDCG@10", *(f">{name}" for name in files)), lines)


def sft_and_rl(file: str) -> str:
    """A line for the SFT model and one for the RL model of `make train`."""
    written = {"SFT": "sft/model", "RL": "rl/model"}
    modes = ("direct", "reasoning", "base-reasoning", "shuffled-reasoning")
    header = ("model", ">direct", ">reasoning", ">the model before it writes", ">another query's reasoning")
    return table(
        (*header, ">cut off"),
        [
            (
                name,
                *(score(row(file, mode=mode, model=model)) for mode in modes),
                cut_off(row(file, mode="reasoning", model=model)),
            )
            for name, model in written.items()
        ],
    )


def rl_seeds(folder: str, sft: str) -> str:
    """SFT and three seeds of RL, on pydocs and on CoSQA."""
    parts = []
    for benchmark, name in (("pydocs-test", "pydocs test"), ("cosqa", "CoSQA")):
        columns = {
            "direct": cell(benchmark=benchmark, mode="direct"),
            "reasoning": cell(benchmark=benchmark, mode="reasoning"),
            "SFT writes, RL embeds": cell(benchmark=benchmark, mode="base-reasoning"),
            "another query's reasoning": cell(benchmark=benchmark, mode="shuffled-reasoning"),
            "words": cell(words, benchmark=benchmark, mode="reasoning"),
            "cut off": cell(cut_off, benchmark=benchmark, mode="reasoning"),
        }
        files = {f"RL {seed}": f"{folder}/metrics_seed{seed}.json" for seed in SEEDS}
        bm25_score = number(row(sft, benchmark=benchmark, mode="bm25")["metrics"][METRIC])
        parts.append(by_mode(f"{name} (BM25 {bm25_score})", columns, {"SFT": sft} | files))
    return "\n\n".join(parts)


# ---- freshness


def refresh() -> str:
    """Every refresh rule on 20,000 documents; those called `certified` are of the later part."""
    before, after = "refresh/metrics.json", "refresh/metrics_certified.json"
    files = dict.fromkeys(("frozen", "drift", "graph", "candidates"), before)
    files |= dict.fromkeys(("certified_budget", "certified_97", "certified"), after) | {"full": before}
    header = ("rule", ">documents per step", ">median", ">mean share", ">s per step", ">identical rewards")
    header += (">mean difference", ">Kendall tau", ">sign of the advantage", ">nDCG@10", ">stated: observed")
    return table(header, [_refresh_line(file, rule) for rule, file in files.items()])


def _refresh_line(file: str, rule: str) -> tuple[str, ...]:
    line, detail = row(file, rule=rule), content(file)["detail"][rule]
    share = line["share_of_corpus"]
    stated = line.get("stated_coverage")
    observed = (
        ""
        if stated is None
        else f"{stated:.2f}: {number(line['observed_coverage'])} ({span(detail['coverage_interval'])})"
    )
    return (
        f"`{rule}`",
        thousands(line["docs_per_step"]),
        thousands(detail["median_documents"]),
        "100 %" if share == 1 else f"{share:.2%}".replace("%", " %"),
        f"{line['seconds_per_step']:.2f}",
        number(line["identical_rewards"]),
        f"{line['mean_abs_difference']:.4f}",
        number(line["kendall_tau"]),
        number(line["advantage_sign_agreement"]),
        number(line[METRIC]),
        observed,
    )


def scale() -> str:
    """Every refresh rule on a million rows; documents per step are medians."""
    files = dict.fromkeys(("frozen", "drift", "candidates", "graph"), "refresh_scale/metrics.json")
    files |= {"certified": "refresh_scale/metrics_certified.json", "full": "refresh_scale/metrics.json"}
    header = ("rule", ">documents per step (median)", ">share (median)", ">identical rewards")
    header += (">mean difference", ">sign of the advantage", ">search, s", ">refresh, s", ">exact ranks, s")
    header += (">commit, s", ">peak memory, GiB")
    return table(header, [_scale_line(file, rule) for rule, file in files.items()])


def _scale_line(file: str, rule: str) -> tuple[str, ...]:
    line, detail = row(file, rule=rule), content(file)["detail"][rule]
    by_step = sorted(detail["documents_by_step"])
    median = by_step[len(by_step) // 2]  # of ten steps, the upper one of the two in the middle
    share = median / content(file)["setting"]["n_documents"]
    seconds = [f"{detail['seconds'][part]:.2f}" for part in ("search", "refresh", "scoring", "commit")]
    return (
        f"`{rule}`",
        thousands(median),
        "100 %" if share == 1 else f"{share:.3%}".replace("%", " %"),
        number(line["identical_rewards"]),
        f"{line['mean_abs_difference']:.4f}",
        number(line["advantage_sign_agreement"]),
        *seconds,
        f"{detail['memory']['peak_resident'] / 2**30:.1f}",
    )


# ---- the rest


def parity() -> str:
    """Token ids of the folder that `make base` writes, against those of the original's tokenizer."""
    header = (
        "kind",
        ">texts",
        ">tokens",
        ">differ in the folder",
        ">differ in what transformers makes of it",
    )
    keys = ("texts", "tokens", "differ_in_folder", "differ_in_transformers")
    kinds = content("base/parity.json")["tokens"]
    return table(header, [(kind, *(thousands(found[key]) for key in keys)) for kind, found in kinds.items()])


FAULTS = (
    ("kill: SFT, RL, pretraining, evaluation, cache", "kills", r"kill/(?!mining)"),
    ("kill: mining", "kills", "kill/mining"),
    ("kill: mining, mended", "kills_mining", "kill/mining"),
    ("two ranks, SFT and RL: all killed, or the second alone", "others", "ranks/"),
    ("full disk: SFT, RL, pretraining, evaluation", "others", "full/"),
    ("disk that can only be read; 64 KiB of `TMPDIR`", "others", "(read-only|tmpdir)"),
    ("two starters: SFT, RL, evaluation, search", "others", "starters/"),
    ("another machine, another process with its number", "others", "records"),
    ("damage: run, LoRA run", "damage", "damage/run"),
    ("damage: model folder", "damage", "damage/model"),
    ("damage: caches of embeddings", "damage", "damage/cache"),
    ("damage: mined pairs", "damage", "damage/mined"),
    ("damage: evaluation", "damage", "damage/evaluation"),
    ("damage: cache of checked architectures", "damage", "damage/architectures"),
    ("damage: study of a search, its trials", "damage_study", "damage/study"),
)


def faults() -> str:
    """Attacks by kind: how many were tried, and how many ended as promised."""
    lines = []
    for name, stem, pattern in FAULTS:
        file = f"faults/{stem}.json"
        found = [line for line in content(file)["rows"] if re.match(pattern, line["kind"])]
        tried, equal, refused = (sum(line[key] for line in found) for key in ("tried", "equal", "refused"))
        lines.append((name, tried, equal, refused, tried - equal - refused, commit(file)))
    return table(("attack", ">tried", ">equal", ">refused", ">broken", "commit"), lines)


def mutants() -> str:
    """Verdicts over a hundred planted bugs."""
    with (EXPERIMENTS / "mutants" / "seed-13.csv").open(encoding="utf-8", newline="") as file:
        verdicts = [line["verdict"] for line in csv.DictReader(file)]
    names = {
        "killed": "killed by a test",
        "timeout": "killed by a hang of two ranks",
        "survived": "live, and change nothing that is right",
    }
    return table(("", ">mutants"), [(name, verdicts.count(verdict)) for verdict, name in names.items()])


# ---- what stands where

FIGURES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"results": results},
    "experiments/base/README.md": {"parity": parity},
    "experiments/base_in_budget/README.md": {
        "modes": lambda: one_run_of_sft("base_in_budget/metrics.json"),
    },
    "experiments/bench/README.md": {"ratios": bench, "equal": bench_equal, "busy": bench_busy},
    "experiments/bm25/README.md": {"collections": bm25},
    "experiments/faults/README.md": {"attacks": faults},
    "experiments/freshness/README.md": {
        "outcome": lambda: freshness("freshness/outcome.json"),
        "beside-full": lambda: freshness("freshness/beside_full.json"),
        "further-seeds": lambda: freshness("freshness/further_seeds.json", has_seconds=False),
        "certified": lambda: freshness("freshness/certified.json", has_seconds=False),
        "larger-rate": lambda: freshness("freshness/larger_rate.json"),
    },
    "experiments/gpu/README.md": {"rows": gpu, "graphs": gpu_graphs},
    "experiments/hops/README.md": {
        "runs": lambda: hops(HOPS_RUNS),
        "over-runs": lambda: over_runs("hops/runs.json"),
        "before": lambda: hops({str(seed): f"hops/metrics_seed{seed}.json" for seed in SEEDS}),
        "rules": hops_rules,
    },
    "experiments/mixture/README.md": {"collections": mixture, "seen": mixture_seen},
    "experiments/mutants/README.md": {"verdicts": mutants},
    "experiments/other_collections/README.md": {
        "collections": lambda: evaluations("other_collections/metrics.json"),
    },
    "experiments/padding/README.md": {"ratios": padding},
    "experiments/prefix/README.md": {"ratios": prefix},
    "experiments/quickstart/README.md": {
        "over-runs": lambda: over_runs("quickstart/runs.json"),
        "seed-1": lambda: sft_and_rl("quickstart/metrics.json"),
    },
    "experiments/refresh/README.md": {"rules": refresh},
    "experiments/refresh_scale/README.md": {"rules": scale},
    "experiments/rl_pydocs/README.md": {
        "seeds": lambda: rl_seeds("rl_pydocs", "rl_pydocs/metrics_sft.json"),
    },
    "experiments/rl_pydocs_fresh/README.md": {
        "seeds": lambda: rl_seeds("rl_pydocs_fresh", "rl_pydocs_full/metrics_sft.json"),
    },
    "experiments/rl_pydocs_full/README.md": {
        "seeds": lambda: rl_seeds("rl_pydocs_full", "rl_pydocs_full/metrics_sft.json"),
    },
    "experiments/rl_quickstart/README.md": {"models": lambda: sft_and_rl("rl_quickstart/metrics.json")},
    "experiments/science/README.md": {"popularity": popularity},
    "experiments/science_gain/README.md": {"gain": gain, "answers": answers},
    "experiments/science_best_of_n/README.md": {
        "models": best_of_n,
        "pairs": lambda: best_of_n_pairs("pairs.json"),
        "second": lambda: short_best_of_n(4),
        "second_pairs": lambda: best_of_n_pairs("seed4_pairs.json"),
    },
    "experiments/science_direct/README.md": {"rival": rival},
    "experiments/science_elsewhere/README.md": {"elsewhere": elsewhere},
    "experiments/science_facts/README.md": {"facts": after_facts},
    "experiments/science_rl/README.md": {
        "models": before_and_after_rl,
        "second": second_rl_run,
        "second_pairs": lambda: rl_pairs(2),
        "third": lambda: short_rl_run(3),
        "third_pairs": lambda: rl_pairs(3),
        "fourth": lambda: short_rl_run(4),
        "fourth_pairs": lambda: rl_pairs(4),
    },
    "experiments/science_lora/README.md": {"validation": lora_validation, "losses": lora_losses},
    "experiments/science_blended/README.md": {"blended": blended, "pairs": blended_pairs},
    "experiments/science_seeds/README.md": {"seeds": seeds, "pairs": seed_pairs, "more": more_sft},
    "experiments/sft_pydocs_full/README.md": {
        "modes": lambda: one_run_of_sft("sft_pydocs_full/metrics.json", "sft_pydocs_full/metrics_cosqa.json"),
    },
    "experiments/sft_quickstart/README.md": {
        "seeds": sft_seeds,
        "in-260-steps": lambda: one_run_of_sft("sft_quickstart/metrics_260.json"),
    },
    "experiments/waiting/README.md": {"policies": waiting},
}
"""By document, what each of its tables of figures is made by."""
