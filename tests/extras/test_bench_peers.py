"""What `make bench` compares is the same on both sides, and a side that was changed is not timed."""

import mteb
import pytest
import torch
from conftest import TEXTS
from small_collection import write_collection
from trl import GRPOTrainer

from search_r3.benchmarks.peers import evaluation, grpo, rollouts, sft
from search_r3.benchmarks.peers.comparison import Cost, measured
from search_r3.benchmarks.peers.encode import encode, queries
from search_r3.benchmarks.peers.subjects import Subject, Texts, sentence_transformers
from search_r3.models.folder import load_embedder

LIMITS = {"flops_per_s": 1e9, "bytes_per_s": 1e9}
PAIRS = Texts([text.partition("\n")[0] for text in TEXTS[:5]], TEXTS[:5])


@pytest.fixture
def subject(nano_folder):
    return Subject("nano", load_embedder(nano_folder).eval(), nano_folder, "fp32")


def holds(comparison):
    assert comparison.equal
    return {each.what: each.holds for each in comparison.equal}


def moved(subject):
    """The same model with other weights than the peer reads."""
    with torch.no_grad():
        for parameter in subject.embedder.parameters():
            parameter.mul_(1.1)
    return subject


@pytest.mark.parametrize("compare", [encode, queries])
def test_vectors_are_those_of_sentence_transformers(compare, subject):
    comparison = compare(subject, PAIRS)

    assert all(holds(comparison).values())
    assert comparison.cost.flops > 0
    row = measured(comparison, rounds=2, max_seconds=0.0, limits=LIMITS)
    assert row["ratio"] > 0
    assert row["peer_name"].startswith("sentence-transformers 6")
    assert not any(holds(compare(moved(subject), PAIRS)).values())


def test_a_step_of_sft_has_the_loss_and_the_gradient_of_the_cached_loss(subject):
    comparison = sft.sft(subject, PAIRS)

    assert holds(comparison) == {"loss": True, "gradient": True}
    measured(comparison, rounds=2, max_seconds=0.0, limits=LIMITS)  # both take optimizer steps
    assert not all(holds(sft.sft(moved(subject), PAIRS)).values())


def test_the_cached_loss_sees_negatives_and_has_a_gradient(subject):
    (model,) = sentence_transformers(subject, ("eager",)).values()
    theirs = sft.Theirs(subject, model, PAIRS, 2)

    assert float(theirs.backward()) > 0.01
    assert max(float(each.grad.abs().max()) for each in model.parameters() if each.grad is not None) > 0


@pytest.mark.parametrize("compare", [rollouts.rollouts, rollouts.continuous])
def test_log_probabilities_of_rollouts_are_those_of_a_forward_of_transformers(compare, subject):
    comparison = compare(subject, PAIRS, 3, 2)

    assert all(holds(comparison).values())
    assert comparison.amount == 3 * 2 * len(PAIRS.queries)
    (name, way), *_ = comparison.theirs.items()
    found = way()
    if name != "continuous batching":
        prompts = subject.embedder.encoder.reasoning_prompts(PAIRS.queries)
        assert found.shape == (10, max(map(len, prompts)) + 3)
        assert subject.embedder.embed_token_id not in found[:, -3:]
    else:
        assert {len(each.generated_tokens) for each in found.values()} == {3}
    assert not all(holds(compare(moved(subject), PAIRS, 3, 2)).values())


def test_a_step_of_grpo_has_the_loss_and_the_gradient_of_trl(subject, tmp_path):
    comparison = grpo.grpo(subject, PAIRS, 4, 3, tmp_path)

    assert all(holds(comparison).values())
    assert {"loss", "gradient", "advantages"} <= holds(comparison).keys()
    assert comparison.cost != Cost()
    assert measured(comparison, rounds=2, max_seconds=0.0, limits=LIMITS)["ratio"] > 0


def test_a_step_of_grpo_from_other_weights_is_not_that_of_trl(subject, tmp_path):
    ours = grpo.Ours(moved(subject), PAIRS, 4, 3)

    found = grpo.compared(ours, grpo.trainer(subject, PAIRS, 4, 3, 1, tmp_path))

    assert {each.what for each in found if not each.holds} == {"gradient"}  # the loss is near 0 for any


def test_the_loop_of_trl_takes_one_step_at_a_time_and_ends(subject, tmp_path):
    subject.writes_anything()
    trainer = grpo.trainer(subject, PAIRS, 4, 3, 3, tmp_path)
    assert isinstance(trainer, GRPOTrainer)
    loop = grpo.Stepwise(trainer)

    loop.step()
    assert trainer.state.global_step == 1
    loop.step()
    assert trainer.state.global_step == 2
    loop.close()

    assert not loop.thread.is_alive()


def test_a_loop_that_fails_says_so(subject, tmp_path):
    trainer = grpo.trainer(subject, PAIRS, 4, 3, 1, tmp_path)
    trainer.reward_funcs = [lambda **_: 1 / 0]

    with pytest.raises(RuntimeError, match="the peer's training loop failed"):
        grpo.Stepwise(trainer).step()


def test_an_evaluation_has_the_score_of_mteb(subject, tmp_path):
    folder = write_collection(tmp_path / "small")
    assert mteb.__version__

    comparison = evaluation.evaluation(subject, folder, tmp_path)

    assert holds(comparison) == {"nDCG@10": True}
    assert comparison.ours() > 0.01
    assert not (tmp_path / "ours").exists()
