"""Errors that are told to the user as they are, in one line, and what is said of those of others."""

import re


class UsageError(Exception):
    """The command cannot mean anything; the message says why and what would. Ends with exit code 2."""


_OF_TORCH = ("CUDA out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch says where it was a tensor that did not fit."""
_SENTENCES = 3
"""How much of an allocator's message is said: what it wanted and what there was; then it lists processes."""
_LONGEST = 400


def first_line(error: BaseException) -> str:
    """The first line of what an exception of others says, with the next where it ends in a colon.

    Its kind where it says nothing, and before a key that was not found, which alone says little.
    """
    kind, lines = type(error).__name__, [line.strip() for line in str(error).strip().splitlines()]
    said = " ".join(lines[:2]) if lines and lines[0].endswith(":") else (lines or [kind])[0]
    return f"{kind}: {said}" if isinstance(error, KeyError) and lines else said


def memory_text(error: BaseException) -> str | None:
    """What of torch's did not fit into memory, and what needs less; None where that is not what happened."""
    words = " ".join(str(error).split())
    if not any(each in words for each in _OF_TORCH):
        return None
    said = ". ".join(re.split(r"\.\s", words)[:_SENTENCES]).rstrip(".")
    return (
        f"{said[:_LONGEST]}. Forwards of fewer tokens need less: a smaller model.token_budget; in training "
        "also a smaller stage.module.chunk_rows (SFT), or model.gradient_checkpointing=true"
    )
