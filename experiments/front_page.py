"""The table of the front page: what the real model and the embedded default reach, at home and elsewhere."""

from collections.abc import Mapping

from experiments.markdown import METRIC, commit, content, number, row, span
from experiments.science_figures import ELSEWHERE, by_mode
from search_r3.markdown import table


def results() -> str:
    """What the front page says of the real model and of the embedded default, at home and elsewhere."""
    header = ("test collection", "BM25", "untrained base", "direct", "reasoning", "RL direct", "RL reasoning")
    return table(
        (*header, "runs, commit", "made by"),
        [
            _results_on_science(),
            _results_of_rl_on_science(),
            *_results_of_mixture(),
            _results_on_pydocs(),
            *_results_elsewhere("other_collections", "the model of code"),
        ],
    )


def _results_on_pydocs() -> tuple[str, ...]:
    runs = {line["label"]: line for line in content("quickstart/runs.json")["rows"]}

    told = content("quickstart/runs.json")["runs"]
    return (
        "pydocs: code of unseen modules, 3,826 queries",
        number(runs["bm25"]["mean"]),
        number(runs["experiments/nano_base base-direct"]["mean"]),
        *(_over(runs[f"{model} {mode}"]) for model in ("sft", "rl") for mode in ("direct", "reasoning")),
        f"{len(told)}, `{told[0]['commit'][:7]}`",
        "[`make reproduce NAME=quickstart`](experiments/quickstart)",
    )


def _results_on_science() -> tuple[str, ...]:
    file = "science_seeds/runs_set_aside.json"
    runs = {line["label"]: line for line in content(file)["rows"]}

    bm25 = row("mixture/metrics.json", benchmark="entailmentbank-set-aside", mode="bm25")
    name = "EntailmentBank: science questions to facts, 400 queries; SmolLM2-135M"
    told = content(file)["runs"]
    shown = (
        number(bm25["metrics"][METRIC]),
        "",
        *map(_over, (runs["sft direct"], runs["sft reasoning"])),
        "",
        "",
    )
    made = "[commands for a GPU](experiments/science_seeds)"
    return (name, *shown, f"{len(told)}, `{told[0]['commit'][:7]}`", made)


def _results_of_rl_on_science() -> tuple[str, ...]:
    part, sft, rl = "entailmentbank-set-aside", "science_gain/human.json", "science_rl/rl.json"
    shown = ((sft, "bm25"), (sft, "direct"), (sft, "reasoning"), (rl, "direct"), (rl, "reasoning"))
    bm25, *modes = (number(row(file, benchmark=part, mode=mode)["metrics"][METRIC]) for file, mode in shown)
    link = "[`make reproduce NAME=science_rl`](experiments/science_rl)"
    told = f"1, `{row(sft, benchmark=part, mode='direct')['commit'][:7]}`"
    return ("the same, trained on a CPU, with RL", bm25, "", *modes, told, link)


def _results_of_mixture() -> list[tuple[str, ...]]:
    """Of SmolLM2 trained on four kinds of text, in the collections' own splits."""
    file = "mixture/metrics.json"
    names = {
        "pydocs": "pydocs: code of unseen modules, 3,826 queries; SmolLM2-135M, a mixture",
        "cosqa": f"{ELSEWHERE['cosqa']}, 500 queries; the mixture",
        "scifact": f"{ELSEWHERE['scifact']}, 300 queries, most seen in training; the mixture",
        "cranfield": f"{ELSEWHERE['cranfield']}, 225 queries, new to it; the mixture",
    }
    link = "[commands for a GPU](experiments/mixture)"
    return [_one_run(file, benchmark, name, link) for benchmark, name in names.items()]


def _results_elsewhere(folder: str, model: str) -> list[tuple[str, ...]]:
    """Of a model on collections that it was not trained for."""
    file, link = f"{folder}/metrics.json", f"[`make reproduce NAME={folder}`](experiments/{folder})"
    return [
        _one_run(file, name, f"{title}, {by_mode(file, name)['bm25']['n_queries']} queries; {model}", link)
        for name, title in ELSEWHERE.items()
    ]


def _one_run(file: str, benchmark: str, name: str, link: str) -> tuple[str, ...]:
    """BM25, direct and reasoning, the best of them bold; a mode that was not asked is empty."""
    values = {mode: found["metrics"][METRIC] for mode, found in by_mode(file, benchmark).items()}
    best = max(values.values())
    cells = {
        mode: f"**{number(value)}**" if value == best else number(value) for mode, value in values.items()
    }
    bm25, direct, reasoning = (cells.get(mode, "") for mode in ("bm25", "direct", "reasoning"))
    return (name, bm25, "", direct, reasoning, "", "", f"1, {commit(file)}", link)


def _over(line: Mapping) -> str:
    """The mean of several runs, with the lowest and the highest."""
    return f"{number(line['mean'])} ({span((line['lowest'], line['highest']))})"
