"""What may rank the documents of an evaluation; imports nothing, so that the command knows them at once.

`bm25`; `direct` and `reasoning` of one model; and controls. `base-direct` is the untuned base alone. In
`base-reasoning` the untuned base writes and the evaluated model embeds. In `shuffled-reasoning` every query
gets another query's reasoning.
"""

MODES = ("bm25", "base-direct", "direct", "reasoning", "base-reasoning", "shuffled-reasoning")
NEED_BASE = frozenset({"base-direct", "base-reasoning"})
NEED_NO_MODEL = frozenset({"bm25", "base-direct"})
