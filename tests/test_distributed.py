"""What ranks tell each other, on two real processes and on one."""

import numpy as np
import pytest
import torch
from two_processes import on_two_ranks

from search_r3.distributed import Ranks, all_true, everyones, gather_rows, mean_over_ranks, reduced


class TooLate(RuntimeError):
    """An error of a kind that this module's ranks know."""


def message_of(action) -> str:
    try:
        action()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def led(calls, fails_in=None):
    """What goes wrong where the first rank leads, what `led` gives, and what this rank was called with."""
    ranks, seen = Ranks(), []

    def call(number):
        seen.append(number)
        ranks.together(lambda: fail(number) if (ranks.rank, number) == fails_in else None)
        return ranks.gather_objects((ranks.rank, number))

    def action(call_by_all):
        found = [call_by_all(number) for number in calls]
        return fail("the end") if fails_in == "action" else found

    results = []
    message = message_of(lambda: results.append(ranks.led(action, call)))
    return message, results, seen


def fail(what):
    raise TooLate(f"no time for {what}")


def work(rank):
    own = torch.full((2,), float(rank + 1))
    lone = np.zeros((0, 3), np.float32) if rank == 0 else np.ones((2, 3), np.float32)
    return {
        "everyones": [each.tolist() for each in everyones(own)],
        "reduced": [reduced(own, how).tolist() for how in ("sum", "max", "min")],
        "own": own.tolist(),
        "mean": float(mean_over_ranks(torch.tensor(float(rank)))),
        "all true": [all_true(True, "cpu"), all_true(rank == 0, "cpu")],
        "joined": Ranks().joined(lone).tolist(),
        "no rows": Ranks().joined(lone[:0]).shape,
        "led": led(range(3)),
        "led by none": led([]),
        "a call fails": led(range(3), fails_in=(1, 1)),
        "the action fails": led(range(2), fails_in="action"),
        "afterwards": Ranks().gather_objects(rank),
        "bad counts": message_of(lambda: gather_rows(torch.zeros(3), [1, 1])),
    }


@pytest.fixture(scope="module")
def two_ranks():
    return on_two_ranks(work)


def test_tensors_and_arrays_of_all_ranks_arrive_in_their_order_and_leave_what_was_sent(two_ranks):
    for rank, found in enumerate(two_ranks):
        assert found["everyones"] == [[1.0, 1.0], [2.0, 2.0]]
        assert found["reduced"] == [[3.0, 3.0], [2.0, 2.0], [1.0, 1.0]]
        assert found["own"] == [rank + 1.0] * 2
        assert found["mean"] == 0.5
        assert found["all true"] == [True, False]
        assert found["joined"] == [[1.0] * 3] * 2
        assert found["no rows"] == (0, 3)
        assert "do not fit the 3 rows" in found["bad counts"]


def test_the_first_rank_leads_and_the_other_makes_the_same_calls(two_ranks):
    first, second = (found["led"] for found in two_ranks)
    by_rank = [[(0, number), (1, number)] for number in range(3)]
    assert first == ("nothing was raised", [by_rank], [0, 1, 2])
    assert second == ("nothing was raised", [None], [0, 1, 2])
    assert [found["led by none"] for found in two_ranks] == [
        ("nothing was raised", [[]], []),
        ("nothing was raised", [None], []),
    ]


def test_an_error_of_one_rank_is_the_same_error_of_the_same_kind_on_all(two_ranks):
    for found in two_ranks:
        assert found["a call fails"] == ("TooLate: rank 1: no time for 1", [], [0, 1])
        assert found["the action fails"] == ("TooLate: no time for the end", [], [0, 1])
        assert found["afterwards"] == [0, 1]


def test_one_process_leads_itself_and_sends_nothing():
    assert led(range(2)) == ("nothing was raised", [[[(0, 0)], [(0, 1)]]], [0, 1])
    assert led(range(2), fails_in=(0, 1)) == ("TooLate: no time for 1", [], [0, 1])
    values = torch.ones(2)
    assert reduced(values) is values
    assert everyones(values) == [values]
