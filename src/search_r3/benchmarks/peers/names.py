"""Names and aims of the rows; nothing heavy is imported, so that a misspelt one is refused at once."""

from collections.abc import Mapping

NANO_NAME, SMOLLM2_NAME = "nano", "smollm2_135m"

ROWS: Mapping[str, str] = {
    "encode": "encode a corpus",
    "queries": "encode queries one by one",
    "sft": "SFT step, gradient caching",
    "rollouts": "rollouts against generate",
    "grpo": "GRPO step",
    "refresh": "refresh of a step",
    "rank": "exact rank",
    "evaluation": "evaluation of SciFact",
    "continuous": "rollouts against continuous batching",
    "startup": "start of a command",
    "memory": "peak memory of a step",
}
"""Names that `rows=` takes, in the order of their value, and what they say in the table."""

AIMS: Mapping[tuple[str, str], float] = {
    ("encode", "nano"): 1.5,
    ("encode", "smollm2_135m"): 2.0,
    ("queries", ""): 1.3,
    ("sft", ""): 1.3,
    ("rollouts", ""): 1.5,
    ("continuous", ""): 1.5,
    ("grpo", ""): 4.0,
    ("refresh", ""): 50.0,
    ("rank", ""): 2.0,
    ("evaluation", ""): 1.5,
    ("memory", ""): 1.0,
}
"""The ratio that a row should reach, by row and model; an empty model is any."""

WITHOUT_MODEL = ("rank", "startup")
NANO_ALONE = ("refresh", "evaluation")
"""With the larger model they take hours on two cores."""

ONCE = ("startup", "memory", "refresh")
"""Measured with the most threads, idle alone: a peak does not depend on them, and a run takes minutes."""
