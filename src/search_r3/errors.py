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
    """The first line of what an exception of others says; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
