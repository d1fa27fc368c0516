"""Rewards of rankings: their values, and that a better ranking never earns less."""

import math
from functools import partial

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pytrec_eval import RelevanceEvaluator
from rankings import CONF, REWARDS, ULP, random_ranking, random_scores, random_sets, ranking_of, total_of
from torch.testing import assert_close

from search_r3.objectives.ranking import Ranking
from search_r3.objectives.rewards import Reward, dcg, margin_dcg, scaled_dcg, similarity


def test_dcg_is_the_value_by_hand():
    # 1 / log2(rank + 1): 1, 0.5, 1/3, and 0 beyond the cut-off
    assert_close(dcg(ranking_of([1, 3, 7, 15]), k=10), torch.tensor([[1.0, 0.5, 1 / 3, 0.0]]))
    assert_close(dcg(ranking_of([15])), torch.tensor([[0.25]]))


@pytest.mark.parametrize("rank", [1, 2, 5, 10, 11])
def test_dcg_of_one_positive_is_the_ndcg_of_trec_eval(rank):
    run = {"q": {f"wrong{i}": 1.0 - 0.01 * i for i in range(20)} | {"right": 1.005 - 0.01 * (rank - 1)}}
    reference = RelevanceEvaluator({"q": {"right": 3}}, {"ndcg_cut.10"}).evaluate(run)["q"]["ndcg_cut_10"]
    assert dcg(ranking_of([rank], grades=[3.0]), k=10).item() == pytest.approx(reference, abs=1e-6)


def test_scaled_dcg_is_the_scale_at_rank_one_and_nothing_beyond_the_cutoff():
    # with k = 2 the discount at rank 3 is 0.5: rank 2 earns (0.63093 - 0.5) / 0.5 = 0.26186
    rewards = scaled_dcg(ranking_of([1, 2, 3, 900]), k=2, scale=2.0)
    assert_close(rewards, torch.tensor([[2.0, 2 * 0.26186, 0.0, 0.0]]), atol=1e-4, rtol=0)


def test_scaled_dcg_without_a_cutoff_gives_nothing_for_the_last_rank():
    rewards = scaled_dcg(ranking_of([1, 6, 7], last_rank=7))
    assert rewards[0, 0] == 1.0
    assert rewards[0, 1] > 0.0
    assert rewards[0, 2] == 0.0


def test_margin_dcg_is_the_value_by_hand():
    # of 1,000 ranks, rank 1 is worth 1 and rank 3 0.8 * 0.5 + 0.2 * (1 - 2 / 1000) = 0.5996; margins of 1 tau
    # with tau 0.1 have place (1 +- log 2 / log 21) / 2 = 0.61383 and 0.38617 of a room of 0.01
    rewards = margin_dcg(
        ranking_of([1, 3], scores=[0.6, 0.4], best_wrong=0.5), tau=0.1, margin_weight=0.01, linear_share=0.2
    )
    assert_close(rewards, torch.tensor([[1 - 0.0038617, 0.5996 - 0.0061383]]), atol=0, rtol=1e-5)


@pytest.mark.parametrize(("k", "last_rank"), [(2, 1000), (None, 2), (5, 2)])
def test_the_even_part_of_margin_dcg_ends_with_the_ranks_that_count(k, last_rank):
    # rank 2 of 2: 0.8 * 0.63093 + 0.2 / 2, less the room of 0.005 where it is the last and has no place
    reward = margin_dcg(ranking_of([2], scores=[1.0], best_wrong=-1.0, last_rank=last_rank), k).item()
    assert reward == pytest.approx(0.8 / math.log2(3) + 0.1 - (0.005 if last_rank == 2 else 0), rel=4 * ULP)


@pytest.mark.parametrize("rank", [2, 9, 400])
def test_margins_move_a_reward_up_to_that_of_the_next_better_rank(rank):
    # where a step is smaller than the weight of margins, they fill it
    margins = torch.linspace(-2, 2, 41)
    here, better = (
        margin_dcg(ranking_of([at] * 41, scores=margins.tolist(), best_wrong=0.0), margin_weight=1.0)[0]
        for at in (rank, rank - 1)
    )
    assert (here.diff() > 0).all()
    assert_close(here[-1], better[0], atol=0, rtol=ULP)


def test_margins_move_the_best_ranks_by_their_weight():
    rewards = margin_dcg(ranking_of([1, 1], scores=[-1.0, 1.0], best_wrong=torch.tensor([1.0, -1.0])))
    assert_close(rewards, torch.tensor([[0.995, 1.0]]), atol=0, rtol=ULP)


@pytest.mark.parametrize("cut_off", [None, 10])
def test_a_positive_in_a_better_rank_earns_more_whatever_happened_to_the_margins(cut_off):
    # ranks (1, 7) with the first barely ahead; (1, 10) with the first far ahead
    near = ranking_of([[1, 7]], scores=[[0.52, 0.3]], best_wrong=0.5)
    far = ranking_of([[1, 10]], scores=[[0.9, 0.2]], best_wrong=0.5)
    assert margin_dcg(near, cut_off) > margin_dcg(far, cut_off)


def test_a_margin_still_tells_deep_ranks_apart():
    near, far = margin_dcg(ranking_of([50, 50], scores=[0.02, 0.0], best_wrong=0.5))[0]
    assert near - far > 100 * ULP * near


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("seed", range(3))
def test_a_positive_in_a_better_rank_never_lowers_the_reward_of_a_set(name, seed):
    before, generator = random_sets(seed)
    place = torch.randint(0, 6, (len(before.rank),), generator=generator)
    is_moved = torch.arange(6) == place[:, None, None]  # [n, 1, P]
    # by one rank as a rule: the narrowest case
    by = torch.where(torch.rand(before.rank.shape, generator=generator) < 0.7, 1, before.rank // 2)
    moved = torch.where(is_moved, before.rank - by, before.rank).clamp(min=1)
    after = Ranking(moved, before.scores, before.best_wrong, before.grades, before.last_rank)
    change = total_of(name, after) - total_of(name, before)
    assert (change >= 0).all()
    assert (change > 0).any()
    if "@" not in name:  # among ranks beyond a cut-off nothing is better
        scores, best_wrong = random_scores(before.rank.shape, generator)  # of all positives
        after = Ranking(moved, scores, best_wrong, before.grades, before.last_rank)
        has_moved = ((moved != before.rank) & before.has_positive).any(-1)
        assert (total_of(name, after) >= total_of(name, before))[has_moved].all()
        assert has_moved.sum() > 500


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("what", ["one positive", "the best wrong document"])
def test_a_better_margin_at_the_same_ranks_never_lowers_the_reward_of_a_set(name, what):
    before, generator = random_sets(9)
    gain = 10 ** (-5 * torch.rand(before.rank.shape, generator=generator))
    scores, best_wrong = before.scores, before.best_wrong
    if what == "one positive":
        place = torch.randint(0, 6, (len(gain), 1, 1), generator=generator)
        scores = scores + gain * (torch.arange(6) == place)
    else:
        best_wrong = best_wrong - gain[..., 0]
    after = Ranking(before.rank, scores, best_wrong, before.grades, before.last_rank)
    change = total_of(name, after) - total_of(name, before)
    assert (change >= 0).all()
    assert (change > 0).any() == name.startswith("margin")


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("seed", range(3))
def test_what_a_set_earns_is_bounded(name, seed):
    ranking, _ = random_sets(seed)
    rewards = REWARDS[name](ranking)
    assert rewards.dtype == torch.float32
    assert (rewards >= 0).all()
    assert (rewards <= 1).all()


@pytest.mark.parametrize("ranks", [(1, 10), (11, 100), (101, 500), (501, 1000)])
def test_fewer_than_one_pair_in_a_hundred_ties_at_any_rank(ranks):
    generator = torch.Generator().manual_seed(ranks[0])
    n, (first, last) = 20000, ranks
    rank = torch.randint(first, last + 1, (n, 1, 1), generator=generator).expand(n, 2, 1)
    margins = -0.3 * torch.rand(n, 2, 1, generator=generator)
    ranking = Ranking(rank, 0.6 + margins, torch.full((n, 2), 0.6), torch.ones(n, 1), torch.full((n,), 5000))
    assert share_of_ties(ranking) < 0.002


def test_fewer_than_one_pair_in_a_hundred_ties_among_random_sets_of_the_same_ranks():
    one, generator = random_sets(5, n=20000)
    rank = one.rank.expand(-1, 2, -1)
    scores, best_wrong = random_scores(rank.shape, generator)
    is_inside = (rank[:, 0] < one.last_rank[:, None]).all(-1)
    ranking = Ranking(rank, scores, best_wrong, one.grades, one.last_rank)
    assert share_of_ties(ranking, is_inside) < 0.01


def share_of_ties(ranking, queries=slice(None)):
    """Of pairs of rollouts: both earn the same in all, in fp32."""
    total = total_of("margin_dcg", ranking)[queries]
    return (total[:, 0] == total[:, 1]).float().mean().item()


def test_pitfall_26_groups_that_tie_by_dcg_differ_by_margin():
    ranking = ranking_of([1, 1, 1], scores=[0.7, 0.6, 0.55])
    assert dcg(ranking).unique().numel() == 1
    assert margin_dcg(ranking).unique().numel() == 3


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("seed", range(5))
def test_a_reward_is_bounded(name, seed):
    rewards = REWARDS[name](random_ranking(seed))
    assert rewards.shape == (2, 4)
    assert (rewards >= 0).all()
    assert (rewards <= 1).all()
    assert rewards.unique().numel() > 1


@pytest.mark.parametrize("name", REWARDS)
def test_a_better_rank_never_earns_less_whatever_the_margin(name):
    ranks = torch.arange(1, 1001).tolist()
    # the worst case for order: the better rank has the worst margin
    at_best = REWARDS[name](ranking_of(ranks, scores=[1.0] * 1000, best_wrong=-1.0))[0]
    at_worst = REWARDS[name](ranking_of(ranks, scores=[-1.0] * 1000, best_wrong=1.0))[0]
    assert (at_worst[:-1] >= at_best[1:]).all()
    assert at_worst[0] > at_best[5]


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("seed", range(5))
def test_raising_one_of_several_graded_positives_never_costs(name, seed):
    before = random_ranking(seed)
    for place in range(3):
        moved = before.rank.clone()
        moved[:, :, place] = (moved[:, :, place] - 2).clamp(min=1)
        after = Ranking(moved, before.scores, before.best_wrong, before.grades, before.last_rank)
        assert (REWARDS[name](after) >= REWARDS[name](before)).all()


@pytest.mark.parametrize("name", REWARDS)
def test_a_collapsed_encoder_earns_the_least_that_any_ranking_earns(name):
    # every score is equal: ties count against the positive, so it is last, with margin 0
    collapsed = REWARDS[name](ranking_of([31], scores=[0.9], best_wrong=0.9, last_rank=31)).item()
    others = [REWARDS[name](random_ranking(seed)) for seed in range(20)]
    honest_last = REWARDS[name](ranking_of([31], scores=[-1.0], best_wrong=1.0, last_rank=31)).item()
    assert collapsed <= min(reward.min().item() for reward in others)
    assert collapsed <= honest_last


def test_grades_weigh_the_positives_and_absent_ones_do_not_count():
    # grades 3 and 1 at ranks 3 and 1: (3 * 0.5 + 1 * 1) / 4; what stands at grade 0 does not matter
    graded = ranking_of([[3, 1, 0]], grades=[3.0, 1.0, 0.0], scores=[[0.1, 0.2, float("nan")]])
    assert dcg(graded).item() == pytest.approx(0.625)
    assert similarity(graded).item() == pytest.approx((3 * 0.55 + 1 * 0.6) / 4)


def test_all_positives_above_all_wrong_documents_earn_one():
    assert dcg(ranking_of([[1, 1, 1]], grades=[1.0, 2.0, 3.0])).item() == 1.0


@pytest.mark.parametrize("name", REWARDS)
def test_a_positive_that_was_not_retrieved_earns_nothing(name):
    assert REWARDS[name](ranking_of([1001], scores=[0.9], last_rank=1000)).item() == 0.0


def test_a_rollout_without_the_embed_token_gets_the_floor_and_no_other_part():
    reward = Reward(dcg, similarity_weight=0.5, format_weight=0.2, floor=-0.25)
    rewards = reward(ranking_of([1, 1, 3]), torch.tensor([[True, False, True]]))
    # similarity of cosine 0.5 is 0.75
    assert_close(rewards.total, torch.tensor([[1.0 + 0.375 + 0.2, -0.25, 0.5 + 0.375 + 0.2]]))
    assert rewards.ranking.tolist() == [[1.0, 1.0, 0.5]]
    assert rewards.has_embed_token.tolist() == [[True, False, True]]


def test_without_a_floor_a_missing_embed_token_costs_its_weight_alone():
    reward = Reward(dcg, similarity_weight=0.5, format_weight=0.2, floor=None)
    rewards = reward(ranking_of([1, 1, 3]), torch.tensor([[True, False, False]]))
    assert_close(rewards.total, torch.tensor([[1.0 + 0.375 + 0.2, 1.0 + 0.375, 0.5 + 0.375]]))


@pytest.mark.parametrize("name", REWARDS)
def test_no_ranking_with_the_token_earns_less_than_the_floor(name):
    reward = Reward(REWARDS[name], similarity_weight=1.0)
    worst = ranking_of([1000, 1001, 1000], scores=[-1.0, -1.0, 0.9], best_wrong=1.0)
    total = reward(worst, torch.tensor([[True, True, False]])).total[0]
    assert total[0] > total[2]
    assert total[1] > total[2]


def test_the_similarity_is_off_by_default():
    reward = Reward(dcg)
    low, high = (reward(ranking_of([2], scores=[s]), torch.tensor([[True]])).total for s in (0.1, 0.9))
    assert torch.equal(low, high)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grades": [0.0]}, "needs a positive"),
        ({"grades": [-1.0]}, "negative"),
        ({"last_rank": 1}, "wrong document"),
    ],
)
def test_a_ranking_that_cannot_be_rewarded_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ranking_of([1], **arguments)
    with pytest.raises(ValueError, match="start at 1"):
        ranking_of([0])


def test_shapes_that_do_not_fit_are_refused():
    good = ranking_of([1, 2])
    with pytest.raises(ValueError, match=r"\[B, G, P\]"):
        Ranking(good.rank[0], good.scores, good.best_wrong, good.grades, good.last_rank)
    with pytest.raises(ValueError, match="has_embed_token"):
        Reward(dcg)(good, torch.tensor([[True]]))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Reward(dcg, floor=0.1),
        lambda: Reward(dcg, format_weight=-1.0),
        lambda: margin_dcg(ranking_of([1]), tau=0.0),
        lambda: scaled_dcg(ranking_of([1]), scale=0.0),
        lambda: dcg(ranking_of([1]), k=0),
    ],
)
def test_settings_out_of_range_are_refused(build):
    with pytest.raises(ValueError, match="must"):
        build()


def per_positive(ranking):
    return 1.0 / ranking.rank


def per_query(ranking):
    return (1.0 / ranking.rank).mean((1, 2))


def as_a_number(ranking):
    return 0.5


def without_end(ranking):
    return ranking.mean_over_positives(torch.log(ranking.rank - 1.0))


@pytest.mark.parametrize(
    ("function", "found"),
    [(per_positive, r"\[2, 4, 3\]"), (per_query, r"\[2\]"), (as_a_number, "float")],
)
def test_a_function_that_gives_no_reward_per_rollout_is_refused_and_not_broadcast(function, found):
    with pytest.raises(ValueError, match=rf"reward function {function.__name__} .*\[2, 4\], got {found};"):
        Reward(function)(random_ranking(0), torch.ones(2, 4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (partial(per_positive, k=10), "got an unexpected keyword argument 'k'"),
        (lambda: 0.0, "too many positional arguments"),
        (lambda ranking, power: 0.0, "missing a required argument: 'power'"),
    ],
)
def test_a_function_that_takes_other_arguments_is_refused_before_anything_is_read(function, why):
    with pytest.raises(ValueError, match=rf"^reward\.ranking is .*, which cannot be called with .*: {why}"):
        Reward(function)


def test_a_function_that_gives_double_numbers_pays_in_single_ones():
    ranking = ranking_of([1, 4])
    paid = Reward(lambda each: each.mean_over_positives(1.0 / each.rank.double()), format_weight=0.0)
    total = paid(ranking, torch.ones(1, 2, dtype=torch.bool)).total
    assert total.dtype == torch.float32
    assert total.tolist() == [[1.0, 0.25]]


def test_a_function_that_makes_a_reward_infinite_is_named():
    with pytest.raises(ValueError, match="not finite: without_end makes it so"):
        Reward(without_end)(ranking_of([1]), torch.ones(1, 1, dtype=torch.bool))


def test_scores_that_are_not_finite_stop_the_run():
    with pytest.raises(ValueError, match="not finite"):
        Reward(margin_dcg)(ranking_of([2], scores=[math.nan]), torch.tensor([[True]]))


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_reward_in_conf_instantiates_and_pays_the_better_rank(path):
    reward = instantiate(OmegaConf.load(path))
    total = reward(ranking_of([1, 4, 1]), torch.tensor([[True, True, False]])).total[0]
    assert isinstance(reward, Reward)
    assert reward.ranking.func.__name__ == path.stem
    assert reward.similarity_weight == 0.0
    assert total[0] > total[1] > total[2]
