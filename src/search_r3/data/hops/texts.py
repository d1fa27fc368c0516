"""The running text, from which a model learns the facts."""

from itertools import chain
from random import Random

from search_r3.data.hops.settings import TextSettings
from search_r3.data.hops.words import QUESTIONS, RELATIONS
from search_r3.data.hops.world import Fact, World
from search_r3.data.texts import Texts


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
