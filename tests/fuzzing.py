"""How many examples a fuzzed test tries: few and always the same ones, or more on request.

`SEARCH_R3_EXAMPLES=5000 python -m pytest tests/test_fuzzed_readers.py` draws 5,000 of each, and
others every time.
"""

import os

from hypothesis import HealthCheck, settings

_ASKED = os.environ.get("SEARCH_R3_EXAMPLES")


def fuzzed(max_examples: int = 60) -> settings:
    """Settings for `@given` tests, whose examples are the same in every call unless others are asked for."""
    return settings(
        max_examples=int(_ASKED or max_examples),
        derandomize=_ASKED is None,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
