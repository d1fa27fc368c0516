"""The world: names, facts and pages, and how they are drawn."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from random import Random

from search_r3.data.hops.names import new_names
from search_r3.data.hops.settings import PLURAL, SPLITS, Sizes
from search_r3.data.hops.words import PAGE, PAGE_WORDS, RELATIONS, ROUTES, Route, said_words


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
        pages: text by name of the place; those of other places, which no fact leads to, at the end.
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
    said = said_words()
    names = {kind: new_names(kind, sizes.of(kind), said, random) for kind in route.kinds}
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
    kind = route.kinds[-1]
    pages = {place: _page(place, kind, random) for place in names[kind]}
    # Drawn apart, so that a world with more pages keeps its names, facts and pages.
    others = Random(f"hops/{seed}/others")
    pages |= {place: _page(place, kind, others) for place in _others(names[kind], sizes.other_pages, others)}
    return World(route, people, names, facts, pages)


def _check_reachable(route: Route, sizes: Sizes) -> None:
    for relation in route.relations:
        ends = RELATIONS[relation]
        given, wanted = sizes.of(ends.subject), sizes.of(ends.object)
        if given < wanted:
            is_person = ends.subject == "person"
            source = "all sizes.*_people together" if is_person else f"sizes.{PLURAL[ends.subject]}"
            raise ValueError(
                f"sizes.{PLURAL[ends.object]}={wanted} is more than {source}={given}: "
                f"each {ends.subject} leads to one {ends.object}, so some could not be reached"
            )
    if "works" in route.relations:
        _check_employers(sizes)
    if sizes.of(route.kinds[-1]) < 2:
        raise ValueError(f"sizes.{PLURAL[route.kinds[-1]]} is the number of pages, at least 2; got 1")
    if sizes.other_pages:
        _check_others(route.kinds[-1], sizes)
    for split in SPLITS:
        if "mentor" in route.relations and sizes.people_of(split) == 1:
            raise ValueError(
                f"sizes.{split}_people must be 0 or at least 2 with hops=4, where everyone has a mentor "
                "of the same split; got 1"
            )


def _check_others(kind: str, sizes: Sizes) -> None:
    n_names = math.perm(sizes.of(kind))  # in as many words as there are places
    if sizes.other_pages > n_names:
        raise ValueError(
            f"sizes.other_pages={sizes.other_pages} is more than the {n_names} names that can be made of the "
            f"names of sizes.{PLURAL[kind]}={sizes.of(kind)}"
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


def _others(places: Sequence[str], n: int, random: Random) -> list[str]:
    """Distinct names of several places, such as "Kanom Velim", in as few words as give `n` of them."""
    n_words = next(k for k in count(2) if k >= len(places) or math.perm(len(places), k) >= n)
    return [
        _named_after(places, number, n_words)
        for number in random.sample(range(math.perm(len(places), n_words)), n)
    ]


def _named_after(places: Sequence[str], number: int, n_words: int) -> str:
    """The arrangement of `n_words` different places that has this number."""
    left, words = list(places), []
    for _ in range(n_words):
        number, place = divmod(number, len(left))
        words.append(left.pop(place))
    return " ".join(words)


def _page(place: str, kind: str, random: Random) -> str:
    return PAGE.format(a=place, kind=kind, **{key: random.choice(words) for key, words in PAGE_WORDS.items()})
