import math

import pytest
import torch
from conftest import linear_head
from torch.nn import functional as F

from search_r3.distributed import gather_rows, row_counts, share_of_count
from search_r3.objectives.losses import (
    cosine_scores,
    hardest_negative_margin,
    info_nce,
    kl_to_reference,
    sft_cross_entropy,
)
from search_r3.objectives.masks import false_negative_mask, has_negative, id_numbers, negatives_mask

ULP = 2.0**-23
"""Of fp32, relative: the distance of two neighbours, at most. A cosine is off by one or two of them, and by
20 times as much where it is divided by a temperature of 0.05."""

QUERY = torch.tensor([[1.0, 0.0]])
DOCUMENTS = torch.tensor([[0.6, 0.8], [0.8, 0.6], [-2.0, 0.0]])  # cosines with QUERY: 0.6, 0.8, -1


def random_batch(n_queries: int = 4, n_documents: int = 7, width: int = 5, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(n_queries, width, generator=generator, requires_grad=True)
    documents = torch.randn(n_documents, width, generator=generator, requires_grad=True)
    return queries, documents, torch.arange(n_queries)


def random_head(n_tokens: int = 11, vocabulary: int = 17, width: int = 6, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n_tokens, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, requires_grad=True)
    targets = torch.randint(vocabulary, (n_tokens,), generator=generator)
    return hidden, weight, targets


def test_info_nce_is_the_value_by_hand():
    # cosines / 0.5: 1.2, 1.6, -2.0; loss = log(1 + e^0.4 + e^-3.2)
    loss = info_nce(QUERY, DOCUMENTS, torch.tensor([0]), temperature=0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(0.4) + math.exp(-3.2)), rel=16 * ULP)


def test_info_nce_leaves_out_masked_documents_and_never_the_positive():
    mask = torch.tensor([[False, False, True]])
    loss = info_nce(QUERY, DOCUMENTS, torch.tensor([0]), mask, temperature=0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-3.2)), rel=16 * ULP)


def test_info_nce_is_lower_for_the_nearer_positive():
    near = info_nce(QUERY, DOCUMENTS, torch.tensor([1]))
    assert (
        near < info_nce(QUERY, DOCUMENTS, torch.tensor([0])) < info_nce(QUERY, DOCUMENTS, torch.tensor([2]))
    )


def test_a_step_down_info_nce_brings_positives_nearer_and_negatives_further():
    queries, documents, positive_index = random_batch()
    info_nce(queries, documents, positive_index, temperature=0.2).backward()
    before = cosine_scores(queries, documents)
    after = cosine_scores(queries - 0.01 * queries.grad, documents - 0.01 * documents.grad)
    gap_before = before.gather(1, positive_index[:, None]).mean() - before.mean()
    gap_after = after.gather(1, positive_index[:, None]).mean() - after.mean()
    assert gap_after > gap_before + 1e-4


def test_info_nce_weights_rows():
    queries, documents, positive_index = random_batch()
    first, third = (info_nce(queries[[i]], documents, positive_index[[i]]) for i in (0, 2))
    weights = torch.tensor([3.0, 0.0, 1.0, 0.0])
    loss = info_nce(queries, documents, positive_index, weights=weights)
    assert loss.item() == pytest.approx((3 * first + third).item() / 4, rel=16 * ULP)


def test_parts_with_the_whole_count_add_up_to_the_whole():
    queries, documents, positive_index = random_batch()
    whole = info_nce(queries, documents, positive_index)
    parts = [
        info_nce(queries[rows], documents, positive_index[rows], denominator=4.0) for rows in ([0], [1, 2, 3])
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=16 * ULP)


@pytest.mark.parametrize("loss", [info_nce, hardest_negative_margin])
def test_rows_that_have_nothing_to_compare_do_not_count(loss):
    # rows 1 and 3 have no negative: the mean is over rows 0 and 2, in one piece or in two
    queries, documents, positive_index = random_batch()
    mask = torch.ones(4, 7, dtype=torch.bool)
    mask[[1, 3]] = False
    mask[3, 3] = True  # the positive itself is none
    others = loss(queries[[0, 2]], documents, positive_index[[0, 2]])
    n_rows = has_negative(mask, positive_index).sum()
    parts = [
        loss(queries[rows], documents, positive_index[rows], mask[rows], denominator=n_rows.item())
        for rows in ([0, 1], [2, 3])
    ]
    assert n_rows == 2
    assert others > 0.1
    assert loss(queries, documents, positive_index, mask).item() == pytest.approx(others.item(), rel=16 * ULP)
    assert sum(parts).item() == pytest.approx(others.item(), rel=16 * ULP)


def test_info_nce_refuses_a_temperature_of_zero():
    with pytest.raises(ValueError, match="temperature"):
        info_nce(QUERY, DOCUMENTS, torch.tensor([0]), temperature=0.0)


def test_a_fully_masked_row_has_no_loss_and_no_gradient_and_leaves_the_others_finite():
    queries, documents, positive_index = random_batch()
    mask = torch.ones(4, 7, dtype=torch.bool)
    mask[1] = False
    info_nce(queries, documents, positive_index, mask).backward()
    assert torch.isfinite(queries.grad).all()
    assert torch.isfinite(documents.grad).all()
    assert queries.grad[1].abs().max() < 1e-6
    assert queries.grad[0].abs().max() > 1e-3


@pytest.mark.parametrize("loss", [info_nce, hardest_negative_margin])
def test_one_query_and_one_document_give_zero_and_a_finite_gradient(loss):
    query = torch.randn(1, 3, requires_grad=True)
    document = torch.randn(1, 3, requires_grad=True)
    value = loss(query, document, torch.tensor([0]))
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(query.grad).all()
    assert torch.isfinite(document.grad).all()


@pytest.mark.parametrize("loss", [info_nce, hardest_negative_margin])
@pytest.mark.parametrize("n_documents", [0, 3])
def test_an_empty_batch_gives_zero_with_a_graph(loss, n_documents):
    queries = torch.zeros(0, 4, requires_grad=True)
    documents = torch.randn(n_documents, 4, requires_grad=True)
    value = loss(queries, documents, torch.zeros(0, dtype=torch.long))
    value.backward()
    assert value.item() == 0.0
    assert queries.grad is not None
    assert documents.grad is None or (documents.grad == 0).all()


@pytest.mark.parametrize("loss", [info_nce, hardest_negative_margin])
def test_zero_vectors_and_all_equal_documents_give_finite_gradients(loss):
    queries = torch.zeros(2, 4, requires_grad=True)
    documents = torch.ones(3, 4, requires_grad=True)
    loss(queries, documents, torch.tensor([0, 1])).backward()
    assert torch.isfinite(queries.grad).all()
    assert torch.isfinite(documents.grad).all()


def test_rows_that_all_have_weight_zero_give_zero_and_a_finite_gradient():
    queries, documents, positive_index = random_batch()
    value = info_nce(queries, documents, positive_index, weights=torch.zeros(4))
    value.backward()
    assert value.item() == 0.0
    assert (queries.grad == 0).all()


@pytest.mark.bf16
def test_similarities_are_fp32_under_autocast():
    queries, documents, _ = random_batch(width=64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = cosine_scores(queries, documents)
    assert scores.dtype == torch.float32
    expected = F.cosine_similarity(queries[:, None].double(), documents[None].double(), dim=-1)
    assert torch.allclose(scores.double(), expected, atol=1e-6)  # bf16 would be off by 1e-3


def test_hardest_negative_margin_takes_the_most_similar_allowed_document():
    # the positive is document 2, cosine -1. Hardest is 0.8: 0.1 + 1 + 0.8 = 1.9; with it masked 0.6: 1.7
    index = torch.tensor([2])
    assert hardest_negative_margin(QUERY, DOCUMENTS, index, margin=0.1).item() == pytest.approx(
        1.9, rel=16 * ULP
    )
    mask = torch.tensor([[True, False, True]])
    masked = hardest_negative_margin(QUERY, DOCUMENTS, index, mask, margin=0.1)
    assert masked.item() == pytest.approx(1.7, rel=16 * ULP)


def test_hardest_negative_margin_of_a_fully_masked_row_is_finite():
    queries, documents, positive_index = random_batch()
    mask = torch.zeros(4, 7, dtype=torch.bool)
    value = hardest_negative_margin(queries, documents, positive_index, mask, margin=3.0)
    value.backward()
    assert value.item() == 0.0
    assert torch.isfinite(queries.grad).all()


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
@pytest.mark.parametrize("has_bias", [False, True])
def test_chunked_cross_entropy_has_the_value_and_gradient_of_the_plain_one(chunk, has_bias):
    hidden, weight, targets = random_head()
    bias = torch.linspace(-1, 1, 17).requires_grad_() if has_bias else None
    wanted = [hidden, weight] + ([bias] if has_bias else [])
    plain = F.cross_entropy(F.linear(hidden, weight, bias), targets)
    chunked = sft_cross_entropy(hidden, linear_head(weight, bias), targets, chunk)
    assert torch.allclose(plain, chunked, atol=1e-6)
    for expected, actual in zip(
        torch.autograd.grad(plain, wanted), torch.autograd.grad(chunked, wanted), strict=True
    ):
        assert expected.abs().max() > 1e-3
        assert torch.allclose(expected, actual, atol=1e-6)


def test_logits_of_one_chunk_are_the_largest_tensor_kept_for_backward():
    hidden, weight, targets = random_head(n_tokens=64, vocabulary=50)
    sizes: list[int] = []

    def record(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        sft_cross_entropy(hidden, linear_head(weight), targets, chunk=8)
    assert max(sizes) <= max(weight.numel(), hidden.numel())  # 300 and 384; all logits would be 3200


def test_cross_entropy_of_no_position_is_zero_with_a_graph():
    hidden = torch.zeros(0, 6, requires_grad=True)
    value = sft_cross_entropy(hidden, linear_head(torch.randn(5, 6)), torch.zeros(0, dtype=torch.long))
    value.backward()
    assert value.item() == 0.0
    assert hidden.grad is not None


def test_cross_entropy_refuses_states_without_targets():
    with pytest.raises(ValueError, match="one target per state"):
        sft_cross_entropy(torch.zeros(2, 3), linear_head(torch.zeros(4, 3)), torch.zeros(1, dtype=torch.long))


def test_kl_of_equal_models_is_zero():
    hidden, weight, _ = random_head()
    assert kl_to_reference(hidden, hidden, linear_head(weight), linear_head(weight), 3).abs().item() < 1e-7


@pytest.mark.parametrize("chunk", [2, 100])
def test_kl_equals_torch_distributions_without_the_excluded_column(chunk):
    hidden, weight, _ = random_head()
    ref_hidden, ref_weight, _ = random_head(seed=1)
    kept = [column for column in range(17) if column != 5]
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=(hidden @ weight.T)[:, kept]),
        torch.distributions.Categorical(logits=(ref_hidden @ ref_weight.T)[:, kept]),
    ).mean()
    heads = linear_head(weight), linear_head(ref_weight)
    actual = kl_to_reference(hidden, ref_hidden, *heads, 5, chunk)
    assert expected > 0.1
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)
    expected_gradient = torch.autograd.grad(expected, hidden)[0]
    assert torch.allclose(torch.autograd.grad(actual, hidden)[0], expected_gradient, atol=1e-5)


def test_kl_does_not_see_the_excluded_tokens_row():
    hidden, weight, _ = random_head()
    raised = weight.detach().clone()
    raised[5] += 100.0 * hidden.detach().mean(0)
    raised.requires_grad_()
    heads = linear_head(raised), linear_head(weight)
    value = kl_to_reference(hidden, hidden, *heads, 5)
    value.backward()
    assert abs(value.item()) < 1e-6
    assert torch.isfinite(raised.grad).all()
    assert (raised.grad[5] == 0).all()
    assert kl_to_reference(hidden, hidden, *heads, None).item() > 1.0


def test_no_gradient_flows_to_the_reference_and_its_own_is_finite_and_not_zero():
    hidden, weight, _ = random_head()
    ref_hidden, ref_weight, _ = random_head(seed=1)
    kl_to_reference(hidden, ref_hidden, linear_head(weight), linear_head(ref_weight), 5, chunk=4).backward()
    assert ref_hidden.grad is None
    assert ref_weight.grad is None
    assert torch.isfinite(hidden.grad).all()
    assert hidden.grad.abs().max() > 1e-3
    assert weight.grad.abs().max() > 1e-3


def test_kl_refuses_states_that_do_not_align():
    with pytest.raises(ValueError, match="one reference state"):
        kl_to_reference(torch.zeros(2, 3), torch.zeros(3, 3), *[linear_head(torch.zeros(4, 3))] * 2)


def test_losses_on_a_head_in_half_precision_are_fp32_with_finite_gradients():
    hidden, weight, targets = random_head()
    half = weight.detach().bfloat16().requires_grad_()
    head = linear_head(half)
    loss = sft_cross_entropy(hidden, head, targets, 4) + kl_to_reference(hidden, hidden + 1, head, head, 2, 4)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(half.grad).all()
    assert hidden.grad.abs().max() > 1e-3


def test_relevant_documents_and_copies_of_the_positive_are_no_negatives():
    document_ids = id_numbers(["a", "b", "c", "a", "d"])
    relevant = torch.stack([id_numbers(["a", "c"]), torch.tensor([-1, -1])])
    mask, n_masked = negatives_mask(document_ids, torch.tensor([0, 1]), relevant)
    # query 0: positive "a" (row 0 kept, its copy in row 3 not), "c" relevant; query 1: only its positive "b"
    assert mask.tolist() == [[True, True, False, False, True], [True] * 5]
    assert n_masked == 2


def test_a_mask_without_relevant_sets_still_hides_copies_of_the_positive():
    mask, n_masked = negatives_mask(id_numbers(["a", "a", "b"]), torch.tensor([1]))
    assert mask.tolist() == [[False, True, True]]
    assert n_masked == 1


def test_id_numbers_are_equal_for_equal_ids_only_and_never_the_filler():
    numbers = id_numbers([f"doc{i}" for i in range(2000)])
    assert len(set(numbers.tolist())) == 2000
    assert numbers.min() >= 0
    assert id_numbers(["doc7"]).item() == numbers[7].item()


def test_documents_scoring_above_the_positive_plus_margin_are_masked():
    scores = torch.tensor([[0.5, 0.56, 0.54, 0.1], [0.9, 0.2, 0.3, 0.4]])
    mask, n_masked = false_negative_mask(scores, torch.tensor([0, 1]), margin=0.05)
    # row 0: above 0.55 is document 1; row 1: positive 0.2, above 0.25 are 0, 2 and 3
    assert mask.tolist() == [[True, False, True, True], [False, True, False, False]]
    assert n_masked == 4


def with_cosines(cosines):
    """A query `[1, 2]` and documents `[M, 2]` of these cosines, which need a gradient."""
    cosines = torch.tensor(cosines)
    documents = torch.stack([cosines, (1 - cosines.square()).sqrt()], dim=1)
    return QUERY, documents.requires_grad_()


def test_a_positive_below_two_negatives_keeps_its_gradient():
    # the model is wrong about this row: two documents stand 0.112 above the positive, one 0.1 below it
    query, documents = with_cosines([0.4, 0.512, 0.512, 0.3])
    index = torch.tensor([0])
    scores = cosine_scores(query, documents)
    losses = {}
    for max_share in (1.0, 0.01):
        mask, n_masked = false_negative_mask(scores, index, 0.1, max_share)
        losses[max_share] = info_nce(query, documents, index, mask, temperature=0.01)
        assert n_masked == (2 if max_share == 1.0 else 0)
    (gradient,) = torch.autograd.grad(losses[0.01], documents)
    assert losses[1.0].item() < 1e-4
    assert losses[0.01].item() == pytest.approx(11.2 + math.log(2), rel=1e-4)
    assert gradient[:3].norm(dim=1).min() > 1.0


@pytest.mark.parametrize(("n_high", "n_masked"), [(0, 0), (1, 1), (2, 2), (3, 0), (150, 0)])
def test_a_document_like_the_positive_is_masked_unless_too_many_are(n_high, n_masked):
    # 1.5 % of 199 others are 2.985: up to two may be false negatives
    scores = torch.full((1, 200), 0.1)
    scores[0, 7], scores[0, 8 : 8 + n_high] = 0.5, 0.8
    mask, n = false_negative_mask(scores, torch.tensor([7]), margin=0.1, max_share=0.015)
    assert n == n_masked
    assert mask[0, 7]
    assert (~mask[0, 8 : 8 + n_high]).sum() == n_masked


def test_rows_of_few_documents_mask_none_unless_all_may_be():
    scores = torch.tensor([[0.1, 0.9]])
    assert false_negative_mask(scores, torch.tensor([0]), 0.1, max_share=0.99)[1] == 0
    assert false_negative_mask(scores, torch.tensor([0]), 0.1, max_share=1.0)[1] == 1
    with pytest.raises(ValueError, match="max_share"):
        false_negative_mask(scores, torch.tensor([0]), 0.1, max_share=1.5)


def test_a_negative_margin_never_masks_the_positive():
    mask, n_masked = false_negative_mask(torch.tensor([[0.5, 0.45]]), torch.tensor([0]), margin=-0.1)
    assert mask.tolist() == [[True, False]]
    assert n_masked == 1


def test_on_one_rank_gathering_changes_nothing():
    rows = torch.randn(3, 2, requires_grad=True)
    assert gather_rows(rows) is rows
    assert row_counts(3) == [3]
    assert share_of_count(3) == 3.0
    assert share_of_count(0) == 1.0


def test_that_other_positives_of_a_query_score_high_makes_its_row_no_hard_one():
    scores = torch.tensor([[0.2, 0.9, 0.8, 0.7, 0.1]])  # the positive is low; 1 and 2 are positives as well
    may_be_negative = torch.tensor([[True, False, False, True, True]])
    share = {"margin": 0.1, "max_share": 0.5}
    mask, _ = false_negative_mask(scores, torch.tensor([0]), may_be_negative=may_be_negative, **share)
    assert (mask & may_be_negative).tolist() == [[True, False, False, False, True]]
    assert false_negative_mask(scores, torch.tensor([0]), **share)[1] == 0  # three of four others: a hard row
