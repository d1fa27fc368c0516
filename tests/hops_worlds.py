"""A generated world for tests, and what its sentences say, read from the text and not from the code."""

import re
from itertools import combinations

import pytest

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.instantiate import instantiate
from search_r3.data.hops.reader import load_hops
from search_r3.data.hops.settings import Sizes, TextSettings

SIZES = {
    "sft_people": 40,
    "rl_people": 24,
    "validation_people": 8,
    "test_people": 24,
    "companies": 16,
    "sft_companies": 12,
    "cities": 12,
    "regions": 6,
}
TEXT = {
    "lines": 4000,
    "facts_per_line": 5,
    "chain_share": 0.3,
    "page_share": 0.1,
    "query_share": 0.1,
    "question_share": 0.3,
}

# Read from the sentences, not from the code: what a fact looks like in the words of a reasoning.
NAME = "([A-Z][a-z]+)"
SENTENCES = {
    "lives": rf"{NAME} lives in {NAME}\.",
    "mentor": rf"The mentor of {NAME} is {NAME}\.",
    "works": rf"{NAME} works at {NAME}\.",
    "seat": rf"(?<!of ){NAME} is in {NAME}\.",
    "part": rf"{NAME} lies in {NAME}\.",
}
PATHS = {
    1: ["lives"],
    2: ["works", "seat"],
    3: ["works", "seat", "part"],
    4: ["mentor", "works", "seat", "part"],
}
QUERIES = {
    1: rf"Which city does {NAME} live in\?",
    2: rf"Which city does {NAME} work in\?",
    3: rf"Which region does {NAME} work in\?",
    4: rf"Which region does the mentor of {NAME} work in\?",
}
NO_NAMES = {"The", "Among", "Which", "It", "Visitors", "In", "What", "And", "Who"}
"""Capitalised words that are no names."""


def load(hops=2, split="sft", seed=1, text=(), **sizes):
    sizes = SIZES | sizes
    sizes.setdefault("sft_queries", sizes["sft_people"])
    return load_hops(hops, Sizes(**sizes), TextSettings(**(TEXT | dict(text))), seed, split)


def composed(*overrides):
    with ConfigSource() as source:
        return compose("train", ["stage=sft", "data=hops", "model=nano_hops", *overrides], source).config


@pytest.fixture(scope="module")
def default():
    """The data set as configured."""
    return instantiate(composed().data)


def names_in(text):
    return set(re.findall(NAME, text)) - NO_NAMES


def facts_told(texts):
    """Object by subject and relation, read line by line; a second object for one subject is an error."""
    facts = {relation: {} for relation in SENTENCES}
    for line in texts:
        for relation, pattern in SENTENCES.items():
            for a, b in re.findall(pattern, line):
                assert facts[relation].setdefault(a, b) == b, (relation, a)
    return facts


def person_of(query, hops):
    return re.fullmatch(QUERIES[hops], query)[1]


def followed(person, hops, facts):
    for relation in PATHS[hops]:
        person = facts[relation][person]
    return person


def held_out_people(data, hops):
    queries = [*data.validation.queries.values(), *data.test.queries.values()]
    return {person_of(query, hops) for query in queries}


def links(line):
    """Pairs of different facts of a line that share a name: sentences with other, overlapping names."""
    said = {frozenset(names_in(sentence)) for sentence in re.findall(r"[^.?]+[.?]", line)}
    facts = [names for names in said if len(names) > 1]  # a question has one name
    return [(a, b) for a, b in combinations(facts, 2) if a & b]


def everything(data):
    return data.corpus.fingerprint, data.examples, list(data.texts), dict(data.test.queries), data.test.qrels
