"""Tables of the experiments on school science."""

from collections.abc import Collection, Mapping

from experiments.markdown import METRIC, content, number, row, rows, score, span, thousands
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


def _of_part(file: str, part: str, mode: str, **wanted: str) -> str:
    return score(row(file, benchmark=f"entailmentbank-{part}", mode=mode, **wanted))


ELSEWHERE = {
    "cosqa": "CoSQA: web queries to code",
    "cranfield": "Cranfield: aeronautics",
    "scifact": "SciFact: scientific claims",
}


def by_mode(file: str, benchmark: str) -> dict[str, dict]:
    """The rows of a collection in a file of one model."""
    return {found["mode"]: found for found in rows(file, benchmark=benchmark)}


def elsewhere() -> str:
    """nDCG@10 of the science model on collections that it was not trained for, with BM25's and MiniLM's."""
    lines = []
    for benchmark, name in ELSEWHERE.items():
        found = by_mode("science_elsewhere/metrics.json", benchmark)
        shown = [found[mode] for mode in ("bm25", "direct", "reasoning")]
        shown.append(row("science_elsewhere/minilm.json", benchmark=benchmark, mode="direct"))
        lines.append((name, thousands(shown[0]["n_queries"]), *map(score, shown)))
    return table(("collection", ">queries", ">BM25", ">direct", ">own text", ">all-MiniLM-L6-v2"), lines)


# ---- three seeds on a GPU

SEEDED = {
    "direct direct": "trained on questions alone, direct",
    "sft direct": "trained to reason as well, direct",
    "sft reasoning": "its own text",
    "sft shuffled-reasoning": "its text for another question",
    "sft given-reasoning": "answer and human facts",
}
"""Labels of `python -m src.report --runs`, and what a reader is told."""


def seeds() -> str:
    """nDCG@10 over three seeds, on set aside and on dev: mean, range of runs, interval."""
    lines = []
    for label, name in SEEDED.items():
        cells = [cell for part in ("set_aside", "dev") for cell in _over_seeds(part, label)]
        lines.append((name, *cells))
    header = [f">{part}{what}" for part in ("set aside", "dev") for what in ("", ", runs", ", 95 % interval")]
    return table(("model and mode", *header), lines)


def _over_seeds(part: str, label: str) -> tuple[str, str, str]:
    for line in rows(f"science_seeds/runs_{part}.json", label=label):
        return number(line["mean"]), span((line["lowest"], line["highest"])), span(line["ci95"])
    return "", "", ""


def seed_pairs() -> str:
    """Differences over three seeds and the questions of set aside and dev."""
    lines = [
        (
            SEEDED[found["from"]],
            SEEDED[found["to"]],
            f"{found['mean']:+.3f} ({span(found['ci95'], '+.3f')})",
            span((found["lowest"], found["highest"]), "+.3f"),
        )
        for found in content("science_seeds/pairs.json")["rows"]
    ]
    return table(("from", "to", ">difference", ">of single runs"), lines)


def more_sft() -> str:
    """nDCG@10 of seed 1 after 80 and after 200 steps of SFT."""
    models = {"80 steps": "sft/model", "200 steps": "more/model"}
    file, parts = "science_seeds/seed1.json", ("set-aside", "dev")
    lines = [
        (
            name,
            *(_of_part(file, part, mode, model=model) for part in parts for mode in ("direct", "reasoning")),
        )
        for name, model in models.items()
    ]
    header = [f">{PARTS[part]}, {mode}" for part in parts for mode in ("direct", "own text")]
    return table(("SFT", *header), lines)


# ---- the question and the text behind it, averaged

AVERAGED = {
    "direct": "nothing (direct)",
    "reasoning": "its own text",
    "blended": "nothing, and its own text: the mean of both",
    "shuffled-reasoning": "its text for another question",
    "given-reasoning": "answer and human facts",
}
"""Modes, and what is read beside the question in each."""


def blended() -> str:
    """nDCG@10 of the weights that validation chose and of the last ones of a run, by what is read."""
    file, models = "science_blended/metrics.json", {"sft/model": "step 200", "last/model": "step 300"}
    parts = ("set-aside", "dev", "tuning")
    header = (f">{PARTS[part]}, {name}" for part in parts for name in models.values())
    lines = [
        (label, *(_of_part(file, part, mode, model=model) for part in parts for model in models))
        for mode, label in AVERAGED.items()
    ]
    return table(("read beside the question", *header), lines)


def blended_pairs() -> str:
    """Differences of the last weights over the questions of set aside and dev."""
    return _pairs("science_blended/pairs.json", AVERAGED)


def _pairs(file: str, names: Mapping[str, str]) -> str:
    lines = [
        (names[found["from"]], names[found["to"]], f"{found['mean']:+.3f} ({span(found['ci95'], '+.3f')})")
        for found in content(file)["rows"]
    ]
    return table(("from", "to", ">difference"), lines)


SECOND_RUN = {
    "SFT": ("science_blended/metrics.json", "last/model"),
    "RL": ("science_rl/seed2.json", "rl/model"),
    "best of 8": ("science_best_of_n/metrics.json", "best/model"),
}
"""Files and models of another seed: before RL, after it, and after its fair rival."""
SECOND_ROWS = {
    f"{model} {mode}": f"{name}, {text}"
    for model, name in (("sft", "SFT"), ("rl", "RL"), ("best", "best of 8"))
    for mode, text in (
        ("direct", "nothing (direct)"),
        ("reasoning", "its own text"),
        ("base-reasoning", "SFT's text"),
        ("shuffled-reasoning", "its text for another question"),
        ("given-reasoning", "answer and human facts"),
    )
}


def second_rl_run() -> str:
    """As `before_and_after_rl`, of another seed, where only RL's model reads SFT's texts too."""
    return _of_models({name: SECOND_RUN[name] for name in ("SFT", "RL")})


def short_rl_run(seed: int) -> str:
    """The same of a seed of `make science`, which trains fewer steps."""
    return _of_models(_short_run(seed))


def _short_run(seed: int) -> dict[str, tuple[str, str]]:
    file = f"science_rl/seed{seed}.json"
    return {"SFT": (file, "sft/model"), "RL": (file, "rl/model")}


def best_of_n() -> str:
    """The same of RL and of best-of-n from one SFT model."""
    return _of_models(SECOND_RUN)


def short_best_of_n(seed: int) -> str:
    """As `best_of_n`, of a seed of `make science`."""
    return _of_models(_short_run(seed) | {"best of 8": (f"science_best_of_n/seed{seed}.json", "best/model")})


def _of_models(models: Mapping[str, tuple[str, str]]) -> str:
    columns = [(part, name) for part in ("set-aside", "dev") for name in models]

    def cell(part: str, name: str, mode: str) -> str:
        file, model = models[name]
        return _of_part(file, part, mode, model=model)

    def line(label: str, mode: str, shown: Collection[str] = models) -> tuple[str, ...]:
        return (label, *(cell(part, name, mode) if name in shown else "" for part, name in columns))

    lines = [line(label, mode) for mode, label in AVERAGED.items() if mode != "blended"]
    header = ("read beside the question", *(f">{PARTS[part]}, {name}" for part, name in columns))
    return table(
        header, [*lines[:2], line("SFT's text", "base-reasoning", models.keys() - {"SFT"}), *lines[2:]]
    )


def rl_pairs(seed: int) -> str:
    """Differences of a seed's run of RL over the questions of set aside and dev."""
    return _pairs(f"science_rl/seed{seed}_pairs.json", SECOND_ROWS)


def best_of_n_pairs(file: str) -> str:
    """Differences that best-of-n makes, over the questions of set aside and dev."""
    return _pairs(f"science_best_of_n/{file}", SECOND_ROWS)


# ---- which weights move


def lora_validation() -> str:
    """What the tuning questions find at step 100, of all weights and of an adapter."""
    lines = [
        (
            found["tuned"],
            f"{found['millions_trained']:.1f}",
            *(number(found["validation"][f"{mode}/ndcg@10"]) for mode in ("direct", "reasoning")),
            f"{found['validation']['has_embed_token']:.0%}",
        )
        for found in rows("science_lora/metrics.json")
    ]
    return table(("trained", ">millions", ">direct", ">own text", ">texts that end"), lines)


def lora_losses() -> str:
    """Mean losses of 25 steps, of all weights and of an adapter."""
    names = {"sft": "imitation", "info_nce_direct": "direct", "info_nce_reasoned": "reasoned"}
    arms = rows("science_lora/metrics.json")
    lines = [
        (steps, *(f"{arm['losses'][steps][loss]:.2f}" for loss in names for arm in arms))
        for steps in arms[0]["losses"]
    ]
    header = (f">{name}, {arm['tuned'].split(',')[0]}" for name in names.values() for arm in arms)
    return table(("steps", *header), lines)


# ---- a mixture

MIXED = {
    "entailmentbank-set-aside": "EntailmentBank, set aside",
    "entailmentbank-dev": "EntailmentBank, dev",
    "scifact": "SciFact",
    "cosqa": "CoSQA",
    "pydocs": "pydocs, unseen modules",
    "cranfield": "Cranfield, not in the mixture",
}
"""Collections by name, and what a reader is told."""


def mixture() -> str:
    """nDCG@10 of one model of four kinds of text, of one of science alone, and of BM25 and MiniLM."""
    lines = []
    for benchmark, name in MIXED.items():
        found = by_mode("mixture/metrics.json", benchmark)
        others = [by_mode(f"mixture/{file}.json", benchmark)["direct"] for file in ("minilm", "science")]
        shown = [found["bm25"], *others, found["direct"], found.get("reasoning")]
        cells = [score(each) if each else "" for each in shown]
        lines.append((name, thousands(found["bm25"]["n_queries"]), *cells))
    header = ("collection", ">queries", ">BM25", ">all-MiniLM-L6-v2", ">science alone, direct")
    return table((*header, ">mixture, direct", ">mixture, own text"), lines)


def mixture_seen() -> str:
    """nDCG@10 on test queries of which training has judged a relevant document, and on the others."""
    models = {"": "BM25", "all-MiniLM-L6-v2": "all-MiniLM-L6-v2"}
    models |= {"sft/model": "science alone, direct", "mix/model": "mixture, direct"}
    lines = []
    for benchmark in ("scifact", "cosqa"):
        for ending, name in models.items():
            mode = "direct" if ending else "bm25"
            found = row("mixture/seen.json", benchmark=benchmark, mode=mode, model=ending)
            halves = [
                f"{half['n_queries']}: {number(half[METRIC])} ({span(half['ci95'])})"
                for half in (found["seen"], found["unseen"])
            ]
            lines.append((MIXED[benchmark], name, *halves))
    return table(("collection", "ranking", ">on seen queries", ">on unseen queries"), lines)
