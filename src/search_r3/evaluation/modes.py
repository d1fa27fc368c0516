"""What may rank the documents of an evaluation: an object each, which says all that there is about it.

`bm25`; `direct` and `reasoning` of one model; rankings fused; and controls. A mode of one's own is
a class like these and a file `mode/<name>.yaml` in the folder of `--config-dir` whose `_target_` names it:
`modes=[direct,<name>]`.
What is heavy is imported where documents are ranked, so that the command knows its modes at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from search_r3.evaluation.rankers import Ranked, Task

Need = Literal["model", "base", "reasonings"]


class Mode:
    """A way to rank documents.

    Attributes:
        name: as in `modes=`, and of its folder.
        needs: what must be given: "model" (`model.path=`), "base" (`base.path=`), "reasonings" (a file).
        embeds: which of the two models embeds documents and queries; None where none does.
        reasons: whether a text is written or read for every query, which `reasoning.jsonl` then holds.
        colour: in a chart, a name of `search_r3.evaluation.colours.COLOURS` or any of matplotlib's.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset({"model"})
    embeds: ClassVar[Literal["model", "base"] | None] = "model"
    reasons: ClassVar[bool] = False
    colour: ClassVar[str | None] = None

    @property
    def settings(self) -> Mapping[str, object]:
        """What its ranking depends on besides the task; rows of other settings are other rows."""
        return {}

    def rank(self, task: Task) -> Ranked:
        """Ranks the documents for every query.

        Args:
            task: collection, models and texts; what the mode does not need is None there.
        """
        raise NotImplementedError


class Bm25(Mode):
    """BM25 on the queries as they are."""

    name, needs, embeds, colour = "bm25", frozenset(), None, "grey"

    def rank(self, task: Task) -> Ranked:
        from search_r3.evaluation.rankers import lexical

        return lexical(task.benchmark, task.settings)


class BaseDirect(Mode):
    """The untuned base alone embeds the queries."""

    name, needs, embeds, colour = "base-direct", frozenset({"base"}), "base", "purple"

    def rank(self, task: Task) -> Ranked:
        from search_r3.evaluation.rankers import direct

        return direct(task, task.base.embedder)


class Direct(Mode):
    """The evaluated model embeds the queries."""

    name, colour = "direct", "blue"

    def rank(self, task: Task) -> Ranked:
        from search_r3.evaluation.rankers import direct

        return direct(task, task.model.embedder)


class Reasoning(Mode):
    """The evaluated model writes about the query, and then embeds it.

    Args:
        limit: tokens that it writes at most, `lengths.reasoning` of the model folder where None: a dial of
            price against quality.

    Raises:
        ValueError: If the limit is below 1.
    """

    name, reasons, colour = "reasoning", True, "vermilion"

    def __init__(self, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1 token, got {limit}; the mode direct writes none")
        self.limit = limit

    @property
    def settings(self) -> Mapping[str, object]:
        return {} if self.limit is None else {"limit": self.limit}

    def rank(self, task: Task) -> Ranked:
        from search_r3.evaluation.rankers import reasoned

        return reasoned(task, task.model, limit=self.limit)


class BaseReasoning(Mode):
    """The untuned base writes, and the evaluated model embeds."""

    name, needs, reasons, colour = "base-reasoning", frozenset({"model", "base"}), True, "orange"

    def rank(self, task: Task) -> Ranked:
        from search_r3.evaluation.rankers import reasoned

        return reasoned(task, task.base, lambda written: written.texts)


class ShuffledReasoning(Mode):
    """Every query gets the reasoning of another one."""

    name, reasons, colour = "shuffled-reasoning", True, "sky"

    def rank(self, task: Task) -> Ranked:
        from search_r3.evaluation.rankers import reasoned, shuffled

        return reasoned(task, task.model, lambda written: shuffled(written, task.settings.seed))


class GivenReasoning(Mode):
    """The evaluated model reads the texts of a file."""

    name, needs, reasons, colour = "given-reasoning", frozenset({"model", "reasonings"}), True, "green"

    def rank(self, task: Task) -> Ranked:
        from search_r3.evaluation.rankers import given

        return given(task, task.model.embedder)


class GivenBm25(Mode):
    """BM25 is asked for the query and the text of a file together."""

    name, needs, embeds, colour = "given-bm25", frozenset({"reasonings"}), None, "yellow"

    def rank(self, task: Task) -> Ranked:
        from search_r3.evaluation.rankers import lexical, with_given

        return lexical(with_given(task.benchmark, task.given), task.settings)


class Hybrid(Mode):
    """What the model finds after reasoning, and what BM25 finds, fused by their ranks.

    A document's score is `1 / (constant + rank)` summed over both rankings (reciprocal rank fusion; Cormack,
    Clarke and Buettcher, SIGIR 2009), since a cosine and a score of BM25 have no common scale. Its price is
    that of both.

    Args:
        constant: `k` of the formula, 60 in the paper.

    Raises:
        ValueError: If it is negative or no finite number.
    """

    name, reasons, colour = "hybrid", True, "#8C564B"
    ranking: ClassVar[Mode] = Reasoning()

    def __init__(self, constant: float = 60.0) -> None:
        if not 0 <= constant < float("inf"):
            raise ValueError(f"constant must be a number of at least 0, got {constant}")
        self.constant = float(constant)

    @property
    def settings(self) -> Mapping[str, object]:
        return {"constant": self.constant}

    def rank(self, task: Task) -> Ranked:
        from search_r3.evaluation.rankers import with_lexical

        return with_lexical(task, self.ranking.rank(task), self.constant)


class HybridDirect(Hybrid):
    """As `Hybrid`, of what the model finds without reasoning."""

    name, reasons, colour = "hybrid-direct", False, "#C49C94"
    ranking: ClassVar[Mode] = Direct()


class FusedReasoning(Mode):
    """The model writes `n` texts about the query, drawn at random, and ranks by the mean of their embeddings.

    Embeddings are fused and not rankings, because they are of one model and so on one scale: the mean of `n`
    unit vectors ranks documents by their mean cosine, keeps how far apart they are, and costs one search. It
    is what HyDE does with the texts that it draws (Gao et al., arXiv:2212.10496). A query counts among those
    without an embed token where any of its texts ended without one.

    Args:
        n: texts per query.
        temperature: of drawing; above 0, or all texts would be one.
        seed: of drawing; texts depend on it and on the place of the query in the collection.

    Raises:
        ValueError: If a number is out of its range.
    """

    name, reasons, colour = "fused-reasoning", True, "#E377C2"

    def __init__(self, n: int = 4, temperature: float = 0.7, seed: int = 0) -> None:
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be above 0, got {temperature}; the mode reasoning is greedy")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.n, self.temperature, self.seed = n, float(temperature), seed

    @property
    def settings(self) -> Mapping[str, object]:
        return {"n": self.n, "temperature": self.temperature, "seed": self.seed}

    def rank(self, task: Task) -> Ranked:
        from search_r3.evaluation.rankers import sampled

        return sampled(task, task.model.embedder, self.n, self.temperature, self.seed)


class Blended(Mode):
    """The model embeds a query as it is and after what it wrote, and ranks by a mean of the two embeddings.

    What was written then adds to the query and cannot displace it. HyDE counts the query among its texts in
    the same way (Gao et al., arXiv:2212.10496).

    Args:
        direct_share: weight of the query as it is; the text has the rest.

    Raises:
        ValueError: If it is not between 0 and 1.
    """

    name, reasons, colour = "blended", True, "#9467BD"

    def __init__(self, direct_share: float = 0.5) -> None:
        if not 0 < direct_share < 1:
            raise ValueError(
                f"direct_share must be above 0, which is the mode reasoning, and below 1, which is the mode "
                f"direct, got {direct_share}"
            )
        self.direct_share = float(direct_share)

    @property
    def settings(self) -> Mapping[str, object]:
        return {"direct_share": self.direct_share}

    def rank(self, task: Task) -> Ranked:
        from search_r3.evaluation.rankers import blended

        return blended(task, task.model, self.direct_share)


class Auto(Mode):
    """The model reasons only about queries whose direct ranking is unsure.

    Unsure is a ranking whose first document is less than `threshold` of cosine above its second; the query's
    own document, where the collection takes it out, is neither. The others keep the direct ranking. The row
    says which share of the queries reasoned (`reasoned_share`); an unsure query is paid twice, directly and
    with reasoning. `search_r3.evaluation.gate.write_gate` sets the threshold on a validation collection.

    Args:
        threshold: of cosine, from 0 (never) to 2 (always).

    Raises:
        ValueError: If it is out of its range.
    """

    name, reasons, colour = "auto", True, "#17BECF"

    def __init__(self, threshold: float = 0.05) -> None:
        if not 0 <= threshold <= 2:
            raise ValueError(f"threshold must be a difference of cosines, from 0 to 2, got {threshold}")
        self.threshold = float(threshold)

    @property
    def settings(self) -> Mapping[str, object]:
        return {"threshold": self.threshold}

    def rank(self, task: Task) -> Ranked:
        from search_r3.evaluation.rankers import gated

        return gated(task, task.model, self.threshold)


MODES: Mapping[str, Mode] = {
    mode.name: mode
    for mode in (
        Bm25(),
        BaseDirect(),
        Direct(),
        Reasoning(),
        BaseReasoning(),
        ShuffledReasoning(),
        GivenReasoning(),
        GivenBm25(),
        Hybrid(),
        HybridDirect(),
        FusedReasoning(),
        Blended(),
        Auto(),
    )
}
"""Those that are shipped, by name; conf/mode/ has a file for each."""

SEARCH_MODES = (Direct.name, Reasoning.name)
"""In which one query is answered: by the library, by `src.search`, and for mteb."""
