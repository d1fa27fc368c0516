"""The popularity baseline, and scores of seen and unseen facts apart."""

import json
import math

import pytest
from test_data_entailmentbank import PARTS, write_bank

from search_r3.benchmarks.popularity import apart, fused, main, scored, times_judged, write_reasonings
from search_r3.data.entailmentbank import load_entailmentbank
from search_r3.data.reasonings import load_reasonings
from search_r3.data.types import Benchmark, Corpus
from search_r3.errors import UsageError
from search_r3.evaluation.trec import write_run
from search_r3.index.backends.bm25 import LexicalIndex


@pytest.fixture
def asked():
    corpus = Corpus(["a", "b", "c", "d"], ["zebra runs", "lion eats", "grass grows", "zebra eats grass"])
    return Benchmark("small", corpus, {"q": "zebra"}, {"q": {"a": 1, "c": 1}})


def test_times_judged_counts_questions_of_training_alone(tmp_path):
    data = load_entailmentbank(write_bank(tmp_path / "bank"), "all", parts=PARTS)
    counts = times_judged(data.examples)

    assert set(counts.values()) == {1}
    assert len(counts) == 2 * (12 - PARTS.set_aside - PARTS.tuning)
    assert not counts.keys() & {d for grades in data.test.qrels.values() for d in grades}


def test_a_fused_score_is_bm25_and_the_weighted_logarithm(asked):
    index = LexicalIndex(asked.corpus.texts, "english")
    counts = {"c": 3, "d": 1}
    lexical = fused(asked, index, counts, 0.0)["q"]
    both = fused(asked, index, counts, 2.0)["q"]
    alone = fused(asked, None, counts, 2.0)["q"]

    assert set(lexical) == {"a", "d"}
    assert list(alone) == ["c", "d"]
    assert both["c"] == alone["c"] == pytest.approx(2 * math.log(4))
    assert both["d"] == pytest.approx(lexical["d"] + 2 * math.log(2))
    assert both["a"] == lexical["a"]
    assert list(fused(asked, index, counts, 2.0, top=1)["q"]) == ["c"]


def test_facts_of_the_other_kind_are_out_of_judgements_and_ranking(asked):
    run = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}

    assert apart(run, asked, {"c", "d"}) == ({"q": {"b": 2.0, "c": 1.0}}, {"q": {"c": 1}})
    assert apart(run, asked, {"b"}) == ({}, {})
    rows = scored(run, asked, {"c"})
    # c is second once a is out of the way: 1 / log2(3); a is first
    assert rows["seen"]["ndcg@10"] == pytest.approx(1 / math.log2(3))
    assert rows["unseen"]["ndcg@10"] == 1.0
    assert rows["all"]["ndcg@10"] == pytest.approx((1 + 0.5) / (1 + 1 / math.log2(3)))
    assert scored(run, asked, {"d"}).keys() == {"all", "unseen"}


def test_the_command_writes_rows_of_baselines_and_of_runs(tmp_path, monkeypatch, capsys):
    folder = write_bank(tmp_path / "bank", n_train=720)
    (tmp_path / "eval" / "direct").mkdir(parents=True)
    write_run(
        tmp_path / "eval" / "direct" / "run.trec", {"q720": {"f1440": 1.0}, "q721": {"f0": 1.0}}, "direct"
    )
    arguments = ["--runs", str(tmp_path / "eval"), "--output", str(tmp_path / "out.json")]
    monkeypatch.setattr("sys.argv", ["popularity", str(folder), *arguments])

    assert main() == 0

    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert len(rows) == 3 * 3 + 1
    # of the three dev questions one finds one of its two facts at the top
    assert rows[-1]["benchmark"] == "entailmentbank-dev"
    assert rows[-1]["all"]["ndcg@10"] == pytest.approx(1 / (1 + 1 / math.log2(3)) / 3)
    assert rows[-1].keys() & {"seen", "unseen"} == {"unseen"}
    assert "weight of popularity" in capsys.readouterr().out
    write_run(tmp_path / "eval" / "direct" / "run.trec", {"nobody": {"f24": 1.0}}, "direct")
    with pytest.raises(UsageError, match="in none of dev, set_aside, tuning"):
        main()


def test_test_questions_are_ranked_where_the_folder_judges_them(tmp_path, capsys):
    folder = write_bank(tmp_path / "bank", n_train=720)  # the parts of the real collection need 708
    (folder / "qrels" / "dev.tsv").rename(folder / "qrels" / "test.tsv")
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tf3\t1\n")

    assert main([str(folder)]) == 0

    assert capsys.readouterr().out.count("entailmentbank-test ") == 3  # by words, by favourite facts, by both


def test_human_texts_are_files_that_an_evaluation_takes(tmp_path):
    folder = write_bank(tmp_path / "bank")
    human, answer, filler = write_reasonings(folder, tmp_path / "texts")

    assert load_reasonings(answer)["q3"] == "since q3."
    assert load_reasonings(human)["q3"] == "since q3. step 0 of 3. step 1 of 3. step 2 of 3."
    assert load_reasonings(filler)["q3"] == " ".join(14 * ".")
    assert len(load_reasonings(human)) == 15
