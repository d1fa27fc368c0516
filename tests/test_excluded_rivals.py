"""Documents that a query is not ranked against: every way to rank gives ranks of a corpus without them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_certified import STILL, audit_of, case
from test_environment import ALL_TOKENS, B, G, N, search, unit
from torch.testing import assert_close
from two_processes import on_two_ranks

from search_r3.index.exact_rank import Blocks, Positives, Shard, exact_ranking, topk_ranking
from search_r3.index.rules.forecast import wrong_scores
from search_r3.index.rules.needed_bands import needed_bands
from search_r3.objectives.rewards import Reward, margin_dcg
from search_r3.stages.rl.environment import Environment, EnvironmentDataError, Judgements

QRELS = {"q0": {"d5": 2.0}, "q1": {"d7": 1.0, "d40": 3.0, "d3": 1.0}, "q2": {"d96": 1.0, "d0": 2.0}}
EXCLUDED = {"q0": ["d11"], "q2": ["d1", "d60", "d95", "not in the corpus"]}
ROWS = {"q0": [11], "q1": [], "q2": [1, 60, 95]}
ROW_OF = {f"d{row}": row for row in range(N)}


def world():
    """Rows and queries; what a query excludes stands above everything else."""
    rows, queries = unit(N, 8), unit(B, G, 8, seed=1)
    for number, excluded in enumerate(ROWS.values()):
        rows[excluded] = queries[number, : len(excluded)]
    return rows, queries, Judgements(QRELS, ROW_OF, N, EXCLUDED)


def without(rows, queries, number: int, name: str):
    """The exact ranking of one query where what it excludes is not in the corpus at all."""
    kept = [row for row in range(N) if row not in ROWS[name]]
    positives = torch.tensor([[kept.index(ROW_OF[document]) for document in QRELS[name]]])
    return exact_ranking(
        queries[[number]], Positives(positives, torch.tensor([list(QRELS[name].values())])), Shard(rows[kept])
    )


def assert_is_that_without(found, rows, queries, names=tuple(QRELS)):
    for place, name in enumerate(names):
        expected = without(rows, queries, list(QRELS).index(name), name)
        width = len(QRELS[name])
        assert torch.equal(found.rank[place, :, :width], expected.rank[0])
        assert_close(found.best_wrong[place], expected.best_wrong[0], atol=1e-7, rtol=0)
        assert found.last_rank[place] == expected.last_rank[0]


@pytest.mark.parametrize("blocks", [Blocks(), Blocks(10, 5), Blocks(1, 1)])
def test_the_exact_rank_is_that_of_a_corpus_without_the_excluded_documents(blocks):
    rows, queries, judgements = world()
    positives = judgements.of(list(QRELS))
    found = exact_ranking(queries, positives, Shard(rows), blocks)
    assert_is_that_without(found, rows, queries)
    as_if_wrong = exact_ranking(queries, replace(positives, excluded=None), Shard(rows), blocks)
    assert (as_if_wrong.rank > found.rank).any(2).any(1).tolist() == [True, False, True]


def test_the_rank_among_all_that_was_retrieved_is_the_exact_rank():
    rows, queries, judgements = world()
    found = topk_ranking(queries, judgements.of(list(QRELS)), search(rows, queries, N), Shard(rows))
    assert_is_that_without(found, rows, queries)


def test_both_ways_to_rank_earn_the_same():
    rows, queries, judgements = world()
    environment = Environment(judgements, Reward(margin_dcg), agreement_every_n_steps=1)
    outcome = environment.score(
        list(QRELS), queries, ALL_TOKENS, Shard(rows), retrieved=search(rows, queries, N)
    )
    assert outcome.rank_agreement == 1.0


def ranked_by_part(rank: int):
    """One rank's queries exclude three documents each at most, the other's none."""
    rows, queries, judgements = world()
    own, part = [([0, 2], slice(0, 48)), ([1], slice(48, N))][rank]
    positives = judgements.of([list(QRELS)[number] for number in own])
    return exact_ranking(queries[own], positives, Shard(rows[part].numpy(), part.start, N))


def test_two_ranks_rank_as_one_where_only_one_of_them_excludes_documents():
    rows, queries, _ = world()
    first, second = on_two_ranks(ranked_by_part)
    assert_is_that_without(first, rows, queries, ("q0", "q2"))
    assert_is_that_without(second, rows, queries, ("q1",))


def test_judgements_that_exclude_a_positive_or_every_other_document_are_refused():
    row_of = {"a": 0, "b": 1, "c": 2}
    with pytest.raises(EnvironmentDataError, match="document 'a' is relevant to query 'q' and excluded"):
        Judgements({"q": {"a": 1}}, row_of, 3, {"q": ["a"]})
    with pytest.raises(EnvironmentDataError, match="3 documents, all relevant or excluded to query 'q'"):
        Judgements({"q": {"a": 1}}, row_of, 3, {"q": ["b", "c"]})


def test_a_refresh_rule_sees_no_score_of_an_excluded_document_on_any_shard():
    served, _, queries, _ = case(0)
    excluded = np.full((len(queries.vectors), 2), -1)
    excluded[:4] = [[3, 40]] * 4
    scores = queries.vectors @ served.T
    for number, rows in enumerate(np.concatenate([queries.positives, excluded], 1)):
        scores[number, rows[rows >= 0]] = -np.inf
    asked = replace(queries, excluded=excluded)
    for part in (slice(0, 25), slice(25, None)):
        np.testing.assert_array_equal(wrong_scores(served[part], part.start, asked), scores[:, part])


def test_what_an_excluded_document_drifts_by_asks_for_no_wider_band():
    served, fresh, queries, is_new = case(3, drift=1e-4)
    row = next(row for row in range(len(served)) if row not in queries.positives)
    served[row], fresh[row] = -queries.vectors[0], queries.vectors[0]  # from the last place to the first
    asked = replace(queries, excluded=np.full((len(queries.vectors), 1), row))
    drifted = needed_bands(audit_of(served, fresh, asked, is_new), STILL.forecast(asked), None, True)
    as_if_wrong = needed_bands(audit_of(served, fresh, queries, is_new), STILL.forecast(queries), None, True)
    served[row] = fresh[row]
    still = needed_bands(audit_of(served, fresh, asked, is_new), STILL.forecast(asked), None, True)
    np.testing.assert_array_equal(drifted, still)
    assert still[1][0]
    assert not as_if_wrong[1][0]
