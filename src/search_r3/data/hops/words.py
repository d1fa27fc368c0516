"""The words of the world: relations and how they are said, routes and what they ask, pages, questions."""

import re
from dataclasses import dataclass


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

PAGE = (
    "{a} is a {kind} {where}. It is known for its {product}. Visitors come to {a} for {sight}. "
    "In {a} the winters are {winter}."
)
PAGE_WORDS = {
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
# The last letters keep the kinds apart, and end no word that an English stemmer would shorten.
ENDINGS = {"person": "aou", "company": "x", "city": "m", "region": "k"}


def said_words() -> frozenset[str]:
    """Words of all sentences; no name is one of them."""
    sentences = [
        PAGE,
        *(wording for relation in RELATIONS.values() for wording in relation.wordings),
        *(route.query for route in ROUTES.values()),
        *QUESTIONS,
        *(phrase for phrases in PAGE_WORDS.values() for phrase in phrases),
    ]
    return frozenset(re.findall(r"[a-z]+", " ".join(sentences).lower())) | set(ENDINGS)
