import pytest
import torch
from conftest import linear_head
from torch.nn.functional import normalize
from transformers import Qwen2Config, Qwen2ForCausalLM

from search_r3.objectives.losses import info_nce, kl_to_reference, sft_cross_entropy
from search_r3.stages.gradient_cache import ChunkOutput, backward_with_cache
from tests.closeness import assert_close_in_ulps

N_ROWS, LENGTH, VOCABULARY = 6, 5, 50


def qwen2(dropout: float = 0.0, seed: int = 0) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        attention_dropout=dropout,
    )
    return Qwen2ForCausalLM(config).train()


def token_rows() -> torch.Tensor:
    """`[2 * N_ROWS, LENGTH]`: queries, then their positives."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(VOCABULARY, (2 * N_ROWS, LENGTH), generator=generator)


def contrastive(embeddings: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    everything = torch.cat(embeddings)
    loss = info_nce(everything[:N_ROWS], everything[N_ROWS:], torch.arange(N_ROWS), temperature=0.1)
    return loss, {"info_nce": loss.detach()}


def make_forward(model: Qwen2ForCausalLM, reference: Qwen2ForCausalLM, calls: list[int]):
    """Embeddings, and cross-entropy and KL over the whole batch's tokens, of a real model."""
    n_targets = 2 * N_ROWS * (LENGTH - 1)
    head, ref_head = model.lm_head.weight, reference.lm_head.weight

    def forward(rows: torch.Tensor) -> ChunkOutput:
        calls.append(len(rows))
        hidden = model.model(rows).last_hidden_state  # [n, L, D]
        states, targets = hidden[:, :-1].flatten(0, 1), rows[:, 1:].flatten()
        with torch.no_grad():
            ref_states = reference.model(rows).last_hidden_state[:, :-1].flatten(0, 1)
        tokens = sft_cross_entropy(states, linear_head(head), targets, chunk=7, denominator=n_targets)
        heads = linear_head(head), linear_head(ref_head)
        kl = kl_to_reference(states, ref_states, *heads, 3, chunk=7, denominator=n_targets)
        metrics = {"sft": tokens.detach(), "n_rows": torch.tensor(len(rows))}
        return ChunkOutput(normalize(hidden[:, -1], dim=-1), tokens + 0.5 * kl, metrics)

    return forward


def gradients_by_cache(chunk_size: int, with_tokens: bool = True):
    model, calls = qwen2(), []
    run = make_forward(model, qwen2(seed=1), calls)

    def forward(rows: torch.Tensor) -> ChunkOutput:
        output = run(rows)
        return output if with_tokens else ChunkOutput(output.embeddings)

    loss, metrics = backward_with_cache(
        token_rows().split(chunk_size), forward, contrastive, torch.Tensor.backward
    )
    return loss, {name: p.grad for name, p in model.named_parameters()}, calls, metrics


def plain_gradients(with_tokens: bool = True):
    model = qwen2()
    output = make_forward(model, qwen2(seed=1), [])(token_rows())
    loss = contrastive([output.embeddings])[0]
    if with_tokens:
        loss = loss + output.extra_loss
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("chunk_size", [1, 5, 6, 12])
@pytest.mark.parametrize("with_tokens", [False, True])
def test_the_cached_gradient_is_the_plain_one(chunk_size, with_tokens):
    loss, cached, _, _ = gradients_by_cache(chunk_size, with_tokens)
    expected_loss, plain = plain_gradients(with_tokens)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    for name, gradient in plain.items():
        if gradient is None:
            assert cached[name] is None
            continue
        assert gradient.abs().max() > 1e-4, name
        assert_close_in_ulps(cached[name], gradient, 256, name)


def test_a_gradient_that_leaves_out_the_other_chunks_is_another_one():
    model = qwen2()
    rows = token_rows()
    for part in (slice(0, 3), slice(3, 6)):  # what accumulation without a cache would do
        embeddings = [model.model(rows[start:][part]).last_hidden_state[:, -1] for start in (0, N_ROWS)]
        (info_nce(*embeddings, torch.arange(3), temperature=0.1) / 2).backward()
    _, plain = plain_gradients(with_tokens=False)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.allclose(dict(model.named_parameters())[name].grad, plain[name], atol=1e-3)


def test_metrics_of_chunks_add_up_and_those_of_the_loss_are_kept():
    _, _, _, metrics = gradients_by_cache(5)
    _, _, _, whole = gradients_by_cache(12)
    assert metrics["n_rows"] == 2 * N_ROWS
    assert metrics["sft"].item() == pytest.approx(whole["sft"].item(), rel=1e-5)
    assert metrics["info_nce"].item() == pytest.approx(whole["info_nce"].item(), rel=1e-5)


def test_one_chunk_is_one_forward_and_n_chunks_are_2n_minus_1():
    assert len(gradients_by_cache(12)[2]) == 1
    assert len(gradients_by_cache(4)[2]) == 5


def test_only_the_last_backward_communicates():
    events = []

    class Quiet:
        def __enter__(self):
            events.append("quiet")

        def __exit__(self, *error):
            events.append("loud")

    model = qwen2()

    def backward(loss):
        events.append("backward")
        loss.backward()

    backward_with_cache(
        token_rows().split(4), make_forward(model, qwen2(seed=1), []), contrastive, backward, Quiet
    )
    assert events == ["quiet", "backward", "loud"] * 2 + ["backward"]


def test_without_a_loss_over_embeddings_chunks_accumulate_the_token_loss():
    model = qwen2()
    head = model.lm_head.weight
    rows = token_rows()

    def forward(part):
        hidden = model.model(part).last_hidden_state[:, :-1].flatten(0, 1)
        return ChunkOutput(
            extra_loss=sft_cross_entropy(hidden, linear_head(head), part[:, 1:].flatten(), denominator=12 * 4)
        )

    loss, _ = backward_with_cache(rows.split(5), forward, None, torch.Tensor.backward)
    accumulated = head.grad.clone()
    model.zero_grad()
    plain = model(rows, labels=rows).loss  # the library's own
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    assert_close_in_ulps(accumulated, head.grad, 256)


def test_dropout_stops_the_run():
    model = qwen2(dropout=0.5)
    forward = make_forward(model, qwen2(seed=1), [])
    with pytest.raises(RuntimeError, match="dropout"):
        backward_with_cache(token_rows().split(6), forward, contrastive, torch.Tensor.backward)


def test_a_step_without_chunks_is_refused():
    with pytest.raises(ValueError, match="at least one chunk"):
        backward_with_cache([], lambda chunk: ChunkOutput(), contrastive, torch.Tensor.backward)


def test_a_chunk_without_embeddings_is_refused_where_the_loss_needs_them():
    with pytest.raises(ValueError, match="needs the embeddings"):
        backward_with_cache([1], lambda chunk: ChunkOutput(), contrastive, torch.Tensor.backward)
