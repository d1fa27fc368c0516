"""What may rank the documents of an evaluation: an object each, which says all that there is about it.

`bm25`; `direct` and `reasoning` of one model; and controls. A mode of one's own is a class like these and a
file `mode/<name>.yaml` in the folder of `--config-dir` whose `_target_` names it: `modes=[direct,<name>]`.
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
    """The evaluated model writes about the query, and then embeds it."""

    name, reasons, colour = "reasoning", True, "vermilion"

    def rank(self, task: Task) -> Ranked:
        from search_r3.evaluation.rankers import reasoned

        return reasoned(task, task.model.embedder)


class BaseReasoning(Mode):
    """The untuned base writes, and the evaluated model embeds."""

    name, needs, reasons, colour = "base-reasoning", frozenset({"model", "base"}), True, "orange"

    def rank(self, task: Task) -> Ranked:
        from search_r3.evaluation.rankers import reasoned

        return reasoned(task, task.base.embedder, lambda written: written.texts)


class ShuffledReasoning(Mode):
    """Every query gets the reasoning of another one."""

    name, reasons, colour = "shuffled-reasoning", True, "sky"

    def rank(self, task: Task) -> Ranked:
        from search_r3.evaluation.rankers import reasoned, shuffled

        return reasoned(task, task.model.embedder, lambda written: shuffled(written, task.settings.seed))


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
    )
}
"""Those that are shipped, by name; conf/mode/ has a file for each."""
