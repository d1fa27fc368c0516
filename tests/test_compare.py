"""Two evaluations, or two TREC runs, compared query by query."""

import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TEXTS
from scipy import stats

from search_r3 import compare
from search_r3.cli.comparison_sides import evaluation_rows
from search_r3.cli.provenance import write_metrics
from search_r3.data.types import Benchmark, Corpus
from search_r3.errors import UsageError
from search_r3.evaluation.benchmark import evaluate_benchmark
from search_r3.evaluation.comparison import Side, compared
from search_r3.evaluation.rankers import Model, Settings
from search_r3.evaluation.significance import holm, stratified_interval
from search_r3.models.folder import load_embedder

METRIC = "ndcg@10"


def side(scores, benchmark="b", label="m", **facts) -> Side:
    return Side(benchmark, label, {METRIC: {f"q{n:04}": float(x) for n, x in enumerate(scores)}}, **facts)


def difference(a, b, **options) -> dict:
    return compared([(side(a), side(b))], **options)["rows"][0]["metrics"][METRIC]


# ---- statistics


def mean_difference(one, other, axis=-1):
    return np.mean(one, axis=axis) - np.mean(other, axis=axis)


@pytest.mark.parametrize("seed", range(4))
def test_p_and_interval_are_those_of_scipy(seed):
    random = np.random.default_rng(seed)
    a = random.random(12).round(2)
    b = (a + random.normal(0.08, 0.2, 12)).round(2)
    found = difference(a, b, n_resamples=20_000, seed=seed)

    # 2^12 = 4096 sign flips are few enough for scipy to try all of them
    exact = stats.permutation_test((b, a), mean_difference, permutation_type="samples", n_resamples=10_000)
    deviation = math.sqrt(exact.pvalue * (1 - exact.pvalue) / 20_000)
    assert found["p"] == pytest.approx(exact.pvalue, abs=4 * deviation + 1e-4)
    by_scipy = stats.bootstrap((b - a,), np.mean, n_resamples=20_000, method="percentile", rng=seed)
    width = by_scipy.confidence_interval.high - by_scipy.confidence_interval.low
    assert found["ci95"] == pytest.approx(list(by_scipy.confidence_interval), abs=0.03 * width)
    assert found["difference"] == pytest.approx(exact.statistic, rel=1e-12)


def test_overall_weighs_every_benchmark_the_same_and_p_is_that_of_all_sign_flips():
    one = ([0.0, 0.5, 0.5, 0.25, 1.0, 0.5], [0.5, 0.5, 0.75, 0.0, 1.0, 1.0])
    other = ([0.5, 0.25, 0.0], [1.0, 0.25, 0.25])
    pairs = [(side(a, name), side(b, name)) for name, (a, b) in (("x", one), ("y", other))]
    (found,) = compared(pairs, n_resamples=20_000)["overall"]
    values = found["metrics"][METRIC]

    # x: +0.5 0 +0.25 -0.25 0 +0.5, mean 1/6; y: +0.5 0 +0.25, mean 1/4
    assert values["difference"] == pytest.approx((1 / 6 + 1 / 4) / 2, rel=1e-12)
    assert (values["wins"], values["ties"], values["losses"]) == (5, 3, 1)
    assert (found["n_queries"], found["benchmarks"]) == (9, ["x", "y"])
    by_hand = [np.subtract(b, a) for a, b in (one, other)]
    observed = sum(each.mean() for each in by_hand) / 2
    extreme = 0
    for signs in itertools.product((-1, 1), repeat=9):
        mean = ((signs[:6] * by_hand[0]).mean() + (signs[6:] * by_hand[1]).mean()) / 2
        extreme += abs(mean) >= abs(observed) - 1e-12
    exact = extreme / 2**9
    assert values["p"] == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000) + 1e-4)


def test_the_interval_over_benchmarks_has_the_variance_of_their_mean():
    random = np.random.default_rng(0)
    groups = [random.normal(0, 0.2, 400), random.normal(0, 0.6, 100)]
    low, high = stratified_interval(groups)
    # the mean of two independent means has a quarter of the sum of their variances
    expected = math.sqrt(sum(group.var() / len(group) for group in groups)) / 2
    assert (high - low) / (2 * 1.96) == pytest.approx(expected, rel=0.06)


def test_false_alarms_are_as_many_as_the_level_says():
    random = np.random.default_rng(5)
    n_draws, n_alarms = 800, 0
    for draw in range(n_draws):
        a, b = random.binomial(4, 0.5, (2, 40)) / 4  # one quality, with many ties, as nDCG has
        first = {f"q{n}": value for n, value in enumerate(a)}
        second = {f"q{n}": value for n, value in enumerate(b)}
        found = compared(
            [(Side("b", "m", {METRIC: first}), Side("b", "m", {METRIC: second}))], n_resamples=399, seed=draw
        )
        n_alarms += found["rows"][0]["metrics"][METRIC]["p"] < 0.05
    # 800 draws of probability 0.05 lie outside in one seed of a thousand
    low, high = stats.binom.interval(0.999, n_draws, 0.05)
    assert low <= n_alarms <= high


def test_holm_is_as_worked_by_hand():
    # sorted: 0.01 * 4 = 0.04; 0.02 * 3 = 0.06; 0.03 * 2 = 0.06; 0.04 * 1 = 0.04, raised to 0.06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    # 0.005 * 3 = 0.015; 0.4 * 2 = 0.8; 0.9 * 1 = 0.9; and a product above 1 is 1
    assert holm([0.9, 0.005, 0.4]) == pytest.approx([0.9, 0.015, 0.8])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([0.3]) == [0.3]
    assert holm([]) == []


def test_p_values_are_corrected_over_the_rows_of_a_metric():
    pairs = [
        (side([0.0] * 8, name), side(b, name))
        for name, b in (("x", [1.0] * 8), ("y", [1.0] * 6 + [0.0] * 2), ("z", [0.0] * 8))
    ]
    values = [row["metrics"][METRIC] for row in compared(pairs)["rows"]]
    # x: all 8 signs equal, 2/256; y: all 6 that count equal, 2/64; z: nothing moves, 1. Holm: times 3, 2, 1.
    assert [each["p"] for each in values] == pytest.approx([2 / 256, 2 / 64, 1.0], abs=0.011)
    first, second, third = (each["p"] for each in values)
    assert [each["p_holm"] for each in values] == pytest.approx([3 * first, 2 * second, third])


def test_the_ten_that_gained_and_the_ten_that_lost_most_are_listed_in_order():
    a = [0.5] * 30
    b = [0.5 + n / 100 for n in range(12)] + [0.5 - n / 100 for n in range(18)]
    row = compared([(side(a), side(b))])["rows"][0]
    assert [each["query_id"] for each in row["gained"]] == [f"q{n:04}" for n in range(11, 1, -1)]
    assert [each["query_id"] for each in row["lost"]] == [f"q{n:04}" for n in range(29, 19, -1)]
    assert row["gained"][0]["a"] == 0.5
    assert row["gained"][0]["b"] == pytest.approx(0.61)
    few = compared([(side([0.5, 0.5, 0.5]), side([0.5, 0.6, 0.5 + 1e-12]))])["rows"][0]
    assert [each["query_id"] for each in few["gained"]] == ["q0001"]
    assert few["lost"] == []
    assert few["metrics"][METRIC]["ties"] == 2


def test_rows_of_other_queries_are_not_compared():
    with pytest.raises(
        ValueError, match=r"b: A \(m\) has 2 queries and B \(m\) 3, and query 'q0002' is in one"
    ):
        compared([(side([0, 1]), side([0, 1, 1]))])


# ---- evaluations

SETTINGS = Settings(top_k=100, analyzer="code", k1=1.2, b=0.75, seed=0)
ORIGIN = {"command": "made by a test", "commit": "0" * 40, "seed": 0, "python": "3", "packages": {}}
QUERIES = {f"q{i}": text.split("\n")[0] for i, text in enumerate(TEXTS[:5])}
CORPUS = Corpus([f"d{i}" for i in range(5)], [text.split("\n", 1)[1] for text in TEXTS[:5]])


def collection(name="tiny", relevant="d0") -> Benchmark:
    return Benchmark(name, CORPUS, QUERIES, {f"q{i}": {f"d{i}": 1, relevant: 1} for i in range(5)})


def evaluated(folder, model, collections, modes=("bm25", "direct", "reasoning"), settings=SETTINGS) -> Path:
    rows = [
        evaluate_benchmark(each, mode, folder, settings, model, None, folder / "cache", ORIGIN)
        for each in collections
        for mode in modes
    ]
    write_metrics(folder / "metrics.json", rows, ORIGIN)
    return folder


@pytest.fixture(scope="module")
def model(nano_folder) -> Model:
    return Model("nano", load_embedder(nano_folder))


@pytest.fixture(scope="module")
def written(model, tmp_path_factory) -> Path:
    """Two benchmarks in three modes; read only."""
    collections = [collection(), collection("other", "d1")]
    return evaluated(tmp_path_factory.mktemp("written") / "out", model, collections)


@pytest.fixture
def copied(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "copied")


def found_by(output, *arguments) -> dict:
    assert compare.main([*map(str, arguments), "--output", str(output)]) == 0
    return json.loads((output / "compare.json").read_text())


def test_modes_of_one_folder_are_compared_with_texts_and_reasoning(written, tmp_path, capsys):
    content = found_by(tmp_path / "c", written, written, "--mode-a", "bm25", "--mode-b", "reasoning")
    printed, page = capsys.readouterr().out, (tmp_path / "c" / "compare.md").read_text()
    rows = {(row["benchmark"], row["mode"]): row for row in evaluation_rows(written)}
    assert [row["benchmark"] for row in content["rows"]] == ["tiny", "other"]
    for row in content["rows"]:
        assert (row["a"]["mode"], row["b"]["mode"]) == ("bm25", "reasoning")
        for metric, values in row["metrics"].items():
            for mode, value in (("bm25", values["a"]), ("reasoning", values["b"])):
                assert value == pytest.approx(rows[row["benchmark"], mode]["metrics"][metric])
            assert values["difference"] == pytest.approx(values["b"] - values["a"])
            assert values["wins"] + values["ties"] + values["losses"] == row["n_queries"] == 5
    assert set(content["rows"][0]["metrics"]) == {"ndcg@10", "recall@100", "mrr@10", "map@100"}
    texts = [json.loads(line) for line in (written / "tiny" / "reasoning" / "reasoning.jsonl").open()]
    reasoning = {line["query_id"]: line["reasoning"] for line in texts}
    moved = content["rows"][0]["gained"] + content["rows"][0]["lost"]
    assert moved
    for query in moved:
        assert query["query"] == QUERIES[query["query_id"]]
        assert query["reasoning_b"] == reasoning[query["query_id"]]
        assert query["reasoning_a"] is None
        assert query["query"] in printed
    assert "all 2" in printed
    assert "| tiny | bm25, reasoning | 5 |" in page
    assert "B wrote: " in page


def test_rows_of_two_folders_are_matched_by_benchmark_and_mode_and_lone_ones_are_told(
    written, model, tmp_path, caplog
):
    other = evaluated(tmp_path / "two", model, [collection()], ("direct", "bm25"))
    content = found_by(tmp_path / "c", written, other)
    assert [(row["benchmark"], row["b"]["mode"]) for row in content["rows"]] == [
        ("tiny", "bm25"), ("tiny", "direct"),
    ]  # fmt: skip
    assert all(each["metrics"][METRIC]["p"] == 1.0 for each in content["rows"])  # equal weights, equal ranks
    assert "not compared, since A alone has them: tiny/reasoning, other/bm25" in caplog.text


def test_a_folder_of_one_row_and_a_label_choose_among_rows_of_one_mode(model, tmp_path):
    out = evaluated(tmp_path / "out", model, [collection()], ("direct",))
    wider = Settings(top_k=101, analyzer="code", k1=1.2, b=0.75, seed=0)
    rows = [
        evaluate_benchmark(collection(), "direct", out, settings, model, None, out / "cache", ORIGIN)
        for settings in (SETTINGS, wider)
    ]
    write_metrics(out / "metrics.json", rows, ORIGIN)
    label = Path(rows[1]["folder"]).name
    assert label.startswith("direct-")
    with pytest.raises(UsageError, match=rf"B has 2 rows of tiny in mode direct: tiny/direct, tiny/{label}"):
        found_by(tmp_path / "c", out / "tiny" / "direct", out)
    by_label = found_by(tmp_path / "c", out, out, "--mode-a", "direct", "--mode-b", label)
    by_folder = found_by(tmp_path / "d", out / "tiny" / "direct", out / "tiny" / label)
    for content in (by_label, by_folder):
        assert [row["b"]["label"] for row in content["rows"]] == [label]


@pytest.mark.parametrize("name", ["per_query.jsonl", "reasoning.jsonl"])
@pytest.mark.parametrize("damage", ["removed", "cut", "edited"])
def test_damaged_files_are_refused(copied, written, tmp_path, name, damage):
    file = copied / "tiny" / "reasoning" / name
    text = file.read_text()
    file.unlink()
    if damage != "removed":
        file.write_text(text[: len(text) // 2] if damage == "cut" else text.replace("q1", "q9"))
    with pytest.raises(UsageError) as error:
        found_by(tmp_path / "c", written, copied)
    assert str(error.value).startswith(f"{file}: ")
    assert "evaluate it again" in str(error.value)
    assert not (tmp_path / "c").exists()


def test_other_judgements_under_the_same_name_are_not_compared(written, model, tmp_path):
    other = evaluated(tmp_path / "two", model, [collection(relevant="d3")], ("bm25",))
    with pytest.raises(UsageError, match=r"tiny: .* have other documents, queries or judgements"):
        found_by(tmp_path / "c", written, other)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("{one}", "{one}"),
            "A and B are the same rows; compare two of their modes with --mode-a and --mode-b",
        ),
        (("{one}", "{one}", "--mode-b=direct"), "--mode-b needs --mode-a"),
        (("{one}", "{one}", "--mode-a=hybird"), "A has no row of mode hybird; it has tiny/bm25"),
        (("{one}", "nowhere"), "nowhere: no such file or folder; give .* output_dir=nowhere"),
        (("{one}", "{one}/tiny"), r"no metrics.json; give one of its modes \(bm25, .*\) or the folder above"),
        (("{one}", "{one}/.."), "no metrics.json; give the output_dir of one"),
        (("{one}/tiny/bm25/run.trec", "{one}"), "two TREC runs are compared with --qrels"),
        (("{one}", "{one}", "--qrels=x", "--mode-a=direct"), "runs with --qrels have none"),
    ],
)
def test_what_cannot_be_compared_is_refused(written, tmp_path, arguments, told):
    with pytest.raises(UsageError, match=told):
        found_by(tmp_path / "c", *(each.format(one=written) for each in arguments))


def test_the_same_rows_by_another_path_are_the_same_rows(written, tmp_path):
    (tmp_path / "link").symlink_to(written, target_is_directory=True)
    for other in (tmp_path / "link", written / ".." / written.name):
        with pytest.raises(UsageError, match="A and B are the same rows"):
            found_by(tmp_path / "c", written, other)


def test_queries_and_reasonings_are_text_on_the_page_and_in_the_terminal(tmp_path, capsys):
    from search_r3.evaluation.comparison_report import markdown, print_comparison

    bad = "[red]a|b\n# head <script>\x1b[31m"
    first, second = side([0.0, 1.0]), side([1.0, 0.0], queries={"q0000": bad}, reasonings={"q0001": bad})
    found = {"a": "x", "b": "y", "command": "c", "n_resamples": 5000, "seed": 0}
    found |= compared([(first, second)])
    print_comparison(found)
    printed = capsys.readouterr().out
    assert "[red]a|b # head <script>" in printed
    assert "\x1b[31m" not in printed
    assert r"\[red\]a\|b \# head \<script\>" in markdown(found)


# ---- TREC runs


def test_runs_of_other_tools_are_scored_as_trec_eval_does(tmp_path, caplog):
    import pytrec_eval

    (tmp_path / "a.trec").write_text("q1 Q0 d1 0 3 x\nq1 Q0 d2 0 2 x\nq2 Q0 d1 0 9 x\nq9 Q0 d1 1 1 x\n")
    (tmp_path / "b.trec").write_text("q1\tQ0\td2\t7\t3\tx\nq2 Q0 d3 1 1 x\nq2 Q0 d2 2 5 x\nq3 Q0 d2 1 1 x\n")
    (tmp_path / "qrels").write_text("q1 0 d2 2\nq1 0 d1 1\nq2 0 d2 1\nq3 0 d2 1\n")
    content = found_by(
        tmp_path / "c", tmp_path / "a.trec", tmp_path / "b.trec", "--qrels", tmp_path / "qrels"
    )
    (row,) = content["rows"]
    qrels = {"q1": {"d2": 2, "d1": 1}, "q2": {"d2": 1}, "q3": {"d2": 1}}
    runs = {
        "a": {"q1": {"d1": 3.0, "d2": 2.0}, "q2": {"d1": 9.0}},
        "b": {"q1": {"d2": 3.0}, "q2": {"d3": 1.0, "d2": 5.0}, "q3": {"d2": 1.0}},
    }
    for name, run in runs.items():
        scored = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
        expected = sum(each["ndcg_cut_10"] for each in scored.values()) / 3
        assert row["metrics"][METRIC][name] == pytest.approx(expected, rel=1e-6)
    assert row["n_queries"] == 3
    assert "a.trec: 1 of 3 judged queries are not in it and count 0" in caplog.text
    assert "a.trec: 1 queries are not judged and left out" in caplog.text


def test_an_id_of_another_tool_may_hold_blanks_that_trec_eval_does_not_part_at(tmp_path):
    (tmp_path / "a").write_text("q\u00a01 Q0 d\u20281 1 3 x\nq\u00a01 Q0 d\u3000 2 2 x\n", encoding="utf-8")
    (tmp_path / "b").write_text("q\u00a01 Q0 d\u3000 1 3 x\n", encoding="utf-8")
    (tmp_path / "qrels").write_text("q\u00a01 0 d\u20281 1\n", encoding="utf-8")
    content = found_by(tmp_path / "c", tmp_path / "a", tmp_path / "b", "--qrels", tmp_path / "qrels")
    assert content["rows"][0]["metrics"][METRIC]["a"] == 1.0
    assert content["rows"][0]["metrics"][METRIC]["b"] == 0.0


def test_judgements_of_runs_may_be_those_of_a_folder_in_beir_layout(tmp_path):
    (tmp_path / "a").write_text("q1 Q0 d1 1 3 x\nq1 Q0 d2 2 2 x\nq2 Q0 d1 1 9 x\n")
    (tmp_path / "b").write_text("q1 Q0 d2 1 3 x\nq2 Q0 d2 1 5 x\nq3 Q0 d2 1 1 x\n")
    (tmp_path / "trec").write_text("q1 0 d2 2\nq1 0 d1 1\nq2 0 d2 1\nq3 0 d3 -1\nq3 0 d2 1\n")
    rows = "q1\td2\t2\nq1\td1\t1\nq2\td2\t1.0\nq3\td3\t-1\nq3\td2\t1\n"
    (tmp_path / "test.tsv").write_text("\ufeffquery-id\tcorpus-id\tscore\n" + rows, encoding="utf-8")
    (tmp_path / "bare.tsv").write_text(rows.replace("\n", "\r\n"))
    found = [
        found_by(tmp_path / f"c-{name}", tmp_path / "a", tmp_path / "b", "--qrels", tmp_path / name)["rows"]
        for name in ("trec", "test.tsv", "bare.tsv")
    ]
    metrics = [row["metrics"] for (row,) in found]
    assert metrics[0] == metrics[1] == metrics[2]
    assert metrics[0][METRIC]["a"] < metrics[0][METRIC]["b"] < 1.0


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("q1\td 1\t1\n", r"line 1: id 'd 1' is no field of a run; give the qrels\.trec beside run\.trec"),
        ("q1\td1\t1\nq1\td1\t1\n", "line 2: document 'd1' is judged twice"),
        ("q1\td1\t1\nq1\td2\tyes\n", "line 2: the score must be an integer, got 'yes'"),
        ("q1 d1 1\n", "line 1: must have 4 fields, got 3; a BEIR file has tabs, TREC's format a 0 behind"),
    ],
)
def test_bad_judgements_of_runs_are_named_by_file_and_line(tmp_path, rows, told):
    (tmp_path / "a").write_text("q1 Q0 d1 1 3 x\n")
    (tmp_path / "test.tsv").write_text(rows)
    with pytest.raises(UsageError, match=rf"test\.tsv[:,] {told}"):
        found_by(tmp_path / "c", tmp_path / "a", tmp_path / "a", "--qrels", tmp_path / "test.tsv")


def test_a_run_of_another_collection_is_refused(tmp_path):
    (tmp_path / "a").write_text("q1 Q0 d1 1 3 x\n")
    (tmp_path / "qrels").write_text("other 0 d1 1\n")
    with pytest.raises(UsageError, match=r"a: not one of its 1 queries is judged in .*qrels"):
        found_by(tmp_path / "c", tmp_path / "a", tmp_path / "a", "--qrels", tmp_path / "qrels")
