"""A search, a refresh rule and a list of a step lose no place to what a query is not ranked against."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from drifting import DriftingCorpus
from live_indexes import created, nearest
from rl_runs import data_of, fit, likely_folder, module_of, opened
from test_seams_rl import EXCLUDED, KeepScored, world_with_several_positives
from two_processes import on_two_ranks

from search_r3.index.backends.ivf import IVFIndex
from search_r3.index.rules.base import NOTHING, Refresh, Rule
from search_r3.index.rules.candidates import Candidates
from search_r3.index.rules.frozen import Frozen
from search_r3.index.rules.neighbourhood import Graph
from search_r3.stages.rl.settings import PolicySettings

K = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return likely_folder(tmp_path_factory.mktemp("rl"))


def excluding(corpus: DriftingCorpus, step: int = 3):
    """Queries, the first twelve of which exclude the best two documents that are not their positive."""
    queries = corpus.queries(step)
    scores = queries.vectors @ corpus.vectors(0).T
    np.put_along_axis(scores, queries.positives, -np.inf, 1)
    excluded = np.argsort(-scores, axis=1)[:, :2]
    excluded[12:] = -1
    excluded[4, 1] = -1
    return replace(queries, excluded=excluded)


def best_by_definition(rows: np.ndarray, queries, k: int) -> list[list[int]]:
    """The best `k` of every query among the documents that it does not exclude."""
    order = np.argsort(-(queries.vectors @ rows.T), axis=1, kind="stable").tolist()
    pairs = zip(order, queries.excluded.tolist(), strict=True)
    return [[row for row in found if row not in out][:k] for found, out in pairs]


@pytest.mark.parametrize("k", [1, K, 399, 1000])
@pytest.mark.parametrize("backend", [None, partial(IVFIndex, n_lists=5, n_probe=5)])
def test_a_search_finds_as_many_documents_where_some_are_excluded(k, backend, tmp_path):
    corpus = DriftingCorpus()
    queries = excluding(corpus)
    with created(tmp_path, corpus, Frozen(), **({"backend": backend} if backend else {})) as index:
        scores, rows = index.search(queries.vectors, k, queries.excluded)
        for place, expected in enumerate(best_by_definition(index.rows, queries, k)):
            n = len(expected)
            assert rows[place].tolist() == expected + [-1] * (min(k, 400) - n)
            own = index.rows[expected] @ queries.vectors[place]
            np.testing.assert_allclose(scores[place, :n], own, atol=1e-6)
            assert (scores[place, n:] == -np.inf).all()


def searched_by_part(rank: int, folder):
    """One rank's queries exclude documents, the other's none."""
    corpus = DriftingCorpus()
    queries, own = excluding(corpus), slice(0, 12) if rank == 0 else slice(12, 24)
    excluded = queries.excluded[own] if rank == 0 else np.empty((12, 0), np.int64)
    with created(folder, corpus, Frozen()) as index:
        return index.search(queries.vectors[own], K, excluded)[1]


def test_two_ranks_find_what_one_does_where_only_one_of_them_excludes_documents(tmp_path):
    corpus = DriftingCorpus()
    found = np.concatenate(on_two_ranks(searched_by_part, tmp_path))
    assert found.tolist() == best_by_definition(corpus.vectors(0), excluding(corpus), K)


@pytest.mark.parametrize("are_given", [False, True])
def test_candidates_encodes_an_excluded_document_only_where_another_query_retrieves_it(are_given, tmp_path):
    corpus = DriftingCorpus()
    queries = excluding(corpus)
    with created(tmp_path, corpus, Candidates(K)) as index:
        expected = {row for rows in best_by_definition(index.rows, queries, K) for row in rows}
        as_if_wrong = set(index.search(queries.vectors, K)[1].ravel().tolist())
        asked = queries
        if are_given:
            asked = replace(queries, candidates=index.search(queries.vectors, K + 2)[1])
        index.refresh(3, asked, corpus.encoder(3))
        found = set(np.flatnonzero(index.encoded_at == 3).tolist())
    out, positives = set(queries.excluded.ravel().tolist()), set(queries.positives.ravel().tolist())
    assert found == expected | positives
    assert out & found - positives  # of another query
    assert out & as_if_wrong - found


def test_the_region_of_the_graph_is_that_of_each_query_without_what_it_excludes(tmp_path):
    corpus = DriftingCorpus()
    queries = excluding(corpus)
    with created(tmp_path, corpus, Graph(k=K, n_neighbours=4, hops=2)) as index:
        edges, region, as_if_wrong = nearest(index.rows, 4)[0], set(), set()
        began = zip(
            best_by_definition(index.rows, queries, K), queries.positives, queries.excluded, strict=True
        )
        for found, positives, excluded in began:
            for reached, out in ((region, set(excluded)), (as_if_wrong, set())):
                own = {*found, *positives.tolist()}
                for _ in range(2):
                    own |= {int(end) for row in own for end in edges[row]} - out
                reached |= own
        index.refresh(3, queries, corpus.encoder(3))
        assert set(np.flatnonzero(index.encoded_at == 3).tolist()) == region
        assert region < as_if_wrong


class Told(Rule):
    """Keeps what a step asks of the index, and an audit of the rule."""

    n_candidates = 3
    wants_audits = True

    def __init__(self):
        self.seen = []

    def propose(self, view):
        self.seen.append(view.queries)
        return NOTHING

    def learn(self, audit):
        self.seen.append(audit.view.queries)
        return {}


def test_a_step_and_its_audit_hand_the_rule_what_each_query_excludes(folder, tmp_path):
    embedder, rule, kept = opened(folder), Told(), KeepScored()
    data = data_of(
        embedder, tmp_path / "run", Refresh(rule, audit_every_n_steps=1), world_with_several_positives(), 6
    )
    fit(module_of(embedder, tmp_path, every=0), data, 2, [kept])
    steps = [kept.seen[0], kept.seen[1], kept.seen[1]]  # no audit at step 0
    for (rollouts, *_), queries in zip(steps, rule.seen, strict=True):
        numbers = np.repeat([int(name.removeprefix("e")) for name in rollouts.query_ids], 6)
        for number, excluded, candidates in zip(numbers, queries.excluded, queries.candidates, strict=True):
            assert sorted(excluded[excluded >= 0].tolist()) == EXCLUDED.get(number, [])
            assert len(candidates) == 3
            assert not set(candidates.tolist()) & {-1, *EXCLUDED.get(number, [])}
        assert (queries.excluded >= 0).any()


class KeepRetrieved(KeepScored):
    """What every step retrieved, too."""

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        self.retrieved, made = [], pl_module._learnt

        def learnt(rollouts, outcome, retrieved, step):
            self.retrieved.append(retrieved)
            return made(rollouts, outcome, retrieved, step)

        pl_module._learnt = learnt


def test_a_step_retrieves_as_many_documents_as_the_config_says_and_ranks_by_them(folder, tmp_path):
    data, kept = world_with_several_positives(), KeepRetrieved()
    examples = [  # its best wrong documents are excluded: they would fill the list
        replace(
            example, relevant_ids=frozenset({f"d{n}"}), excluded_ids=frozenset({f"d{(n + 1) % 12}", "d11"})
        )
        for n, example in enumerate(data.examples)
    ]
    embedder, same = opened(folder), opened(folder)
    module = module_of(embedder, tmp_path, every=0, n_retrieved=3, rank="topk")
    fit(
        module,
        data_of(embedder, tmp_path / "run", data=replace(data, examples=examples), batch_size=6),
        1,
        [kept],
    )
    rollouts, outcome, _ = kept.seen[0]
    documents = same.embed_documents(data.corpus.texts).double()
    n_beyond = 0
    for place, name in enumerate(rollouts.query_ids):
        number = int(name.removeprefix("e"))
        scores = rollouts.embeddings[place].double() @ documents.T
        scores[:, [(number + 1) % 12, 11]] = -torch.inf
        assert kept.retrieved[0].rows[place].tolist() == scores.topk(3).indices.tolist()
        ranks = 1 + (scores > scores[:, [number]]).sum(1)
        n_beyond += int((ranks > 3).sum())
        expected = torch.where(ranks <= 3, ranks, 9 + 1 + 1)  # nine wrong documents
        assert outcome.ranking.rank[place, :, 0].tolist() == expected.tolist()
    assert 0 < n_beyond < 36


def test_a_query_that_excludes_most_of_the_corpus_has_a_short_list_in_the_table_and_in_the_loss(
    folder, tmp_path
):
    data, kept, temperature = world_with_several_positives(), KeepRetrieved(), 1.0
    out = [[(n + far) % 12 for far in range(4, 12)] for n in range(6)]  # it is ranked against four
    examples = [
        replace(each, relevant_ids=frozenset({f"d{n}"}), excluded_ids=frozenset(f"d{row}" for row in out[n]))
        for n, each in enumerate(data.examples)
    ]
    embedder, same = opened(folder), opened(folder)
    policy = PolicySettings(contrastive_weight=0.5, contrastive_temperature=temperature)
    module = module_of(embedder, tmp_path, policy, n_retrieved=12)
    run = data_of(embedder, tmp_path / "run", data=replace(data, examples=examples), batch_size=6)
    _, log = fit(module, run, 1, [kept])
    documents = same.embed_documents(data.corpus.texts).double()
    rollouts, losses = kept.seen[0][0], []
    for place, name in enumerate(rollouts.query_ids):
        number = int(name.removeprefix("e"))
        for vector, found in zip(rollouts.embeddings[place], kept.retrieved[0].rows[place], strict=True):
            scores = documents @ vector.double()
            scores[out[number]] = -torch.inf
            assert found.tolist() == [*scores.topk(4).indices.tolist(), *[-1] * 8]
            losses.append((scores / temperature).logsumexp(0) - scores[number] / temperature)
    assert log.of("contrastive") == [pytest.approx(np.mean(losses), rel=1e-4)]
    lines = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert {len(line["top"]) for line in lines} == {4}
