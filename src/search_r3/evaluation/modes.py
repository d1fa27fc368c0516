"""What may rank the documents of an evaluation; imports nothing, so that the command knows them at once.

`bm25`; `direct` and `reasoning` of one model; and controls. `base-direct` is the untuned base alone. In
`base-reasoning` the untuned base writes and the evaluated model embeds. In `shuffled-reasoning` every query
gets another query's reasoning. In `given-reasoning` the evaluated model reads the texts of a file, and in
`given-bm25` BM25 is asked for the query and that text together.
"""

MODES = (
    "bm25",
    "base-direct",
    "direct",
    "reasoning",
    "base-reasoning",
    "shuffled-reasoning",
    "given-reasoning",
    "given-bm25",
)
NEED_BASE = frozenset({"base-direct", "base-reasoning"})
NEED_NO_MODEL = frozenset({"bm25", "base-direct", "given-bm25"})
NEED_REASONINGS = frozenset({"given-reasoning", "given-bm25"})
LEXICAL = frozenset({"bm25", "given-bm25"})
