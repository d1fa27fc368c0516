"""The RL stage with its real data module and index: a step's contrastive term and ranks by definition."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_rl import data_of, fit, likely_folder, module_of, opened, world

from src.stages.rl import PolicySettings
from src.stages.rollouts import sample_rollouts

ALSO_RELEVANT = {0: [3, 5], 2: [7], 4: [0, 1, 8]}  # documents besides the query's own


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return likely_folder(tmp_path_factory.mktemp("rl"))


def world_with_several_positives():
    """Six queries; some have other relevant documents, which are the positives of other queries too."""
    plain = world()
    examples = [
        replace(example, relevant_ids=frozenset(f"d{i}" for i in (n, *ALSO_RELEVANT.get(n, []))))
        for n, example in enumerate(plain.examples[:6])
    ]
    return replace(plain, examples=examples)


def test_the_contrastive_term_never_takes_a_relevant_document_for_a_negative(folder, tmp_path):
    """Everything is retrieved and fresh at step 0, so that the pool is the corpus."""
    data, temperature = world_with_several_positives(), 0.1
    embedder, same = opened(folder), opened(folder)
    policy = PolicySettings(contrastive_weight=0.5, contrastive_temperature=temperature)
    module = module_of(embedder, tmp_path, policy, every=0, n_retrieved=len(data.corpus))
    _, log = fit(module, data_of(embedder, tmp_path / "run", data=data, batch_size=6), 1)

    rollouts = sample_rollouts(
        same, [e.id for e in data.examples], [e.query for e in data.examples], module.sampling, 6, 0, 0
    )
    documents = same.embed_documents(data.corpus.texts).double().numpy()
    losses, as_if_wrong = [], []
    for number, group in enumerate(rollouts.embeddings.double().numpy()):
        for vector in group:
            logits = documents @ vector / temperature
            relevant = [number, *ALSO_RELEVANT.get(number, [])]
            allowed = [row for row in range(len(documents)) if row not in relevant]
            for found, rows in ((losses, allowed), (as_if_wrong, [r for r in range(12) if r != number])):
                found.append(np.log(np.exp(logits[[number, *rows]]).sum()) - logits[number])
    assert np.mean(as_if_wrong) - np.mean(losses) > 0.05  # it matters
    assert log.of("contrastive") == [pytest.approx(np.mean(losses), rel=1e-4)]


def test_a_step_earns_what_the_ranks_in_the_whole_corpus_earn_by_count(folder, tmp_path):
    data = world_with_several_positives()
    embedder, same = opened(folder), opened(folder)
    module = module_of(embedder, tmp_path, every=0)
    _, log = fit(module, data_of(embedder, tmp_path / "run", data=data, batch_size=6), 1)

    rollouts = sample_rollouts(
        same, [e.id for e in data.examples], [e.query for e in data.examples], module.sampling, 6, 0, 0
    )
    documents = same.embed_documents(data.corpus.texts).double()
    n_first = 0
    for number, group in enumerate(rollouts.embeddings.double()):
        relevant = [number, *ALSO_RELEVANT.get(number, [])]
        scores = group @ documents.T  # [G, N]
        wrong = scores.clone()
        wrong[:, relevant] = -torch.inf
        n_first += int((wrong.amax(1) < scores[:, relevant].amax(1) - 1e-6).sum())
    assert 0 < n_first < 36
    assert log.of("rank_first") == [pytest.approx(n_first / 36)]
