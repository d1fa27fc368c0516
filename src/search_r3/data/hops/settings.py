"""How much of everything there is in the world, and what the running text is made of."""

from dataclasses import asdict, dataclass

SPLITS = ("sft", "rl", "validation", "test")
TRAINING_SPLITS = ("sft", "rl")

PLURAL = {"person": "people", "company": "companies", "city": "cities", "region": "regions"}


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
        other_pages: pages of further places, which no fact leads to. Each is named after two places or more,
            so that its page says the very names that a chain ends with.
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
    other_pages: int = 0

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            may_be_none = key.endswith(("_people", "_pages")) and key != "sft_people"
            least = 0 if may_be_none else 1
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
        return getattr(self, PLURAL[kind])


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
