"""The ledger of staleness: ages, drift, and agreement of rewards, against scipy and by hand."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from search_r3.index.ledger import (
    Refreshed,
    age_counts,
    age_record,
    agreement,
    drift,
    kendall_tau,
    step_record,
)


@pytest.mark.parametrize("n_values", [2, 4, 1000])
def test_kendall_tau_equals_scipys_on_groups_with_ties(n_values):
    rng = np.random.default_rng(n_values)
    one, other = (rng.integers(n_values, size=(200, 8)) / n_values for _ in range(2))
    other[::3] = one[::3]
    expected = [kendalltau(a, b).statistic for a, b in zip(one, other, strict=True)]
    assert kendall_tau(one, other) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    if n_values == 2:
        assert np.isnan(expected).any()  # or the case without spread was not compared


def test_rewards_within_the_tolerance_are_tied():
    one = np.array([[0.5, 0.5 + 4e-7, 1.0]])
    assert kendall_tau(one, [[0.5, 0.5, 1.0]], tolerance=1e-6) == pytest.approx(1.0)
    assert kendall_tau(one, [[0.5, 0.5, 1.0]])[0] < 1


def test_agreement_by_hand():
    served = [[1.0, 0.0, 0.5, 0.5], [0.2, 0.2, 0.2, 0.2]]
    fresh = [[1.0, 0.5, 0.0, 0.5], [0.2, 0.2, 0.2, 0.6]]
    record = agreement(served, fresh)
    # 3 of 8 differ, by 0.5, 0.5 and 0.4
    assert record["identical_rewards"] == 5 / 8
    assert record["mean_abs_difference"] == pytest.approx(1.4 / 8)
    # group 1: signs of the pairs (12, 13, 14, 23, 24, 34): served + + + - - 0, fresh + + + + 0 -; their
    # products sum to 3 - 1 = 2, with 5 untied pairs each: 2 / 5. Group 2 has no spread on the served rows.
    assert record["kendall_tau"] == pytest.approx(2 / 5)
    assert record["groups_compared"] == 1
    # means 0.5 and 0.5: served + - 0 0, fresh + 0 - 0: two agree. Means 0.2 and 0.3: served 0 0 0 0, fresh -
    # - - +
    assert record["advantage_sign_agreement"] == 2 / 8


def test_equal_rewards_agree_in_everything_and_reversed_ones_in_nothing():
    rewards = np.random.default_rng(0).random((20, 8))
    same, reversed_ = agreement(rewards, rewards + 1e-8), agreement(rewards, -rewards)
    assert same["identical_rewards"] == same["advantage_sign_agreement"] == 1
    assert same["kendall_tau"] == pytest.approx(1)
    assert reversed_["kendall_tau"] == pytest.approx(-1)
    assert reversed_["identical_rewards"] == reversed_["advantage_sign_agreement"] == 0


def test_groups_without_spread_leave_no_tau():
    record = agreement(np.ones((3, 4)), np.ones((3, 4)))
    assert "kendall_tau" not in record
    assert record["groups_compared"] == 0
    assert record["advantage_sign_agreement"] == 1


@pytest.mark.parametrize(
    ("served", "fresh", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), "twice"),
        (np.ones((2, 1)), np.ones((2, 1)), "G > 1"),
        (np.full((1, 2), np.nan), np.ones((1, 2)), "finite"),
    ],
)
def test_bad_rewards_are_refused(served, fresh, message):
    with pytest.raises(ValueError, match=message):
        agreement(served, fresh)


def test_ages_equal_a_sort():
    rng = np.random.default_rng(0)
    for n in (1, 2, 99, 100, 101, 5000):
        encoded_at = rng.integers(-1, 40, size=n)
        record, ages = age_record(age_counts(encoded_at, 40)), np.sort(40 - encoded_at)
        assert record["age_mean"] == pytest.approx(ages.mean())
        assert record["age_largest"] == ages[-1]
        assert record["age_p99"] == np.quantile(ages, 0.99, method="inverted_cdf")
    with pytest.raises(ValueError, match="after step 3"):
        age_counts(np.array([4]), 3)


def test_a_steps_line_counts_and_leaves_out_the_drift_of_new_rows():
    encoded_at = np.array([5, 5, 0, -1])
    refreshed = Refreshed(np.array([0, 1]), np.array([0.25, np.nan], np.float32), 1, 2.0, 3)
    counts = age_counts(encoded_at, 5)
    record = step_record(counts, refreshed)
    assert (record["documents_encoded"], record["share_of_corpus"], record["seconds"]) == (2, 0.5, 2.0)
    assert (record["documents_moved"], record["documents_over_budget"]) == (1, 3)
    assert (record["age_mean"], record["age_largest"]) == ((0 + 0 + 5 + 6) / 4, 6)
    assert record["drift_mean"] == record["drift_largest"] == 0.25
    nothing = Refreshed(np.empty(0, np.int64), np.empty(0, np.float32), 0, 0.0, 0)
    assert "drift_mean" not in step_record(counts, nothing)


def test_drift_is_one_less_the_cosine():
    old = np.array([[1, 0], [1, 0], [2, 0], [0, 0]], np.float32)
    new = np.array([[0, 1], [1, 1], [-3, 0], [1, 0]], np.float32)
    assert drift(old, new) == pytest.approx([1, 1 - 0.5**0.5, 2, np.nan], abs=1e-6, nan_ok=True)
