"""Tables of the experiments on school science."""

from experiments.markdown import METRIC, number, row, score, span, thousands
from search_r3.markdown import table

PARTS = {"tuning": "tuning", "set-aside": "set aside", "dev": "dev"}
"""Names of the parts in a benchmark's name, and as a document shows them."""
READ = (
    ("question alone, BM25", "human", "bm25"),
    ("with the right answer, BM25", "answer", "given-bm25"),
    ("with answer and human facts, BM25", "human", "given-bm25"),
    ("question alone, all-MiniLM-L6-v2", "minilm", "direct"),
    ("question alone, all-MiniLM-L6-v2 trained on the pairs", "minilm_trained", "direct"),
    ("the same at five times the rate", "minilm_1e-4", "direct"),
    ("nothing (direct)", "human", "direct"),
    ("its own text", "human", "reasoning"),
    ("its text for another question", "human", "shuffled-reasoning"),
    ("a dot for every human word", "filler", "given-reasoning"),
    ("the right answer", "answer", "given-reasoning"),
    ("answer and human facts", "human", "given-reasoning"),
)
"""What is read, the file of texts that stood beside it, and the mode."""


def popularity() -> str:
    """BM25, favourite facts and both, on all judgements, on facts that training has seen, and on others."""
    names = {"entailmentbank-dev": "dev", "entailmentbank-set-aside": "set aside"}
    rankings = {"bm25": "BM25", "popularity": "popularity", "bm25 + popularity": "both"}
    lines = []
    for benchmark, name in names.items():
        for ranking, label in rankings.items():
            found = row("science/popularity.json", benchmark=benchmark, ranking=ranking)
            shown = [
                f"{number(p[METRIC])} ({span(p['ci95'])})" for p in map(found.get, ("all", "seen", "unseen"))
            ]
            lines.append((f"{name} ({found['all']['n_queries']})", label, *shown))
    return table(("collection", "ranking", ">all", ">seen", ">unseen"), lines)


def gain() -> str:
    """nDCG@10 of one SFT model and of BM25 by what is read beside the question."""
    header = ("read beside the question", *(f">{name}" for name in PARTS.values()))
    return table(
        header,
        [(label, *(score(_found(texts, part, mode)) for part in PARTS)) for label, texts, mode in READ],
    )


def _found(texts: str, part: str, mode: str) -> dict:
    return row(f"science_gain/{texts}.json", benchmark=f"entailmentbank-{part}", mode=mode)


def answers() -> str:
    """nDCG@10 over set aside and dev together, by how right the answer is that the model writes."""
    lines = []
    for answer in ("no word of it", "some words", "right"):
        found = row("science_gain/answers.json", benchmark="together", answer=answer)
        shares = [f"{found['share']:.0%} ({found['n']})"]
        shown = [number(found[key]) for key in ("direct", "own", "given")]
        lines.append((answer, *shares, *shown, f"{found['gain']:+.3f} ({span(found['ci95'], '+.3f')})"))
    header = ("its answer", ">share", ">direct", ">own text", ">right answer given", ">own text less direct")
    return table(header, lines)


def rival() -> str:
    """nDCG@10 of a model trained in direct mode only, beside both modes of one that also reasons."""
    shown = (
        ("trained on questions alone, direct", "science_direct/metrics.json", "direct"),
        ("trained to reason as well, direct", "science_gain/human.json", "direct"),
        ("trained to reason as well, own text", "science_gain/human.json", "reasoning"),
    )
    lines = [(label, *(_of_part(file, part, mode) for part in PARTS)) for label, file, mode in shown]
    return table(("model and mode", *(f">{name}" for name in PARTS.values())), lines)


def before_and_after_rl() -> str:
    """nDCG@10 of an SFT model and of what RL made of it, by what is read beside the question."""
    files = {"SFT": "science_gain/human.json", "RL": "science_rl/rl.json"}
    parts = ("set-aside", "dev")
    header = ("read beside the question", *(f">{PARTS[part]}, {name}" for part in parts for name in files))
    lines = [
        (label, *(_of_part(file, part, mode) for part in parts for file in files.values()))
        for label, texts, mode in READ
        if texts == "human" and "bm25" not in mode
    ]
    swapped = ("the other model's text", *(_read_by(name, part) for part in parts for name in files))
    return table(header, [*lines[:2], swapped, *lines[2:]])


def _read_by(model: str, part: str) -> str:
    found = row(
        "science_rl/swap.json",
        benchmark=f"entailmentbank-{part}",
        model=f"outputs/science/{model.lower()}/model",
    )
    return score(found)


def after_facts() -> str:
    """nDCG@10 of SFT from the plain base and of SFT from a base that has read the facts, on set aside."""
    files = {"from the base": "science_gain/human.json", "facts read before": "science_facts/metrics.json"}
    modes = [(label, mode) for label, texts, mode in READ if texts == "human" and "bm25" not in mode]
    lines = [
        (label, *(_of_part(file, "set-aside", mode) for file in files.values())) for label, mode in modes
    ]
    return table(("read beside the question", *(f">{name}" for name in files)), lines)


def _of_part(file: str, part: str, mode: str) -> str:
    return score(row(file, benchmark=f"entailmentbank-{part}", mode=mode))


ELSEWHERE = {
    "cosqa": "CoSQA: web queries to code",
    "cranfield": "Cranfield: aeronautics",
    "scifact": "SciFact: scientific claims",
}


def by_mode_elsewhere(file: str, benchmark: str) -> list[dict]:
    """The rows of BM25, direct and reasoning on one collection."""
    return [row(file, benchmark=benchmark, mode=mode) for mode in ("bm25", "direct", "reasoning")]


def elsewhere() -> str:
    """nDCG@10 of the science model on collections that it was not trained for, with BM25's and MiniLM's."""
    lines = []
    for benchmark, name in ELSEWHERE.items():
        rows = by_mode_elsewhere("science_elsewhere/metrics.json", benchmark)
        rows.append(row("science_elsewhere/minilm.json", benchmark=benchmark, mode="direct"))
        lines.append((name, thousands(rows[0]["n_queries"]), *map(score, rows)))
    return table(("collection", ">queries", ">BM25", ">direct", ">own text", ">all-MiniLM-L6-v2"), lines)
