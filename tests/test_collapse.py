"""A run that has collapsed is told from one that learns, in plain words."""

import math

import pytest

from search_r3.objectives.collapse import CollapseLimits, Vitals, collapse

LIMITS = CollapseLimits(window=3, min_entropy=0.05, min_length_share=0.25, max_flat_share=0.9)
HEALTHY = Vitals(entropy=1.2, n_tokens=22.0, flat_share=0.1)


def run(*values: dict) -> list[Vitals]:
    """Three healthy steps, then a step per argument."""
    return [HEALTHY] * 3 + [
        Vitals(**({"entropy": 1.0, "n_tokens": 20.0, "flat_share": 0.2} | v)) for v in values
    ]


def test_a_run_that_lives_is_left_alone():
    assert collapse(run(*[{}] * 30), LIMITS) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        # the trial in which the reasoning went from 22 tokens to 2
        ({"n_tokens": 2.0}, "reasoning shrank from 22.0 to 2.0 tokens per rollout (limit: 25% of the start)"),
        ({"entropy": 0.01}, "entropy fell from 1.2 to 0.01 nats per token (limit: 0.05)"),
        ({"flat_share": 1.0}, "100% of the groups have no spread in the last 3 steps (limit: 90%)"),
    ],
)
def test_each_kind_of_collapse_is_named_with_its_numbers(value, words):
    assert collapse(run(*[{}] * 9, *[value] * 3), LIMITS).startswith(words)


@pytest.mark.parametrize("value", [{"n_tokens": 0.0}, {"entropy": 0.0}, {"flat_share": 1.0}])
def test_one_bad_step_stops_nothing_and_neither_does_a_bad_start(value):
    assert collapse(run({}, {}, value), CollapseLimits(3, 0.05, 0.25, 0.9)) is None
    assert collapse([Vitals(**{**vars(HEALTHY), **value})] * 5, LIMITS) is None  # less than two windows


def test_slow_shrinking_is_measured_against_the_start_and_the_first_and_last_steps_are_enough():
    lengths = [22.0 * 0.95**step for step in range(60)]  # no step loses more than 5 %
    history = [Vitals(1.0, length, 0.1) for length in lengths]
    stopped = next(n for n in range(61) if collapse(history[:n], LIMITS))
    # mean of three is 22 * 0.951 at the start; below a quarter of it where 0.95^(n - 3) < 0.25: n - 3 > 27.03
    assert stopped == 31
    assert collapse(history[:3] + history[stopped - 3 : stopped], LIMITS) == collapse(
        history[:stopped], LIMITS
    )


def test_every_check_can_be_turned_off():
    off = CollapseLimits(window=1, min_entropy=0.0, min_length_share=0.0, max_flat_share=1.0)
    assert collapse([HEALTHY, Vitals(0.0, 0.0, 1.0)], off) is None


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: CollapseLimits(window=0), "window"),
        (lambda: CollapseLimits(min_entropy=-1.0), "min_entropy"),
        (lambda: CollapseLimits(min_length_share=1.5), "min_length_share"),
        (lambda: CollapseLimits(max_flat_share=math.nan), "max_flat_share"),
        (lambda: Vitals(math.nan, 1.0, 0.0), "entropy"),
        (lambda: Vitals(1.0, -1.0, 0.0), "n_tokens"),
        (lambda: Vitals(1.0, 1.0, 1.1), "flat_share"),
    ],
)
def test_limits_and_numbers_out_of_range_are_refused(build, name):
    with pytest.raises(ValueError, match=name):
        build()
