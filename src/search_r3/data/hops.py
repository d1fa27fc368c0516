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
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, count, islice
from random import Random

from search_r3.data.texts import Texts
from search_r3.data.types import Benchmark, Corpus, Example, TrainingData

SPLITS = ("sft", "rl", "validation", "test")
TRAINING_SPLITS = ("sft", "rl")


@dataclass(frozen=True)
class Relation:
    """A kind of fact.

    Attributes:
        subject: kind that it is about.
        object: kind that it leads to.
        wordings: sentences of the subject `{a}` and the object `{b}`; the first is that of a reasoning.
    """

    subject: str
    object: str
    wordings: tuple[str, ...]


RELATIONS = {
    "lives": Relation(
        "person",
        "city",
        (
            "{a} lives in {b}.",
            "{a} has a home in {b}.",
            "{b} is where {a} lives.",
            "The home of {a} is in {b}.",
        ),
    ),
    "mentor": Relation(
        "person",
        "person",
        ("The mentor of {a} is {b}.", "{a} learns from {b}.", "{b} teaches {a}.", "{a} has {b} as a mentor."),
    ),
    "works": Relation(
        "person",
        "company",
        (
            "{a} works at {b}.",
            "{a} is employed by {b}.",
            "{b} employs {a}.",
            "{a} has a job at {b}.",
            "Among the people at {b} is {a}.",
        ),
    ),
    "seat": Relation(
        "company",
        "city",
        (
            "{a} is in {b}.",
            "{a} has its seat in {b}.",
            "{b} is home to {a}.",
            "The offices of {a} are in {b}.",
        ),
    ),
    "part": Relation(
        "city",
        "region",
        ("{a} lies in {b}.", "{a} is part of {b}.", "{b} includes {a}.", "The city of {a} belongs to {b}."),
    ),
}


@dataclass(frozen=True)
class Route:
    """What a query asks.

    Attributes:
        relations: names of the relations from a person to the place, in order.
        query: sentence about the person `{a}`.
    """

    relations: tuple[str, ...]
    query: str

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds that the chain passes, from the person to the place, each once."""
        return tuple(dict.fromkeys(["person", *(RELATIONS[name].object for name in self.relations)]))


ROUTES = {
    1: Route(("lives",), "Which city does {a} live in?"),
    2: Route(("works", "seat"), "Which city does {a} work in?"),
    3: Route(("works", "seat", "part"), "Which region does {a} work in?"),
    4: Route(("mentor", "works", "seat", "part"), "Which region does the mentor of {a} work in?"),
}

QUESTIONS = (
    "What about {a}?",
    "And {a}?",
    "Who or what is {a}?",
    "What is {a} known for?",
    "What can you tell me of {a} in a few words?",
    "Who has spoken of {a} before?",
)
"""A fact that answers one says its subject again at once: the model learns to copy a name from a question,
wherever in it the name stands."""

_PAGE = (
    "{a} is a {kind} {where}. It is known for its {product}. Visitors come to {a} for {sight}. "
    "In {a} the winters are {winter}."
)
_PAGE_WORDS = {
    "where": (
        "by the sea",
        "on a wide river",
        "at the foot of a mountain",
        "among low hills",
        "on a dry plain",
        "near a great forest",
        "around a deep lake",
        "on a windy coast",
    ),
    "product": (
        "barley",
        "glass",
        "copper",
        "wool",
        "honey",
        "paper",
        "salt",
        "cheese",
        "silk",
        "apples",
        "lamps",
    ),
    "sight": (
        "its old bridge",
        "its stone tower",
        "its market",
        "its gardens",
        "its harbour",
        "its library",
        "its water mill",
        "its narrow streets",
        "its ruined castle",
        "its music",
    ),
    "winter": ("mild", "long", "wet", "bright", "harsh", "short"),
}

_PLURAL = {"person": "people", "company": "companies", "city": "cities", "region": "regions"}
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
# The last letters keep the kinds apart, and end no word that an English stemmer would shorten.
_ENDINGS = {"person": "aou", "company": "x", "city": "m", "region": "k"}
_SPARSENESS = 8  # so many times more names could be formed than are used, so that few differ by one letter


@dataclass(frozen=True)
class Sizes:
    """How much of everything there is.

    Attributes:
        sft_people: people of the SFT split; their linked facts stand together in the text.
        sft_queries: how many of them SFT asks about, each with its chain.
        rl_people: people of the RL split.
        validation_people: people asked about in in-training evaluation.
        test_people: people that no decision is taken on.
        companies: used from two hops on.
        sft_companies: how many of them have SFT people only; the others have none of them. So nothing that is
            learnt from an SFT person's place says where anyone else's company is.
        cities: the pages, up to two hops.
        regions: the pages, from three hops on.
    """

    sft_people: int
    sft_queries: int
    rl_people: int
    validation_people: int
    test_people: int
    companies: int
    sft_companies: int
    cities: int
    regions: int

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            least = 0 if key.endswith("_people") and key != "sft_people" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"sizes.{key} must be a whole number of at least {least}, got {value!r}")
        if self.sft_queries > self.sft_people:
            raise ValueError(
                f"sizes.sft_queries={self.sft_queries} is more than sizes.sft_people={self.sft_people}: SFT "
                "asks about each of them once"
            )

    @property
    def people(self) -> int:
        return sum(self.people_of(split) for split in SPLITS)

    def people_of(self, split: str) -> int:
        return getattr(self, f"{split}_people")

    def of(self, kind: str) -> int:
        """Number of things of a kind."""
        return getattr(self, _PLURAL[kind])


@dataclass(frozen=True)
class TextSettings:
    """What the running text is made of.

    Attributes:
        lines: number of texts.
        facts_per_line: the most different facts in a line of unlinked facts.
        chain_share: share of lines with chains of SFT people.
        page_share: share of lines that are a page.
        query_share: share of lines that are a query of an SFT person.
        question_share: share of unlinked facts that answer a question about their subject, see `QUESTIONS`.
    """

    lines: int
    facts_per_line: int
    chain_share: float
    page_share: float
    query_share: float
    question_share: float

    def __post_init__(self) -> None:
        for key in ("lines", "facts_per_line"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"text.{key} must be a whole number of at least 1, got {value!r}")
        shares = {key: getattr(self, key) for key in ("chain_share", "page_share", "query_share")}
        for key, share in {**shares, "question_share": self.question_share}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"text.{key} must be in [0, 1], got {share!r}")
        if sum(shares.values()) >= 1:
            total = sum(shares.values())
            raise ValueError(f"text: {', '.join(shares)} must leave a share for facts, they sum to {total:g}")


@dataclass(frozen=True)
class Fact:
    """`subject` and `object` are names, `relation` is a key of `RELATIONS`."""

    relation: str
    subject: str
    object: str

    def said(self, wording: int = 0) -> str:
        return RELATIONS[self.relation].wordings[wording].format(a=self.subject, b=self.object)


@dataclass(frozen=True)
class World:
    """Names and facts.

    Attributes:
        route: what is asked.
        people: names by split.
        names: names by kind, of the kinds on the route.
        facts: by relation and subject; one object each.
        pages: text by name of the place.
    """

    route: Route
    people: Mapping[str, tuple[str, ...]]
    names: Mapping[str, tuple[str, ...]]
    facts: Mapping[str, Mapping[str, str]]
    pages: Mapping[str, str]

    def chain(self, person: str) -> tuple[Fact, ...]:
        """The facts from a person to the place, in order."""
        facts, name = [], person
        for relation in self.route.relations:
            facts.append(Fact(relation, name, self.facts[relation][name]))
            name = facts[-1].object
        return tuple(facts)

    def query(self, person: str) -> str:
        return self.route.query.format(a=person)

    @cached_property
    def facts_of(self) -> Mapping[str, tuple[Fact, ...]]:
        """All facts by relation."""
        return {
            relation: tuple(Fact(relation, a, b) for a, b in pairs.items())
            for relation, pairs in self.facts.items()
        }

    @cached_property
    def relation_weights(self) -> tuple[float, ...]:
        """How often each relation of the route is told, relative to the others."""
        return tuple(math.sqrt(len(self.facts_of[relation])) for relation in self.route.relations)


class WorldTexts(Texts):
    """The running text, one line per row, made when it is asked for.

    A line's content depends on the world, the settings, the seed and its row only.

    Args:
        world: what is told.
        settings: of the lines.
        seed: of the lines.
    """

    def __init__(self, world: World, settings: TextSettings, seed: int) -> None:
        self.world, self.settings, self.seed = world, settings, seed

    def __len__(self) -> int:
        return self.settings.lines

    def _text(self, row: int) -> str:
        random = Random(f"hops/{self.seed}/line/{int(row)}")
        kind = random.random()
        for share, line in (
            (self.settings.chain_share, self._chains),
            (self.settings.page_share, self._page),
            (self.settings.query_share, self._query),
        ):
            if kind < share:
                return line(random)
            kind -= share
        return self._facts(random)

    def _facts(self, random: Random) -> str:
        """Unlinked facts: no two different ones share a name.

        Facts come back in other words: each perhaps at once, or all of them in their order. So what was read
        before is worth copying, which chains and answers need. A relation is told in proportion to the square
        root of the number of its facts: a fact of a large one less often, but not in proportion.
        """
        facts: list[Fact] = []
        used: set[str] = set()
        for _ in range(random.randint(1, self.settings.facts_per_line)):
            relation = random.choices(self.world.route.relations, self.world.relation_weights)[0]
            fact = random.choice(self.world.facts_of[relation])
            if used.isdisjoint((fact.subject, fact.object)):
                facts.append(fact)
                used |= {fact.subject, fact.object}
        if random.random() < 0.5:
            told = [fact for fact in facts for _ in range(random.randint(1, 2))]
        else:
            told = facts + facts
        share = self.settings.question_share
        return " ".join(
            _as_an_answer(fact, random) if random.random() < share else _in_some_words(fact, random)
            for fact in told
        )

    def _chains(self, random: Random) -> str:
        people = self.world.people["sft"]
        chosen = [random.choice(people) for _ in range(random.randint(1, 2))]
        facts = chain.from_iterable(self.world.chain(person) for person in chosen)
        return " ".join(_in_some_words(fact, random) for fact in facts)

    def _page(self, random: Random) -> str:
        places = self.world.names[self.world.route.kinds[-1]]
        return self.world.pages[random.choice(places)]

    def _query(self, random: Random) -> str:
        return self.world.query(random.choice(self.world.people["sft"]))


def _in_some_words(fact: Fact, random: Random) -> str:
    """A fact, half of the time in its first wording."""
    others = len(RELATIONS[fact.relation].wordings) - 1
    return fact.said(0 if random.random() < 0.5 else random.randint(1, others))


def _as_an_answer(fact: Fact, random: Random) -> str:
    """A question about a fact's subject, and the fact in words that begin with it."""
    wordings = RELATIONS[fact.relation].wordings
    beginning = [number for number, wording in enumerate(wordings) if wording.startswith("{a}")]
    return f"{random.choice(QUESTIONS).format(a=fact.subject)} {fact.said(random.choice(beginning))}"


def chance_ndcg(n_documents: int, k: int = 10) -> float:
    """nDCG@k that a random ranking of `n_documents`, one of them relevant with grade 1, has on average.

    The relevant document is at each rank with probability 1/N: `sum over rank <= min(k, N) of
    1 / log2(rank + 1)`, divided by N.

    >>> round(chance_ndcg(80), 4)
    0.0568
    """
    return sum(1 / math.log2(rank + 1) for rank in range(1, min(k, n_documents) + 1)) / n_documents


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
        the page of every place. `validation` and `test` are None where they have no people.

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
        card=_card(world, texts, hops, sizes, split, name),
        weights={name: 1.0},
    )


def create_world(hops: int, sizes: Sizes, seed: int) -> World:
    """Names, facts and pages.

    Links are spread evenly, beginning with the SFT people: among their companies two differ by one person at
    most, among the others too, two cities differ by one company, and all companies, cities and regions are
    reached.

    Raises:
        ValueError: If `hops` is out of range, or a kind has more things than the kind that leads to it, so
            that some could not be reached.
    """
    if hops not in ROUTES or isinstance(hops, bool):
        raise ValueError(f"hops must be one of {', '.join(map(str, ROUTES))}, got {hops!r}")
    route = ROUTES[hops]
    _check_reachable(route, sizes)
    random = Random(f"hops/{seed}/world")
    said = _said_words()
    names = {kind: _new_names(kind, sizes.of(kind), said, random) for kind in route.kinds}
    remaining = iter(names["person"])
    people = {split: tuple(islice(remaining, sizes.people_of(split))) for split in SPLITS}
    facts = {}
    for relation in route.relations:
        ends = RELATIONS[relation]
        if relation == "mentor":
            facts[relation] = _mentors(people, random)
        elif relation == "works":
            facts[relation] = _employers(people, names["company"], sizes.sft_companies, random)
        else:
            facts[relation] = _evenly(names[ends.subject], names[ends.object], random)
    pages = {place: _page(place, route.kinds[-1], random) for place in names[route.kinds[-1]]}
    return World(route, people, names, facts, pages)


def _check_reachable(route: Route, sizes: Sizes) -> None:
    for relation in route.relations:
        ends = RELATIONS[relation]
        given, wanted = sizes.of(ends.subject), sizes.of(ends.object)
        if given < wanted:
            is_person = ends.subject == "person"
            source = "all sizes.*_people together" if is_person else f"sizes.{_PLURAL[ends.subject]}"
            raise ValueError(
                f"sizes.{_PLURAL[ends.object]}={wanted} is more than {source}={given}: "
                f"each {ends.subject} leads to one {ends.object}, so some could not be reached"
            )
    if "works" in route.relations:
        _check_employers(sizes)
    if sizes.of(route.kinds[-1]) < 2:
        raise ValueError(f"sizes.{_PLURAL[route.kinds[-1]]} is the number of pages, at least 2; got 1")
    for split in SPLITS:
        if "mentor" in route.relations and sizes.people_of(split) == 1:
            raise ValueError(
                f"sizes.{split}_people must be 0 or at least 2 with hops=4, where everyone has a mentor "
                "of the same split; got 1"
            )


def _check_employers(sizes: Sizes) -> None:
    n_others, n_left = sizes.people - sizes.sft_people, sizes.companies - sizes.sft_companies
    if sizes.sft_companies > sizes.sft_people:
        raise ValueError(
            f"sizes.sft_companies={sizes.sft_companies} is more than sizes.sft_people={sizes.sft_people}: "
            "each person leads to one company, so some could not be reached"
        )
    if n_left > n_others or (n_left < 1 and n_others > 0):
        raise ValueError(
            f"sizes.sft_companies={sizes.sft_companies} of sizes.companies={sizes.companies} leaves {n_left} "
            f"for the {n_others} people who are not of the SFT split; leave at least one, and at most as "
            "many as there are people"
        )


def _said_words() -> frozenset[str]:
    """Words of all sentences; no name is one of them."""
    sentences = [
        _PAGE,
        *(wording for relation in RELATIONS.values() for wording in relation.wordings),
        *(route.query for route in ROUTES.values()),
        *QUESTIONS,
        *(phrase for phrases in _PAGE_WORDS.values() for phrase in phrases),
    ]
    return frozenset(re.findall(r"[a-z]+", " ".join(sentences).lower())) | set(_ENDINGS)


def _new_names(kind: str, n: int, taken: frozenset[str], random: Random) -> tuple[str, ...]:
    """Distinct names of syllables such as "Kanobu"; of as few as leave most of the possible ones unused."""
    endings, n_syllables = _ENDINGS[kind], len(_CONSONANTS) * len(_VOWELS)
    is_open = endings[0] in _VOWELS  # then the last syllable's vowel is the ending
    for length in count(2):
        size = n_syllables**length * len(endings) // (len(_VOWELS) if is_open else 1)
        if size >= _SPARSENESS * (n + len(taken)):
            break
    numbers = random.sample(range(size), n + len(taken))
    found = (_name(number, length, endings, is_open) for number in numbers)
    return tuple(islice((name for name in found if name.lower() not in taken), n))


def _name(number: int, length: int, endings: str, is_open: bool) -> str:
    """The name of a number: its digits are syllables, its lowest digits the ending."""
    number, last = divmod(number, len(endings))
    letters = endings[last]
    if is_open:
        number, last = divmod(number, len(_CONSONANTS))
        letters = _CONSONANTS[last] + letters
        length -= 1
    for _ in range(length):
        number, vowel = divmod(number, len(_VOWELS))
        number, consonant = divmod(number, len(_CONSONANTS))
        letters = _CONSONANTS[consonant] + _VOWELS[vowel] + letters
    return letters.capitalize()


def _evenly(subjects: Sequence[str], objects: Sequence[str], random: Random) -> dict[str, str]:
    """An object for each subject, dealt in rounds: all objects occur in a round, each in another order."""

    def rounds() -> Iterator[str]:
        while True:
            yield from random.sample(objects, len(objects))

    return dict(zip(subjects, rounds(), strict=False))


def _employers(
    people: Mapping[str, tuple[str, ...]], companies: Sequence[str], n_sft: int, random: Random
) -> dict[str, str]:
    """A company for everyone; the first `n_sft` have SFT people only, the others nobody of them."""
    others = [person for split in SPLITS[1:] for person in people[split]]
    own = _evenly(people["sft"], companies[:n_sft], random)
    return own | (_evenly(others, companies[n_sft:], random) if others else {})


def _mentors(people: Mapping[str, tuple[str, ...]], random: Random) -> dict[str, str]:
    """Another person of the same split for everyone, so that no chain leaves its split."""
    facts = {}
    for members in people.values():
        ring = random.sample(members, len(members))
        after = dict(zip(ring, ring[1:] + ring[:1], strict=True))
        facts |= {person: after[person] for person in members}
    return facts


def _page(place: str, kind: str, random: Random) -> str:
    return _PAGE.format(
        a=place, kind=kind, **{key: random.choice(words) for key, words in _PAGE_WORDS.items()}
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


def _card(world: World, texts: WorldTexts, hops: int, sizes: Sizes, split: str, name: str) -> dict:
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
