"""Modes that fuse rankings or embeddings, and the one that reasons only where it is needed."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import TEXTS
from omegaconf import OmegaConf

from search_r3.cli.instantiate import instantiate
from search_r3.data.types import Benchmark, Corpus
from search_r3.errors import UsageError
from search_r3.evaluation.benchmark import evaluate_benchmark
from search_r3.evaluation.fusion import margins, mean_directions, reciprocal_ranks
from search_r3.evaluation.gate import Gate, fitted_gate, held_out_score, trade_off, write_gate
from search_r3.evaluation.modes import Auto, Blended, FusedReasoning, Hybrid
from search_r3.evaluation.rankers import Model, Settings
from search_r3.evaluation.report import print_table
from search_r3.evaluation.trec import read_run
from search_r3.gate import main as set_gate
from search_r3.models.folder import load_embedder

SETTINGS = Settings(top_k=100, analyzer="code", k1=1.2, b=0.75, seed=0)
QUERIES = {f"q{i}": text.split("\n")[0] for i, text in enumerate(TEXTS[:5])}
CORPUS = Corpus(
    [f"d{i}" for i in range(5)] + ["q0"],
    [*(text.split("\n", 1)[1] for text in TEXTS[:5]), "def nothing(): pass"],
)
TINY = Benchmark("tiny", CORPUS, QUERIES, {f"q{i}": {f"d{i}": 1} for i in range(5)}, remove_self_match=True)


@pytest.fixture(scope="module")
def model(nano_folder) -> Model:
    return Model("nano", load_embedder(nano_folder))


@pytest.fixture(scope="module")
def rows(model, tmp_path_factory):
    """Evaluates in a mode; every row is written once for all tests."""
    folder = tmp_path_factory.mktemp("modes")

    def evaluated(mode, benchmark=TINY):
        row = evaluate_benchmark(benchmark, mode, folder, SETTINGS, model, None, folder / "cache")
        return row, folder / row["folder"]

    return evaluated


def texts_of(folder):
    return [json.loads(line) for line in (folder / "reasoning.jsonl").open(encoding="utf-8")]


def assert_ranked_by(folder, cosines):
    """A run has mean cosines `[Q, N]`, each query's by a factor: means of unit vectors are shorter than 1."""
    run = read_run(folder / "run.trec")
    for query, values in zip(QUERIES, cosines, strict=True):
        by_id = {name: value for name, value in zip(CORPUS.ids, values, strict=True) if name != query}
        found = run[query]
        top = max(by_id, key=by_id.__getitem__)
        scale = found[top] / by_id[top]
        assert scale > 0
        assert found == pytest.approx({name: value * scale for name, value in by_id.items()}, abs=1e-5)


def test_reciprocal_ranks_are_as_worked_by_hand():
    cosines = {"a": 0.9, "b": 0.8, "c": 0.1}
    words = {"c": 12.0, "a": 3.0, "d": 3.0}  # equal scores by id, descending: c, d, a
    # a: 1/61 + 1/63; b: 1/62; c: 1/63 + 1/61; d: 1/62
    fused = reciprocal_ranks([cosines, words], 60)
    assert fused == pytest.approx({"a": 1 / 61 + 1 / 63, "b": 1 / 62, "c": 1 / 63 + 1 / 61, "d": 1 / 62})
    assert fused["a"] == fused["c"]  # to the last bit, whichever ranking comes first
    # without "a": b, c and c, d
    assert reciprocal_ranks([cosines, words], 1, own="a") == pytest.approx(
        {"b": 1 / 2, "c": 1 / 3 + 1 / 2, "d": 1 / 3, "a": 0.0}
    )
    assert reciprocal_ranks([{}, {}], 60) == {}


def test_the_mean_direction_ranks_by_the_mean_cosine():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(3, 4, 8))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    documents = random.normal(size=(20, 8))
    means = mean_directions(vectors)
    np.testing.assert_allclose(np.linalg.norm(means, axis=-1), 1, rtol=1e-6)
    by_mean_cosine = np.argsort(-(vectors @ documents.T).mean(1))
    np.testing.assert_array_equal(np.argsort(-(means @ documents.T)), by_mean_cosine)


@pytest.mark.parametrize(("mode", "part"), [("hybrid", "reasoning"), ("hybrid-direct", "direct")])
def test_a_hybrid_is_the_fusion_of_the_two_runs_on_disk(rows, mode, part):
    row, folder = rows(mode)
    inner, inner_folder = rows(part)
    ours, theirs = read_run(inner_folder / "run.trec"), read_run(rows("bm25")[1] / "run.trec")
    for query, found in read_run(folder / "run.trec").items():
        expected: dict[str, float] = {}
        for run in (ours, theirs):
            for rank, document in enumerate(run.get(query, {}), start=1):  # files stand in order of rank
                expected[document] = expected.get(document, 0) + 1 / (60 + rank)
        assert found == pytest.approx(expected, rel=1e-6)
        assert query not in found  # its own document, which takes no rank either
    assert row["self_match_removed"] == inner["self_match_removed"] == 1
    assert row["tokens_per_query"] == inner["tokens_per_query"]
    assert row["seconds_per_query"] > 0
    assert (folder / "reasoning.jsonl").exists() == (part == "reasoning")
    if part == "reasoning":
        assert texts_of(folder) == texts_of(inner_folder)


def test_another_constant_is_another_row(rows):
    _, first = rows("hybrid")
    _, other = rows(Hybrid(constant=1))
    assert other.name.startswith("hybrid-")
    assert other != first


def test_drawn_reasonings_are_fused_by_their_embeddings(rows, model):
    row, folder = rows(FusedReasoning(n=3, temperature=0.9, seed=5))
    texts = texts_of(folder)
    embedder = model.embedder
    documents = embedder.embed_documents(CORPUS.texts).numpy()
    # the same texts, read anew, one query at a time
    for line in texts:
        assert line["reasoning"] == line["samples"][0]
        assert len(line["samples"]) == 3
    assert len({text for line in texts for text in line["samples"]}) > 5  # they differ
    drawn = embedder.reason([QUERIES[f"q{i // 3}"] for i in range(15)], seed=5, temperature=0.9)
    assert [text for line in texts for text in line["samples"]] == drawn.texts
    cosines = (drawn.embeddings.numpy() @ documents.T).reshape(5, 3, -1).mean(1)  # [Q, N]
    assert_ranked_by(folder, cosines)
    assert row["tokens_per_query"] == sum(line["tokens"] for line in texts) / 5 + 3
    assert row["missing_embed_token"] == sum(not line["has_embed_token"] for line in texts)


def test_one_text_of_a_low_temperature_is_the_greedy_one(rows):
    """The limit of drawing: at a temperature near 0 the most probable token has all of the probability."""
    _, folder = rows(FusedReasoning(n=2, temperature=1e-4))
    greedy = {line["query_id"]: line["reasoning"] for line in texts_of(rows("reasoning")[1])}
    assert all(set(line["samples"]) == {greedy[line["query_id"]]} for line in texts_of(folder))
    found, expected = (read_run(each / "run.trec") for each in (folder, rows("reasoning")[1]))
    for query, scores in expected.items():
        assert found[query] == pytest.approx(scores, abs=1e-5)


def test_texts_are_written_once_for_all_modes_and_priced_in_each(nano_folder, tmp_path):
    model = Model("nano", load_embedder(nano_folder))
    queries = list(QUERIES.values())
    texts, seconds = model.greedy_texts.of(queries)

    for mode in ("reasoning", "shuffled-reasoning", "auto", "blended"):
        row = evaluate_benchmark(TINY, mode, tmp_path, SETTINGS, model, cache_dir=tmp_path / "cache")
        if mode != "auto":  # which writes about the queries that it is unsure of
            assert row["seconds_per_query"] * 5 > 0.99 * seconds > 0
            told = [line["reasoning"] for line in texts_of(tmp_path / row["folder"])]
            assert told == texts.texts

    assert model.greedy_texts.of(queries)[0] is texts
    assert model.greedy_texts.of(queries, 1)[0] is not texts
    assert max(model.greedy_texts.of(queries, 1)[0].n_tokens) == 1
    model.greedy_texts.of(queries[:2])
    assert model.greedy_texts.of(queries)[0] is not texts  # those of another collection are not kept
    assert model.greedy_texts.of(queries)[0].texts == texts.texts


def test_a_blend_ranks_by_the_mean_of_both_cosines(rows, model):
    row, folder = rows(Blended(direct_share=0.25))
    inner, inner_folder = rows("reasoning")
    assert texts_of(folder) == texts_of(inner_folder)
    embedder, queries = model.embedder, list(QUERIES.values())
    documents = embedder.embed_documents(CORPUS.texts).numpy()
    direct = embedder.embed_queries(queries).numpy() @ documents.T
    cosines = 0.25 * direct + 0.75 * embedder.reason(queries).embeddings.numpy() @ documents.T  # [Q, N]
    assert np.abs(cosines - direct).max() > 1e-3  # or the test could not tell them apart
    assert_ranked_by(folder, cosines)
    assert row["tokens_per_query"] == inner["tokens_per_query"] + 1  # the embed token of the query as it is
    direct_row, _ = rows("direct")
    read = [each["tokens_read_per_query"] for each in (row, inner, direct_row)]
    assert read[0] == pytest.approx(read[1] + read[2])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Blended(direct_share=0), "the mode reasoning"),
        (lambda: Blended(direct_share=1), "the mode direct"),
        (lambda: Hybrid(-1), "constant must be"),
        (lambda: FusedReasoning(n=0), "n must be at least 1"),
        (lambda: FusedReasoning(temperature=0), "temperature must be above 0"),
        (lambda: FusedReasoning(seed=-1), "seed must not be negative"),
    ],
)
def test_numbers_out_of_range_are_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_margins_are_between_the_first_and_the_second():
    run = {"a": {"x": 0.25, "y": 1.0, "z": 0.5}, "b": {"x": 0.5}, "c": {"x": 2.0, "y": 2.0}}
    assert margins(run) == {"a": 0.5, "b": float("inf"), "c": 0.0}


def test_a_hybrid_keeps_top_k_besides_a_query_of_its_own(rows):
    many = Corpus([f"d{i:03}" for i in range(130)] + ["q0"], [f"{TEXTS[i % 5]} {i}" for i in range(131)])
    benchmark = replace(TINY, name="many", corpus=many, qrels={f"q{i}": {"d000": 1} for i in range(5)})
    _, folder = rows("hybrid-direct", benchmark)
    assert {len(found) for found in read_run(folder / "run.trec").values()} == {100}


# ---- auto


def test_auto_is_reasoning_below_the_threshold_and_direct_above(rows):
    direct, reasoned = rows("direct"), rows("reasoning")
    runs = {name: read_run(folder / "run.trec") for name, (_, folder) in (("d", direct), ("r", reasoned))}
    gaps = {}
    for query, found in runs["d"].items():
        first, second = list(found.values())[:2]  # files stand in order of rank, without the query's own
        gaps[query] = first - second
    ordered = sorted(gaps.values())
    threshold = (ordered[1] + ordered[2]) / 2  # two of five are unsure
    row, folder = rows(Auto(threshold))
    run = read_run(folder / "run.trec")
    for query in QUERIES:
        expected = runs["r" if gaps[query] < threshold else "d"][query]
        assert run[query] == pytest.approx(expected, abs=1e-6)
    unsure = {query for query, gap in gaps.items() if gap < threshold}
    assert row["reasoned_share"] == 2 / 5 == len(unsure) / 5
    texts, written = texts_of(folder), {line["query_id"]: line for line in texts_of(reasoned[1])}
    assert [line["query_id"] for line in texts] == list(QUERIES)
    for line in texts:
        is_unsure = line["query_id"] in unsure
        assert line["reasoning"] == (written[line["query_id"]]["reasoning"] if is_unsure else None)
    spent = sum(written[query]["tokens"] for query in unsure)
    assert row["tokens_per_query"] == pytest.approx((5 + spent + 2) / 5)  # an embed token of every reading


def test_auto_at_its_ends_is_direct_and_reasoning(rows, capsys):
    never, always = rows(Auto(0))[0], rows(Auto(2))[0]
    assert (never["reasoned_share"], always["reasoned_share"]) == (0.0, 1.0)
    assert never["metrics"] == rows("direct")[0]["metrics"]
    assert always["metrics"] == rows("reasoning")[0]["metrics"]
    print_table([never, always, rows("direct")[0]])
    printed = capsys.readouterr().out
    assert "reasoned" in printed
    assert "100 %" in printed
    with pytest.raises(ValueError, match="threshold must be a difference of cosines"):
        Auto(-0.1)


def test_a_gate_is_as_worked_by_hand():
    # in order of margin, 0.1 0.2 0.4 0.8: reasoning changes nDCG by +0.5, -0.25, +0.5, -1.0
    gaps = [0.8, 0.1, 0.4, 0.2]
    direct, reasoning = [1.0, 0.0, 0.5, 0.5], [0.0, 0.5, 1.0, 0.25]
    # sums: 2.0 direct; 2.5; 2.25; 2.75, the best, three reasoned, between 0.4 and 0.8; 1.75
    gate = fitted_gate(gaps, direct, reasoning)
    assert (gate.threshold, gate.score, gate.reasoned_share) == pytest.approx((0.6, 2.75 / 4, 0.75))
    assert fitted_gate([0.1, 0.2], [1.0, 1.0], [1.0, 0.5]) == Gate(0.0, 1.0, 0.0)  # no gain: never
    assert fitted_gate([0.1, 0.2], [0.0, 0.0], [0.5, 0.5]) == Gate(2.0, 0.5, 1.0)  # always
    # equal margins cannot be told apart: both or none
    assert fitted_gate([0.1, 0.1], [0.0, 1.0], [1.0, 0.0]) == Gate(0.0, 0.5, 0.0)
    # one document and so no margin: it never reasons
    assert fitted_gate([float("inf")], [0.0], [1.0]) == Gate(0.0, 0.0, 0.0)


def test_what_other_thresholds_give_is_worked_by_hand():
    gaps = [0.8, 0.1, 0.4, 0.2]
    direct, reasoning = [1.0, 0.0, 0.5, 0.5], [0.0, 0.5, 1.0, 0.25]
    found = trade_off(gaps, direct, reasoning, (0.0, 0.25, 0.5, 0.75, 1.0))
    # sums as in the test of the gate: 2.0, 2.5, 2.25, 2.75, 1.75
    assert [gate.score for gate in found] == pytest.approx([0.5, 0.625, 0.5625, 0.6875, 0.4375])
    assert [gate.reasoned_share for gate in found] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [gate.threshold for gate in found] == pytest.approx([0.0, 0.15, 0.3, 0.6, 2.0])
    # equal margins stay together, and one document never reasons
    together = trade_off([0.1, 0.1, float("inf")], [0.0] * 3, [1.0] * 3, (0.0, 1 / 3, 2 / 3, 1.0))
    assert [gate.reasoned_share for gate in together] == pytest.approx([0.0, 0.0, 2 / 3])


def test_a_gate_s_score_elsewhere_is_not_flattered_by_its_choice():
    # two turns: on rows 1, 3 reasoning hurts, so rows 0, 2 stay direct (1 and 0); on rows 0, 2 it is worth as
    # much as it costs, so rows 1, 3 stay direct (1 and 1)
    gaps, direct, reasoning = [0.1, 0.2, 0.3, 0.4], [1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]
    assert held_out_score(gaps, direct, reasoning, n_parts=2) == pytest.approx(0.75)
    assert held_out_score(gaps, direct, reasoning, n_parts=5) is None
    # by luck alone reasoning is better for about half: the fitted score says so, the other does not
    noise = np.random.default_rng(0)
    gaps, lucky = noise.random(60).tolist(), noise.random(60).tolist()
    assert fitted_gate(gaps, [0.5] * 60, lucky).score > held_out_score(gaps, [0.5] * 60, lucky)


def test_the_command_sets_the_gate_and_says_what_it_costs(rows, tmp_path, capsys):
    (_, direct), (reasoned, _) = rows("direct"), rows("reasoning")
    target = tmp_path / "configs" / "mode" / "auto.yaml"
    assert set_gate([str(direct.parent), "--output", str(target)]) == 0
    printed = capsys.readouterr().out
    assert target.read_text() in printed
    assert f"--config-dir {tmp_path / 'configs'}" in printed
    lines = [line.split() for line in target.read_text().splitlines() if "threshold " in line]
    assert [line[1] for line in (lines[0], lines[-1])] == ["0", "100"]
    # all reason: the query is embedded as it is, and once more behind what was written
    assert float(lines[-1][4]) == pytest.approx(1 + reasoned["tokens_per_query"], abs=0.06)
    assert float(lines[-1][3]) == pytest.approx(reasoned["metrics"]["ndcg@10"], abs=1e-4)
    with pytest.raises(UsageError, match=r"must end in mode/auto\.yaml"):
        set_gate([str(direct.parent), "--output", str(tmp_path / "auto.yaml")])


def test_a_refused_gate_leaves_no_folder_and_removes_none_that_was_there(tmp_path):
    (tmp_path / "mine").mkdir()
    for place in ("mine/configs/mode", "mode"):
        with pytest.raises(UsageError, match="nothing/direct"):
            set_gate([str(tmp_path / "nothing"), "--output", str(tmp_path / place / "auto.yaml")])

    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_a_gate_is_written_and_its_mode_scores_what_the_file_says(rows, tmp_path):
    (_, direct), _ = rows("direct"), rows("reasoning")
    gate = write_gate(direct.parent, tmp_path / "mode" / "auto.yaml")
    text = (tmp_path / "mode" / "auto.yaml").read_text()
    node = OmegaConf.create(text)
    mode = instantiate(node)
    assert isinstance(mode, Auto)
    assert mode.threshold == gate.threshold
    row, _ = rows(mode)
    assert row["metrics"]["ndcg@10"] == pytest.approx(gate.score)
    assert row["reasoned_share"] == pytest.approx(gate.reasoned_share)
    assert "'tiny', 5 queries" in text
    (tmp_path / "copy").mkdir()
    for name in ("direct", "reasoning"):
        shutil.copytree(direct.parent / name, tmp_path / "copy" / name)
    (tmp_path / "copy" / "direct" / "run.trec").write_text("")
    with pytest.raises(UsageError, match=r"run\.trec: is damaged or edited"):
        write_gate(tmp_path / "copy", tmp_path / "auto.yaml")
    assert not (tmp_path / "auto.yaml").exists()
