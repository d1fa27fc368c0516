"""Rollouts of a group against transformers' `generate` and its continuous batching.

Both write a fixed number of tokens from the whole vocabulary, so that the same work is done whatever is
drawn. Ours also gives the log-probability of every token and the embedding that follows, and runs a step more
for it; the peer's tokens are all that it gives.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from search_r3.benchmarks.peers.comparison import Comparison, Cost, Equal
from search_r3.benchmarks.peers.subjects import ATTENTIONS, Subject, Texts
from search_r3.models.generation import Sampling
from search_r3.models.prefix import pad_left
from search_r3.stages.rl.rollouts import Rollouts
from search_r3.stages.rl.sampling import sample_rollouts

PAGE = 32
"""Tokens of a page of the paged cache."""


def sampled(subject: Subject, queries: Sequence[str], n_tokens: int, group_size: int) -> Rollouts:
    """`G` rollouts of each query by ours, in its precision."""
    names = [str(place) for place in range(len(queries))]
    with subject.autocast():
        return sample_rollouts(
            subject.embedder, names, list(queries), Sampling(n_tokens, 1.0), group_size, seed=0, step=0
        )


def endless(subject: Subject, n_tokens: int, group_size: int) -> GenerationConfig:
    """Sampling of exactly so many tokens from the whole distribution but the embed token."""
    return GenerationConfig(
        max_new_tokens=n_tokens, min_new_tokens=n_tokens, do_sample=True, temperature=1.0, top_p=1.0, top_k=0,
        num_return_sequences=group_size, pad_token_id=subject.embedder.tokenizer.pad_token_id,
        eos_token_id=None, suppress_tokens=[subject.embedder.embed_token_id],
    )  # fmt: skip


def rollouts(subject: Subject, texts: Texts, n_tokens: int, group_size: int) -> Comparison:
    """So many tokens of `G` rollouts of each query, against `generate` on left-padded prompts."""
    embedder = subject.embedder
    subject.writes_all_but_the_embed_token()
    prompts = embedder.encoder.reasoning_prompts(list(texts.queries))
    ids, mask = pad_left(prompts, embedder.tokenizer.pad_token_id, embedder.device)
    config = endless(subject, n_tokens, group_size)
    models = causal_models(subject)

    def with_attention(attention: str) -> Callable[[], Tensor]:
        def theirs() -> Tensor:
            with torch.no_grad(), subject.autocast():
                return models[attention].generate(
                    input_ids=ids, attention_mask=mask.long(), generation_config=config
                )

        return theirs

    ways = {attention: with_attention(attention) for attention in models}
    return _comparison(subject, texts, n_tokens, group_size, models, "generate", ways)


def continuous(subject: Subject, texts: Texts, n_tokens: int, group_size: int) -> Comparison:
    """The same against `generate_batch`, whose paged cache shares what prompts begin with."""
    embedder = subject.embedder
    subject.writes_all_but_the_embed_token()
    prompts = embedder.encoder.reasoning_prompts(list(texts.queries))
    repeated = [prompt for prompt in prompts for _ in range(group_size)]
    config = endless(subject, n_tokens, 1)
    models = causal_models(subject, ("sdpa",))
    longest = max(map(len, prompts)) + n_tokens
    # What it takes by itself is most of the free memory of a GPU; on a CPU that is all there is.
    settings = ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=len(repeated) * (longest // PAGE + 2),
        max_batch_tokens=embedder.token_budget,
    )  # fmt: skip

    def theirs() -> object:
        with torch.no_grad(), subject.autocast():
            return models["sdpa"].generate_batch(
                repeated, config, continuous_batching_config=settings, warmup=False
            )

    return _comparison(
        subject, texts, n_tokens, group_size, models, "generate_batch", {"continuous batching": theirs}
    )


def causal_models(subject: Subject, attentions: Sequence[str] = ATTENTIONS) -> dict[str, object]:
    """The peer's models of a subject, by attention."""
    return {
        attention: AutoModelForCausalLM.from_pretrained(
            subject.folder, dtype=torch.float32, attn_implementation=attention
        ).eval()
        for attention in attentions
    }


def _comparison(
    subject: Subject,
    texts: Texts,
    n_tokens: int,
    group_size: int,
    models: dict[str, object],
    name: str,
    ways: dict[str, Callable[[], object]],
) -> Comparison:
    found = sampled(subject, texts.queries, n_tokens, group_size)
    n_written = int(found.n_tokens.sum())
    if n_written != n_tokens * group_size * len(texts.queries):
        raise ValueError(f"{n_written} tokens were written; every rollout must reach {n_tokens}")
    return Comparison(
        unit="tokens per second",
        amount=n_written,
        peer=f"transformers {version('transformers')} {name}",
        ours=lambda: sampled(subject, texts.queries, n_tokens, group_size),
        theirs=ways,
        equal=[_log_probs(subject, found, next(iter(models.values())))],
        cost=decoding_cost(subject, found),
    )


def _log_probs(subject: Subject, found: Rollouts, model: object) -> Equal:
    """Of the tokens that ours drew, as recorded while sampling, and by the peer's forward of whole texts."""
    embedder, largest = subject.embedder, 0.0
    for row, (prompt, group) in enumerate(zip(found.prompts, found.token_ids, strict=True)):
        written = group[:, : found.sampling.max_new_tokens]
        ids = torch.cat([torch.tensor([prompt] * len(written)), written], dim=1)
        with torch.no_grad(), subject.autocast():
            logits = model(input_ids=ids).logits.float()[:, len(prompt) - 1 : -1]
        logits[..., embedder.embed_token_id] = -torch.inf
        theirs = logits.log_softmax(-1).gather(-1, written[..., None])[..., 0]
        ours = found.log_probs[row][:, : written.shape[1]]
        largest = max(largest, float((ours - theirs).abs().max()))
    return Equal("log-probabilities of what was drawn", largest, 0.3 if subject.precision == "bf16" else 1e-4)


def decoding_cost(subject: Subject, found: Rollouts) -> Cost:
    """Each prompt once, each token once; a step of all rollouts reads all weights and the keys so far."""
    prompts = found.prompt_lengths
    n_steps = found.sampling.max_new_tokens
    shared = subject.embedder.prefix_of(found.prompts).n_ids
    n_read = int(prompts.sum()) - shared * (len(prompts) - 1)
    n_written = n_steps * found.group_size * len(prompts)
    flops = 2.0 * (subject.n_weights * (n_read + n_written) + subject.n_head * n_written)
    width = 4  # bytes of fp32
    weights = width * n_steps * (subject.n_weights + subject.n_head)
    keys = width * keys_of_a_token(subject) * found.group_size * sum(
        n_steps * int(length) + n_steps * (n_steps + 1) // 2 for length in prompts
    )  # fmt: skip
    return Cost(flops, weights + keys)


def keys_of_a_token(subject: Subject) -> int:
    """Numbers that a token's keys and values are in all layers."""
    config = subject.embedder.causal_lm.config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head
