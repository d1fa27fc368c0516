"""Rankings for rewards: given ones, random ones and random sets of positives."""

from pathlib import Path

import torch

from search_r3.objectives.ranking import Ranking
from search_r3.objectives.rewards import Reward, dcg, margin_dcg, scaled_dcg

ULP = 2.0**-23
"""Of fp32, relative: the distance of two neighbours, at most."""

CONF = Path(__file__).resolve().parents[1] / "conf" / "reward"
REWARDS = {
    "dcg": dcg,
    "dcg@10": lambda ranking: dcg(ranking, k=10),
    "scaled_dcg": scaled_dcg,
    "scaled_dcg@10": lambda ranking: scaled_dcg(ranking, k=10),
    "margin_dcg": margin_dcg,
    "margin_dcg@10": lambda ranking: margin_dcg(ranking, k=10, tau=0.2),
}


def ranking_of(ranks, scores=None, best_wrong=0.5, grades=None, last_rank=1000) -> Ranking:
    """One query; `ranks` `[G, P]`, or `[G]` for one positive."""
    rank = torch.tensor(ranks)
    rank = rank[:, None] if rank.ndim == 1 else rank
    scores = torch.full(rank.shape, 0.5) if scores is None else torch.tensor(scores).reshape(rank.shape)
    best = torch.as_tensor(best_wrong).expand(len(rank))
    grades = torch.ones(rank.shape[1]) if grades is None else torch.tensor(grades)
    return Ranking(rank[None], scores[None], best[None], grades[None], torch.tensor([last_rank]))


def random_ranking(seed: int, n_documents: int = 30, n_positives: int = 3) -> Ranking:
    """A ranking that real scores give: ranks, scores and best wrong document agree."""
    generator = torch.Generator().manual_seed(seed)
    positive = torch.rand(2, 4, n_positives, generator=generator) * 2 - 1
    wrong = torch.rand(2, 4, n_documents, generator=generator) * 2 - 1
    rank = 1 + (wrong[:, :, None] >= positive[..., None]).sum(-1)
    grades = torch.randint(0, 4, (2, n_positives), generator=generator).float()
    grades[:, 0] = 1.0
    return Ranking(rank, positive, wrong.amax(-1), grades, torch.tensor([n_documents + 1] * 2))


def random_sets(seed, n=2000, n_positives=6):
    """`n` queries with 1 to 6 positives of random grades, a rollout each; ranks to 1,000, or to 12."""
    generator = torch.Generator().manual_seed(seed)
    highest = torch.where(torch.rand(n, 1, 1, generator=generator) < 0.5, 12, 1001)
    rank = (torch.rand(n, 1, n_positives, generator=generator) * (highest - 1)).long() + 1
    grades = torch.randint(1, 5, (n, n_positives), generator=generator).float()
    grades *= torch.arange(n_positives) < torch.randint(1, n_positives + 1, (n, 1), generator=generator)
    scores, best_wrong = random_scores(rank.shape, generator)
    last_rank = rank.amax((1, 2)) + torch.randint(0, 2, (n,), generator=generator) * 500
    return Ranking(rank, scores, best_wrong, grades, last_rank.clamp(min=2)), generator


def random_scores(shape, generator):
    """Cosines of positives and of the best wrong document, near to each other as a rule."""
    best_wrong = torch.rand(shape[:2], generator=generator) * 2 - 1
    margins = torch.randn(shape, generator=generator) * 10 ** (-3 * torch.rand(shape, generator=generator))
    return (best_wrong[..., None] + margins).clamp(-1, 1), best_wrong


def total_of(name, ranking):
    """`[n, 1]`, what rollouts with an embed token earn in all."""
    return Reward(REWARDS[name])(ranking, torch.ones(ranking.rank.shape[:2], dtype=torch.bool)).total
