import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from two_processes import on_two_ranks

from search_r3.data.types import Corpus
from search_r3.index.exact_rank import Blocks, Positives, Retrieved, Shard, exact_ranking, topk_ranking
from search_r3.objectives.rewards import Reward, dcg, margin_dcg
from search_r3.stages.rl.environment import Environment, EnvironmentDataError, Judgements

N, D, B, G = 97, 8, 3, 4
SMALL = Blocks(rows=10, queries=5)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def world(n_documents: int = N) -> tuple[torch.Tensor, torch.Tensor, Positives]:
    """Rows with copies among them, queries, and positives of different number and grade."""
    rows = unit(n_documents, D)
    rows[40:60] = rows[5]  # copies of a positive: ties
    rows[61] = rows[7] + 1e-9
    positives = Positives(
        torch.tensor([[5, -1, -1], [7, 40, 3], [96, 0, -1]]),
        torch.tensor([[2.0, 0.0, 0.0], [1.0, 3.0, 1.0], [1.0, 2.0, 0.0]]),
    )
    return rows, unit(B, G, D, seed=1), positives


def slow_ranking(rows, queries, positives):
    """The definition, one document at a time, in float64: ranks and best wrong scores as nested lists."""
    ranks, best = [], []
    for query, group in enumerate(queries.double().numpy()):
        known = {row for row in positives.rows[query].tolist() if row >= 0}
        for vector in group:
            scores = [float(vector @ row) for row in rows.double().numpy()]
            wrong = [score for row, score in enumerate(scores) if row not in known]
            best.append(max(wrong))
            for row in positives.rows[query].tolist():
                ranks.append(1 + sum(s >= scores[row] - 1e-6 for s in wrong) if row >= 0 else 0)
    return torch.tensor(ranks).reshape(len(queries), -1, positives.rows.shape[1]), torch.tensor(best)


def kept(ranking) -> torch.Tensor:
    return ranking.rank.masked_fill(~ranking.has_positive, 0)


def search(rows, queries, k) -> Retrieved:
    return Retrieved(*(queries @ rows.T).topk(min(k, len(rows))))


# Exact ranks


@pytest.mark.parametrize("blocks", [SMALL, Blocks(1, 1), Blocks(), Blocks(97, 2), Blocks(96, 100)])
def test_the_rank_is_that_of_the_slow_definition_for_any_blocks(blocks):
    rows, queries, positives = world()
    ranking = exact_ranking(queries, positives, Shard(rows), blocks)
    ranks, best = slow_ranking(rows, queries, positives)

    assert torch.equal(kept(ranking), ranks)
    assert ranks.unique().numel() > 10
    assert_close(ranking.best_wrong.flatten(), best.float(), atol=1e-7, rtol=0)
    scores = torch.einsum("bgd,bpd->bgp", queries, rows[positives.rows.clamp(min=0)])
    assert_close(ranking.scores[ranking.has_positive], scores[ranking.has_positive], atol=1e-6, rtol=0)
    assert ranking.last_rank.tolist() == [N, N - 2, N - 1]


@pytest.mark.parametrize("seed", range(4))
def test_ranks_are_the_same_for_any_blocks_where_many_scores_are_nearly_tied(seed):
    # scores within a few 1e-6 of each other: what a fp32 product says depends on how it is cut
    rows = normalize(unit(1, 64, seed=seed) + 4e-4 * unit(500, 64, seed=seed + 9), dim=-1)
    queries = normalize(rows[:1] + 1e-2 * unit(6, 64, seed=seed + 99), dim=-1).reshape(2, 3, 64)
    positives = Positives(torch.tensor([[3], [400]]), torch.ones(2, 1))
    rankings = [
        exact_ranking(queries, positives, Shard(rows), blocks)
        for blocks in (Blocks(), Blocks(7, 1), Blocks(64, 2))
    ]
    ranks, _ = slow_ranking(rows, queries, positives)
    for ranking in rankings:
        assert torch.equal(ranking.rank, ranks)


@pytest.mark.parametrize("n_copies", [3, 3000])
def test_ranks_of_vectors_that_all_look_alike_are_those_of_float64(n_copies):
    # cosines around 0.9, as of an untrained model: a fp32 product errs most there; copies are ties
    common = 3.0 * torch.randn(256, generator=torch.Generator().manual_seed(5))
    rows = normalize(unit(4000, 256) * 16 + common, dim=-1)
    rows[500 : 500 + n_copies] = rows[7]
    queries = normalize(unit(2, 3, 256, seed=1) * 16 + common, dim=-1)
    positives = Positives(torch.tensor([[7], [3999]]), torch.ones(2, 1))
    scores = np.einsum("bgd,nd->bgn", queries.double().numpy(), rows.double().numpy())
    expected = [
        [1 + (np.delete(group, row) >= group[row] - 1e-6).sum() for group in scores[query]]
        for query, row in enumerate([7, 3999])
    ]
    for blocks in (Blocks(), Blocks(64, 1), Blocks(1000, 4)):
        assert exact_ranking(queries, positives, Shard(rows), blocks).rank[:, :, 0].tolist() == expected
    assert all(rank > n_copies for rank in expected[0])


def test_a_memory_map_a_strided_array_and_a_tensor_give_the_same_ranking(tmp_path):
    rows, queries, positives = world()
    np.save(tmp_path / "rows.npy", rows.numpy())
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    strided = np.asfortranarray(rows.numpy())
    expected = exact_ranking(queries, positives, Shard(rows), SMALL)
    for other in (mapped, strided, rows.double()):
        ranking = exact_ranking(queries, positives, Shard(other), SMALL)
        for name in ("rank", "scores", "best_wrong"):
            assert torch.equal(getattr(ranking, name), getattr(expected, name)), name


def test_ties_count_against_the_positive_and_other_positives_do_not():
    # cosines 0.8, 0.8 - 5e-7, 0.8 - 3e-6, 0.9, -1
    scores = torch.tensor([0.8, 0.8 - 5e-7, 0.8 - 3e-6, 0.9, -1.0], dtype=torch.float64)
    rows = torch.stack([scores, (1 - scores**2).sqrt()], 1).float()
    query = torch.tensor([[[1.0, 0.0]]])

    def rank(positives):
        given = Positives(torch.tensor([positives]), torch.ones(1, len(positives)))
        return exact_ranking(query, given, Shard(rows)).rank[0, 0].tolist()

    assert rank([0]) == [3]  # behind 0.9 and the tie, before 3e-6 less
    assert rank([0, 3]) == [2, 1]
    assert rank([0, 1]) == [2, 2]
    assert rank([4]) == [5]


def test_a_collapsed_encoder_is_last_and_earns_the_least():
    same = unit(1, 32)
    environment = Environment(
        Judgements({"q": {"5": 1}}, {"5": 5}, 50), Reward(margin_dcg, format_weight=0.0)
    )
    token = torch.ones(1, G, dtype=torch.bool)
    collapsed = environment.score(["q"], same.expand(1, G, 32), token, Shard(same.repeat(50, 1)))
    honest = environment.score(["q"], unit(1, G, 32, seed=2), token, Shard(unit(50, 32, seed=3)))

    assert (collapsed.ranking.rank == 50).all()
    assert collapsed.rewards.total.unique().numel() == 1
    assert (collapsed.rewards.total <= honest.rewards.total).all()
    assert honest.rewards.total.unique().numel() == G


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation gave."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor) and not function.is_view:
                self.largest = max(self.largest, value.numel())
        return result


def test_memory_is_bounded_by_a_block_and_not_by_the_corpus_or_the_rollouts():
    rows = unit(6000, D).numpy()
    positives = Positives(torch.arange(20)[:, None], torch.ones(20, 1))
    queries = unit(20, 10, D, seed=1)
    with LargestTensor() as seen:
        exact_ranking(queries, positives, Shard(rows), Blocks(rows=64, queries=16))
    # 64 rows x 16 queries = 1,024 scores; all queries are 1,600 numbers; all scores would be 1,200,000
    assert 1024 <= seen.largest <= 1600


@pytest.mark.bf16
def test_ranking_does_not_depend_on_the_precision_that_the_run_chose():
    rows, queries, positives = world()
    expected = exact_ranking(queries, positives, Shard(rows))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ranking = exact_ranking(queries, positives, Shard(rows))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(ranking.rank, expected.rank)
    assert torch.equal(ranking.best_wrong, expected.best_wrong)


def test_no_gradient_and_no_argument_is_touched():
    rows, queries, positives = world()
    queries.requires_grad_()
    copies = rows.clone(), queries.detach().clone(), positives.rows.clone()
    ranking = exact_ranking(queries, positives, Shard(rows), SMALL)
    assert not ranking.scores.requires_grad
    assert torch.equal(rows, copies[0])
    assert torch.equal(queries, copies[1])
    assert torch.equal(positives.rows, copies[2])


# Ranks among what was retrieved


def test_the_rank_among_all_documents_is_the_exact_rank():
    rows, queries, positives = world()
    for k in (N, 5 * N):
        topk = topk_ranking(queries, positives, search(rows, queries, k), Shard(rows))
        exact = exact_ranking(queries, positives, Shard(rows))
        assert torch.equal(kept(topk), kept(exact))
        assert_close(topk.best_wrong, exact.best_wrong, atol=1e-6, rtol=0)
        assert torch.equal(topk.scores, exact.scores)


def test_a_positive_that_was_not_retrieved_has_no_rank_and_earns_nothing():
    rows, queries, _ = world()
    ordered = (queries[0] @ rows.T).argsort(1, descending=True)
    positives = Positives(ordered[:1, 20:21].clone(), torch.ones(1, 1))
    ranking = topk_ranking(queries[:1], positives, search(rows, queries[:1], 10), Shard(rows))
    assert ranking.rank[0, 0, 0] == N + 1
    assert dcg(ranking)[0, 0] == 0.0
    assert margin_dcg(ranking)[0, 0] == 0.0


def test_where_only_positives_were_retrieved_the_margin_is_finite():
    rows, queries, _ = world()
    best = (queries[:1, :1] @ rows.T).argmax(-1)
    ranking = topk_ranking(
        queries[:1, :1], Positives(best, torch.ones(1, 1)), search(rows, queries[:1, :1], 1), Shard(rows)
    )
    assert ranking.rank.item() == 1
    assert ranking.best_wrong.item() == pytest.approx(ranking.scores.item(), abs=1e-6)


# The environment


def environment_of(positives: Positives, **settings) -> Environment:
    qrels = {
        f"q{query}": {f"d{row}": float(grade) for row, grade in zip(rows, grades, strict=True) if row >= 0}
        for query, (rows, grades) in enumerate(
            zip(positives.rows.tolist(), positives.grades.tolist(), strict=True)
        )
    }
    corpus = Corpus([f"d{row}" for row in range(N)], ["text"] * N)
    return Environment(Judgements(qrels, corpus.row_of, N), Reward(margin_dcg), blocks=SMALL, **settings)


QUERY_IDS = ["q0", "q1", "q2"]
ALL_TOKENS = torch.ones(B, G, dtype=torch.bool)


def test_the_environment_gives_the_reward_of_the_exact_ranking():
    rows, queries, positives = world()
    token = ALL_TOKENS.clone()
    token[1, 2] = False
    outcome = environment_of(positives).score(QUERY_IDS, queries, token, Shard(rows))
    expected = margin_dcg(exact_ranking(queries, positives, Shard(rows))) + 0.1

    assert_close(outcome.rewards.total[token], expected[token])
    assert outcome.rewards.total[1, 2] == 0.0
    assert outcome.rank_agreement is None
    assert (outcome.rewards.total.std(1) > 0).all()


def test_a_query_moved_towards_its_positive_earns_more():
    rows, queries, positives = world()
    environment = environment_of(positives)
    nearer = normalize(queries + 3.0 * rows[positives.rows[:, :1]], dim=-1)
    before = environment.score(QUERY_IDS, queries, ALL_TOKENS, Shard(rows)).rewards.total
    after = environment.score(QUERY_IDS, nearer, ALL_TOKENS, Shard(rows)).rewards.total
    assert (after[0] > before[0]).all()


def test_the_agreement_of_both_ranks_is_reported_at_its_steps():
    rows, queries, positives = world()
    environment = environment_of(positives, rank="topk", agreement_every_n_steps=5)
    everything, little = (search(rows, queries, k) for k in (N, 3))
    same = environment.score(QUERY_IDS, queries, ALL_TOKENS, Shard(rows), step=10, retrieved=everything)
    other = environment.score(QUERY_IDS, queries, ALL_TOKENS, Shard(rows), step=10, retrieved=little)
    between = environment.score(QUERY_IDS, queries, ALL_TOKENS, Shard(rows), step=11, retrieved=little)
    exact = environment_of(positives).score(QUERY_IDS, queries, ALL_TOKENS, Shard(rows)).rewards.total

    assert same.rank_agreement == 1.0
    assert 0.0 <= other.rank_agreement < 0.5
    assert other.rank_agreement == ((other.rewards.total - exact).abs() <= 1e-6).float().mean().item()
    assert between.rank_agreement is None
    assert torch.equal(between.rewards.total, other.rewards.total)
    assert (other.rewards.total <= exact + 1e-6).all()


def test_no_query_gives_no_reward():
    rows, queries, positives = world()
    outcome = environment_of(positives).score([], queries[:0], ALL_TOKENS[:0], Shard(rows))
    assert outcome.rewards.total.shape == (0, G)


# Bad input


def test_judgements_that_nothing_can_be_learnt_from_are_refused():
    row_of = {"a": 0, "b": 1}
    for qrels, n_documents, message in [
        ({"q1": {"a": 1}, "q2": {}}, 2, "query 'q2' has no positive"),
        ({"q1": {"a": 0}}, 2, "query 'q1' has no positive"),
        ({"q1": {"a": 1, "x": 1, "y": 0}}, 2, "'x', which is not in the corpus, and 1 more"),
        ({"q1": {"a": 1}}, 1, "one document"),
        ({"q1": {"a": 1, "b": 2}}, 2, "2 documents, all relevant to query 'q1'"),
    ]:
        with pytest.raises(EnvironmentDataError, match=message):
            Judgements(qrels, row_of, n_documents)
    with pytest.raises(EnvironmentDataError, match="query 'q9' is not in the qrels"):
        Judgements({"q1": {"a": 1}}, row_of, 2).of(["q1", "q9"])


def test_judged_documents_that_are_not_relevant_are_wrong_documents():
    positives = Judgements({"q": {"a": 0, "b": 2}}, {"a": 0, "b": 1}, 3).of(["q"])
    assert positives.rows.tolist() == [[1]]
    assert positives.grades.tolist() == [[2.0]]


@pytest.mark.parametrize("place", [5, 50])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_is_named(place, bad):
    rows, queries, positives = world()
    rows[place, 2] = bad  # row 5 is a positive, row 50 is not
    with pytest.raises(ValueError, match=f"row {place} of the corpus is not finite"):
        exact_ranking(queries, positives, Shard(rows), SMALL)


@pytest.mark.parametrize("value", [math.nan, 3.0, 0.0])
def test_a_query_that_is_no_unit_vector_is_named(value):
    rows, queries, positives = world()
    queries[2, 1] = value
    with pytest.raises(ValueError, match="rollout 1 of query 2"):
        exact_ranking(queries, positives, Shard(rows), SMALL)


def test_shapes_and_rows_that_do_not_fit_are_refused():
    rows, queries, positives = world()
    for arguments, message in [
        ((queries[0], positives, Shard(rows)), r"\[B, G, D\]"),
        ((queries, positives, Shard(rows[:, :4])), r"\[B, G, D\]"),
        ((queries[:2], positives, Shard(rows)), "positives must be"),
        ((queries, positives, Shard(rows[:90])), "row 96 of 90"),
        ((queries, positives, Shard(rows[:90], n_documents=N)), "90 rows together, the corpus has 97"),
        ((queries, Positives(positives.rows, torch.ones(3, 3)), Shard(rows)), "only where"),
    ]:
        with pytest.raises(ValueError, match=message):
            exact_ranking(*arguments)
    with pytest.raises(ValueError, match="rows are of 90"):
        environment_of(positives).score(QUERY_IDS, queries, ALL_TOKENS, Shard(rows[:90]))
    with pytest.raises(ValueError, match="blocks"):
        Blocks(rows=0)


def test_settings_of_the_environment_are_checked():
    rows, queries, positives = world()
    with pytest.raises(ValueError, match="exact or topk"):
        environment_of(positives, rank="approximate")
    with pytest.raises(ValueError, match="agreement"):
        environment_of(positives, agreement_every_n_steps=-1)
    with pytest.raises(ValueError, match="retrieved"):
        environment_of(positives, rank="topk").score(QUERY_IDS, queries, ALL_TOKENS, Shard(rows))
    with pytest.raises(ValueError, match=r"\[3, 4, K\]"):
        topk_ranking(queries, positives, search(rows, queries[:2], 3), Shard(rows))


# Two ranks

LAYOUTS = {  # queries of each rank, and where the rows are cut
    "even": ([0, 1], [2], 48),
    "one rank has no query": ([0, 1, 2], [], 11),
    "one rank has no row": ([0], [1, 2], 0),
    "cut between copies": ([], [0, 1, 2], 50),
}


def ranked_by_both(rank: int, layout: str) -> dict:
    *asked, cut = LAYOUTS[layout]
    rows, queries, positives = world()
    own = asked[rank]
    width = 1 if own == [0] else 3  # ranks need not have the same number of columns
    given = Positives(positives.rows[own, :width], positives.grades[own, :width])
    part = [slice(0, cut), slice(cut, N)][rank]
    shard = Shard(rows[part].numpy(), part.start, N)
    results = {"exact": exact_ranking(queries[own], given, shard, SMALL)}
    results["topk"] = topk_ranking(queries[own], given, search(rows, queries[own], 20), shard, SMALL)
    results["whole"] = exact_ranking(queries[own], given, Shard(rows), SMALL)
    return results


def error_of_parts_that_overlap(rank: int) -> str:
    rows, queries, positives = world()
    try:
        exact_ranking(queries, positives, Shard(rows, 0, N), SMALL)
    except ValueError as error:
        return str(error)
    return "nothing was raised"


def work(rank: int) -> dict:
    """Everything that one of the two processes does."""
    results = {layout: ranked_by_both(rank, layout) for layout in LAYOUTS}
    results["error"] = error_of_parts_that_overlap(rank)
    return results


@pytest.fixture(scope="module")
def two_ranks() -> list[dict]:
    return on_two_ranks(work)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["exact", "topk", "whole"])
def test_the_ranking_of_two_ranks_is_that_of_one_exactly(two_ranks, layout, kind):
    rows, queries, positives = world()
    if kind == "topk":
        one = topk_ranking(queries, positives, search(rows, queries, 20), Shard(rows))
    else:
        one = exact_ranking(queries, positives, Shard(rows))
    for rank, own in enumerate(LAYOUTS[layout][:2]):
        two = two_ranks[rank][layout][kind]
        width = two.rank.shape[2]
        has_positive = two.has_positive
        assert two.rank.shape[:2] == (len(own), G)
        for name in ("rank", "scores"):
            expected = getattr(one, name)[own][:, :, :width]
            assert torch.equal(getattr(two, name)[has_positive], expected[has_positive]), name
        assert torch.equal(two.best_wrong, one.best_wrong[own])
        assert torch.equal(two.last_rank, one.last_rank[own])


def test_parts_that_are_no_partition_are_refused_on_both_ranks(two_ranks):
    for rank in two_ranks:
        assert "194 rows together, the corpus has 97" in rank["error"]
