"""What the refresh rules propose, row by row and in which order, and what mining takes, by definition."""

from functools import partial

import numpy as np
import pytest
from conftest import TEXTS, build_embedder
from drifting import DriftingCorpus
from live_indexes import created
from test_certified import audit_of, calibrated, case, drift_of, forecast_scores

from search_r3.data.negatives import MarginRule, RankRule
from search_r3.data.types import Corpus, Example, TrainingData
from search_r3.index.backends.flat import TIE
from search_r3.index.backends.ivf import IVFIndex
from search_r3.index.rules.candidates import Candidates
from search_r3.index.rules.forecast import CommonDrift
from search_r3.index.rules.neighbourhood import Graph
from search_r3.models.folder import load_embedder
from search_r3.stages.sft.data import SFTDataModule
from search_r3.stages.sft.mining import mine_by_bm25, mine_by_model


def proposed_by_definition(served, expected, queries, fresh, cut_off, reads_best_wrong, band):
    """Distance to the nearest decision by row, of those to be encoded; one pair after the other."""
    nearest, n_closed = {}, 0
    for query, positives in enumerate(queries.positives):
        vector = queries.vectors[query].astype(np.float64)
        limits = [float(fresh[row].astype(np.float64) @ vector) - TIE for row in positives if row >= 0]
        certain = np.minimum(served[query], expected[query] - band)  # above even if all drift is against it
        is_open = [cut_off is None or (certain >= limit).sum() < cut_off for limit in limits]
        n_closed += is_open.count(False)
        for limit, decides in zip(limits, is_open, strict=True):
            for row in range(len(served[query])) if decides else ():
                ahead = expected[query, row] - limit
                apart = ahead if served[query, row] >= limit else -ahead
                nearest[row] = min(nearest.get(row, np.inf), apart)
        if reads_best_wrong and any(is_open):
            for row in range(len(served[query])):
                behind = expected[query].max() - max(served[query, row], expected[query, row])
                nearest[row] = min(nearest.get(row, np.inf), behind)
    return {row: value for row, value in nearest.items() if value <= band}, n_closed


@pytest.mark.parametrize("common", [0.0, 0.3])
@pytest.mark.parametrize("reads_best_wrong", [True, False])
@pytest.mark.parametrize("cut_off", [None, 1, 3, 8])
def test_certified_encodes_the_rows_within_the_band_of_a_decision_that_is_open(
    cut_off, reads_best_wrong, common
):
    n_closed = n_proposed = n_left = 0
    for seed in range(20):
        served, fresh, queries, is_new = case(seed, common=common)
        drift = drift_of(served, fresh, is_new) if common else CommonDrift()
        view = audit_of(served, fresh, queries, is_new).view
        rule = calibrated([0.05] * 30, cut_off=cut_off, reads_best_wrong=reads_best_wrong)
        rule._drift = drift
        old, expected = forecast_scores(drift, served, queries, is_new)
        wanted, closed = proposed_by_definition(
            old, expected, queries, fresh, cut_off, reads_best_wrong, band=0.05 + TIE
        )

        found = rule.propose(view)

        assert dict(zip(found.rows.tolist(), found.priority, strict=True)) == pytest.approx(wanted, abs=1e-6)
        n_closed, n_proposed = n_closed + closed, n_proposed + len(wanted)
        n_left += len(served) - len(wanted)
    assert min(n_proposed, n_left) > 4
    assert (n_closed > 0) == (cut_off is not None)


def test_what_certified_expects_of_the_drift_changes_what_it_encodes():
    """A forecast that is left out would encode other rows: the same view with and without one."""
    served, fresh, queries, is_new = case(0, common=0.3)
    view = audit_of(served, fresh, queries, is_new).view
    rows = []
    for drift in (drift_of(served, fresh, is_new), CommonDrift()):
        rule = calibrated([0.05] * 30)
        rule._drift = drift
        rows.append(set(rule.propose(view).rows.tolist()))
    assert rows[0] ^ rows[1]


def linked_by_definition(vectors, n_neighbours):
    scores = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, 1, kind="stable")[:, :n_neighbours].tolist()


def encoded_within(budget, rule, tmp_path, corpus, queries):
    """What a step encodes besides the positives, which the budget counts and never cuts."""
    with created(tmp_path, corpus, rule, budget=budget + len(np.unique(queries.positives))) as index:
        corpus.encoded.clear()
        index.refresh(3, queries, corpus.encoder(3))
    return {row for _, row in corpus.encoded} - set(queries.positives.ravel().tolist())


def rings_by_definition(corpus, queries, k, n_neighbours=0, hops=0):
    """Rows by what is encoded first: the first of every list, the second, ...; then by edges from there."""
    scores = queries.vectors.astype(np.float64) @ corpus.vectors(0).T.astype(np.float64)
    lists = np.argsort(-scores, 1, kind="stable")[:, :k]
    positives = set(queries.positives.ravel().tolist())
    rings = [set(column.tolist()) for column in lists.T]
    linked = linked_by_definition(corpus.vectors(0), n_neighbours)
    reached = set().union(positives, *rings)
    for _ in range(hops):
        rings.append({end for row in reached for end in linked[row]})
        reached |= rings[-1]
    return [ring - positives - set().union(*rings[:n]) for n, ring in enumerate(rings)]


def assert_spent_in_order(encoded, rings, budget):
    for ring in rings:
        assert len(encoded & ring) == min(budget, len(ring))
        budget -= len(encoded & ring)
    assert budget == 0


@pytest.mark.parametrize("budget", [3, 8, 16, 40])
def test_the_graph_spends_its_budget_on_the_first_of_every_list_then_on_what_is_linked(tmp_path, budget):
    corpus, k = DriftingCorpus(n=150), 4
    queries = corpus.queries(3, n_queries=4, n_rollouts=2)
    rings = rings_by_definition(corpus, queries, k, n_neighbours=3, hops=2)
    encoded = encoded_within(budget, Graph(k=k, n_neighbours=3, hops=2), tmp_path, corpus, queries)
    assert min(map(len, rings)) > 0
    assert_spent_in_order(encoded, rings, budget)


@pytest.mark.parametrize("budget", [3, 8, 16])
def test_candidates_spends_its_budget_on_the_first_of_every_list(tmp_path, budget):
    corpus, k = DriftingCorpus(n=150), 6
    queries = corpus.queries(3, n_queries=4, n_rollouts=2)
    rings = rings_by_definition(corpus, queries, k)
    encoded = encoded_within(budget, Candidates(k=k), tmp_path, corpus, queries)
    assert_spent_in_order(encoded, rings, budget)


def rows_to_mine():
    texts = [text.split("\n", 1)[1] for text in TEXTS[:5]] + [f"def sort_{n}(x): pass" for n in range(7)]
    corpus = Corpus([f"d{n}" for n in range(len(texts))], texts)
    examples = [
        Example(f"e{n}", TEXTS[n].split("\n")[0], texts[n], f"d{n}", relevant_ids=frozenset({f"d{n}", "d11"}))
        for n in range(5)
    ]
    return TrainingData("t", corpus, examples, texts=TEXTS)


@pytest.mark.parametrize(
    "rule", [RankRule(first=2, last=5), MarginRule(margin=0.005), MarginRule(share=0.99)]
)
def test_the_stage_trains_on_what_its_miner_finds_by_the_direct_embeddings_of_a_folder(nano_folder, rule):
    data, miner = rows_to_mine(), partial(mine_by_model, path=str(nano_folder), rule=rule, n_negatives=2, k=9)
    embedder = build_embedder()
    module = SFTDataModule(data, embedder, 5, 2, 0.0, 0, 5, 5, miner=miner)
    module.setup("fit")

    model = load_embedder(nano_folder)
    documents = model.embed_documents(data.corpus.texts).double().numpy()
    for example, vector in zip(
        module.examples, model.embed_queries([e.query for e in data.examples]).double().numpy(), strict=True
    ):
        scores = documents @ vector
        order = np.argsort(-scores)[:9]
        own = int(example.positive_id[1:])
        wanted = []
        for rank, row in enumerate(order, start=1):
            if isinstance(rule, RankRule):
                is_allowed = rule.first <= rank <= rule.last
            else:
                limit = scores[own] * rule.share if scores[own] >= 0 else scores[own] / rule.share
                is_allowed = own in order and scores[row] <= limit - rule.margin
            if is_allowed and row not in (own, 11):
                wanted.append(f"d{row}")
        assert list(example.hard_negative_ids) == wanted[:2]
        assert [data.corpus.row_of[i] for i in wanted[:2]] == [
            data.corpus.texts.index(text) for text in example.hard_negatives
        ]
    assert sum(len(example.hard_negatives) for example in module.examples) > 0


def test_bm25_mines_what_it_ranks_behind_the_positive_and_setup_mines_once():
    data, calls = rows_to_mine(), []

    def miner(examples, corpus):
        calls.append(len(examples))
        return mine_by_bm25(examples, corpus, RankRule(first=1, last=12), 3, k=12, analyzer="code")

    module = SFTDataModule(data, build_embedder(), 5, 3, 0.0, 0, 5, 5, miner=miner)
    module.setup("fit")
    module.setup("validate")
    assert calls == [5]
    found = {example.id: example.hard_negative_ids for example in module.examples}
    assert any(found.values())
    for example in module.examples:
        assert example.positive_id not in example.hard_negative_ids
        assert "d11" not in example.hard_negative_ids


@pytest.mark.parametrize(("n", "wanted"), [(2, 1), (39, 1), (78, 2), (3900, 100), (27_225, 660)])
def test_ivf_has_four_lists_per_root_of_the_rows_and_at_most_one_per_39(n, wanted):
    rows = np.random.default_rng(0).standard_normal((n, 2)).astype(np.float32)
    index = IVFIndex(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    assert (index.n_lists, index.n_probe) == (wanted, min(wanted, 32))


def test_more_lists_than_documents_are_refused_before_one_is_encoded(tmp_path):
    corpus, backend = DriftingCorpus(n=200), partial(IVFIndex, n_lists=300)
    for source in ((corpus.n, corpus.width), corpus.vectors(0)):
        with pytest.raises(ValueError, match=r"index\.n_lists must be from 1 to the 200 doc.*, got 300"):
            created(tmp_path / "index", corpus, Candidates(), backend=backend, source=source)
    assert corpus.encoded == []
    assert not (tmp_path / "index").exists()


def test_an_answer_to_drift_that_there_is_not_is_refused_before_a_document_is_encoded(tmp_path):
    corpus, backend = DriftingCorpus(n=200), partial(IVFIndex, when_drifted="ignore")
    with pytest.raises(ValueError, match=r"index\.when_drifted must be .*, got 'ignore'"):
        created(tmp_path / "index", corpus, Candidates(), backend=backend, source=(corpus.n, corpus.width))
    assert corpus.encoded == []


def test_ivf_warns_once_until_it_is_trained_again(caplog):
    rows, random = DriftingCorpus(n=400).vectors(0), np.random.default_rng(0)
    index = IVFIndex(rows, n_lists=20, retrain_above=0.2, when_drifted="warn")

    def warnings_after_a_change():
        caplog.clear()
        rows[:] = random.permutation(rows)  # nearly all are in another list now
        index.update(np.arange(len(rows)))
        assert index.moved_share > 0.5
        return sum("recall may be low" in record.getMessage() for record in caplog.records)

    assert [warnings_after_a_change(), warnings_after_a_change()] == [1, 0]
    index.retrain()
    assert index.moved_share == 0
    assert [warnings_after_a_change(), warnings_after_a_change()] == [1, 0]
