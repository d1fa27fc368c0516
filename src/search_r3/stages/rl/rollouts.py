"""Rollouts of the RL stage: `G` reasonings of each of `B` queries, as they were sampled.

    rollouts = sample_rollouts(embedder, query_ids, queries, sampling, group_size, seed, step)
    for rows in micro_batches(rollouts, token_budget, learnt.teaches):
        now = training_forward(embedder, rollouts, rows)    # log-probabilities, entropy, embeddings
        loss = policy_loss(PolicyBatch(now.log_probs, ...)) # its part of the batch's loss
        loss.total.backward()

`rows` are numbers `b * G + g` of rollouts; `of_rows` takes their part of any `[B, G, ...]`. Sampling is in
`sampling`, the forward with gradient in `forward`. Log-probabilities are everywhere of the temperature-scaled
distribution without the banned tokens, before top-p.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from search_r3.models.batching import forward_cost, length_batches
from search_r3.models.generation import Sampling


@dataclass(frozen=True)
class Rollouts:
    """What was sampled, on the device of the model. `L` is the longest completion, its embed token included.

    Attributes:
        query_ids: `B` ids.
        prompts: `B` lists of token ids.
        sampling: how it was drawn.
        token_ids: `[B, G, L]` long; what was written and the embed token, then padding.
        completion_mask: `[B, G, L]` bool, True at tokens that the policy sampled: the reasoning, and the
            embed token where the model wrote it, since to stop there is its decision. An embed token that was
            appended is False, also where it stands for a sampled token that ended the text otherwise (end of
            text, repetition), and so is padding.
        log_probs: `[B, G, L]` fp32 as recorded while sampling, 0 where the mask is False.
        embeddings: `[B, G, D]` fp32, unit norm.
        has_embed_token: `[B, G]` bool, True where the model wrote the token itself.
        n_tokens: `[B, G]` long; written tokens, the embed token not counted.
        texts: `B` tuples of `G` reasonings.
    """

    query_ids: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]
    sampling: Sampling
    token_ids: Tensor
    completion_mask: Tensor
    log_probs: Tensor
    embeddings: Tensor
    has_embed_token: Tensor
    n_tokens: Tensor
    texts: tuple[tuple[str, ...], ...]

    @property
    def group_size(self) -> int:
        """`G`."""
        return self.token_ids.shape[1]

    @property
    def prompt_lengths(self) -> Tensor:
        """`[B]` long, on the CPU."""
        return torch.tensor([len(prompt) for prompt in self.prompts], dtype=torch.long)

    def sequences(self, rows: Sequence[int]) -> list[list[int]]:
        """Prompt, reasoning and embed token of the rollouts `b * G + g` in `rows`."""
        completions, n_written = of_rows(self.token_ids, rows), of_rows(self.n_tokens, rows)
        return [
            [*self.prompts[row // self.group_size], *ids[: n + 1]]
            for row, ids, n in zip(rows, completions.tolist(), n_written.tolist(), strict=True)
        ]


def micro_batches(rollouts: Rollouts, token_budget: int, kept: Tensor | None = None) -> list[list[int]]:
    """Numbers `b * G + g` of rollouts in batches of similar length, each of at most `token_budget` tokens.

    Args:
        rollouts: of this rank.
        token_budget: tokens of one forward, padding included.
        kept: `[B]` or `[B, G]` bool, False for rollouts that the loss does not see, such as groups without
            spread; all are kept where None.

    Returns:
        The longest first; empty where no rollout is kept. Ranks may get different numbers of batches: where
        they must run equally many forwards, fill up with `[]`, which `training_forward` takes.

    Raises:
        ValueError: If the budget is below 1.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, got {token_budget}")
    shape = rollouts.n_tokens.shape
    if kept is None:
        kept = torch.ones(shape, dtype=torch.bool)
    kept = (kept[:, None].expand(shape) if kept.ndim == 1 else kept).flatten()
    numbers = kept.nonzero()[:, 0].tolist()
    all_lengths = (rollouts.prompt_lengths[:, None] + rollouts.n_tokens.cpu() + 1).flatten().tolist()
    lengths = [all_lengths[number] for number in numbers]
    batches = length_batches(lengths, token_budget, forward_cost(token_budget, rollouts.embeddings.device))
    return [[numbers[place] for place in batch] for batch in batches]


def group_batches(rollouts: Rollouts, token_budget: int, kept: Tensor | None = None) -> list[list[int]]:
    """As `micro_batches`, but whole groups, so that `training_forward(shares_prompts=True)` saves most.

    A group that exceeds the budget by itself is not split.

    Args:
        rollouts: of this rank.
        token_budget: tokens of one forward if no prompt were shared, padding included.
        kept: `[B]` bool.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, got {token_budget}")
    groups = range(len(rollouts.prompts)) if kept is None else kept.nonzero()[:, 0].tolist()
    size, n_tokens = rollouts.group_size, rollouts.n_tokens.cpu().tolist()
    lengths = [size * (len(rollouts.prompts[group]) + max(n_tokens[group]) + 1) for group in groups]
    batches = length_batches(lengths, token_budget, forward_cost(token_budget, rollouts.embeddings.device))
    return [[groups[place] * size + g for place in batch for g in range(size)] for batch in batches]


def of_rows(values: Tensor, rows: Sequence[int]) -> Tensor:
    """`[n, ...]`: the part of `[B, G, ...]` that belongs to the rollouts `b * G + g` in `rows`."""
    return values.flatten(0, 1)[torch.as_tensor(rows, dtype=torch.long, device=values.device)]
