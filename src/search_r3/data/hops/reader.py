"""`data=hops`: a generated world in which retrieval needs inference.

The world holds people, companies, cities and further kinds under invented names. Its facts link them: a
person works at a company, a company is in a city. A query asks for the place at the end of a person's chain
of facts, and each place has one page, which names no person and no company. So neither BM25 nor one embedding
of an unseen person's name can tell which page it is; a model that knows the facts can, if it writes the chain
down.

The facts are learnt as running text (`stage=pretrain`). Every person's facts stand there, in several wordings
and among unrelated facts. Only for the people of the SFT split do linked facts stand in one line; they share
no company with anyone else. People of the validation and test splits are in no training query and in no
chain; those of the RL split are in queries, without their chain.

Everything here is ours, and a pure function of the arguments.
"""

import math
from dataclasses import asdict

from search_r3.data.hops.settings import TRAINING_SPLITS, Sizes, TextSettings
from search_r3.data.hops.texts import WorldTexts
from search_r3.data.hops.world import World, create_world
from search_r3.data.types import Benchmark, Corpus, Example, TrainingData


def chance_ndcg(n_documents: int) -> float:
    """nDCG@10 that a random ranking of `n_documents`, one of them relevant with grade 1, has on average.

    The relevant document is at each rank with probability 1/N: `sum over rank <= min(10, N) of
    1 / log2(rank + 1)`, divided by N.

    >>> round(chance_ndcg(80), 4)
    0.0568
    """
    return sum(1 / math.log2(rank + 1) for rank in range(1, min(10, n_documents) + 1)) / n_documents


def load_hops(
    hops: int, sizes: Sizes, text: TextSettings, seed: int, split: str = "sft", name: str = "hops"
) -> TrainingData:
    """A generated world as a data set.

    Args:
        hops: facts from a person to the place that is asked for, 1 to 4 (`ROUTES`).
        sizes: of the world.
        text: of the running text.
        seed: of the names, the facts and the running text. The model holds the facts in its weights, so every
            stage of one model needs the same world.
        split: whose people the examples ask about: "sft", each with its chain in words as `reasoning`, or
            "rl", without reasoning. Nothing else depends on it.
        name: of the data set and prefix of its benchmarks.

    Returns:
        One example per person of the split who is asked about; as corpus, in training as in both benchmarks,
        the page of every place, also of those that no fact leads to. `validation` and `test` are None where
        they have no people.

    Raises:
        ValueError: If a size is impossible, the split is unknown or empty, or `hops` is out of range.
    """
    if split not in TRAINING_SPLITS:
        raise ValueError(f"split must be one of {', '.join(TRAINING_SPLITS)}, got {split!r}")
    if not sizes.people_of(split):
        raise ValueError(f"split={split} asks about the people of sizes.{split}_people, which is 0")
    world = create_world(hops, sizes, seed)
    asked = world.people[split][: sizes.sft_queries if split == "sft" else None]
    corpus = Corpus([_id(place) for place in world.pages], list(world.pages.values()))
    texts = WorldTexts(world, text, seed)
    return TrainingData(
        name=name,
        corpus=corpus,
        examples=[_example(world, person, name, split) for person in asked],
        validation=_benchmark(world, corpus, "validation", name),
        test=_benchmark(world, corpus, "test", name),
        texts=texts,
        card=_card(world, texts, hops, split, name),
        weights={name: 1.0},
    )


def _id(name: str) -> str:
    return name.lower()


def _example(world: World, person: str, source: str, split: str) -> Example:
    facts = world.chain(person)
    place = facts[-1].object
    return Example(
        id=_id(person),
        query=world.query(person),
        positive=world.pages[place],
        positive_id=_id(place),
        relevant_ids=frozenset({_id(place)}),
        reasoning=" ".join(fact.said() for fact in facts) if split == "sft" else None,
        source=source,
    )


def _benchmark(world: World, corpus: Corpus, split: str, name: str) -> Benchmark | None:
    people = world.people[split]
    if not people:
        return None
    return Benchmark(
        name=f"{name}-{split}",
        corpus=corpus,
        queries={f"q:{_id(person)}": world.query(person) for person in people},
        qrels={f"q:{_id(person)}": {_id(world.chain(person)[-1].object): 1} for person in people},
    )


def _card(world: World, texts: WorldTexts, hops: int, split: str, name: str) -> dict:
    person = world.people["sft"][0]
    facts = world.chain(person)
    return {
        "name": name,
        "hops": hops,
        "seed": texts.seed,
        "split": split,
        "people": {split: len(people) for split, people in world.people.items()},
        "things": {kind: len(names) for kind, names in world.names.items() if kind != "person"},
        "facts": {relation: len(pairs) for relation, pairs in world.facts.items()},
        "documents": len(world.pages),
        "chance_ndcg@10": round(chance_ndcg(len(world.pages)), 4),
        "text": asdict(texts.settings),
        "licence": "Generated; all names are invented.",
        "examples": [
            {
                "query": world.query(person),
                "reasoning": " ".join(fact.said() for fact in facts),
                "document": world.pages[facts[-1].object],
                "texts": texts[:8],
            }
        ],
    }
