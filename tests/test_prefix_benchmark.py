"""The comparison of shared prompts with whole texts runs the same work both ways, and counts what is run."""

import json

import pytest

from search_r3.benchmarks.padding import main as padding
from search_r3.benchmarks.prefix import NANO, main
from search_r3.errors import UsageError


def test_a_comparison_says_what_was_run_and_is_written(tmp_path, capsys, monkeypatch):
    file = tmp_path / "made" / "prefix.json"
    monkeypatch.setattr("search_r3.benchmarks.prefix.SMOLLM2", tmp_path / "none")  # minutes of work
    main(["--texts", "20", "--rounds", "1", "--output", str(file)])

    rows = {(row["model"], row["what"]): row for row in json.loads(file.read_text())["rows"]}
    short, long = rows["nano_base", "encoding"], rows["nano_base, long prompts", "encoding"]
    assert short["tokens_run"]["shared"] == short["tokens_run"]["whole"]  # 3 ids are not worth it
    n_saved = long["tokens_run"]["whole"] - long["tokens_run"]["shared"]
    assert n_saved == (20 - 1) * long["prompt_tokens"]  # 20 short texts are one batch
    sft = rows["nano_base, long prompts", "sft"]
    assert sft["texts"] == 40
    assert sft["tokens_run"]["shared"] < sft["tokens_run"]["whole"]
    assert all(row["shared_over_whole"]["median"] > 0 for row in rows.values())
    assert "ratio" in capsys.readouterr().out


def test_a_base_that_is_not_there_is_refused_where_it_was_named(tmp_path):
    with pytest.raises(UsageError, match=r"none: no such folder.*make base"):
        main(["--base", str(tmp_path / "none")])


@pytest.mark.parametrize("option", ["--texts", "--rounds"])
def test_nothing_to_time_is_refused(option):
    with pytest.raises(UsageError, match=f"{option} must be at least 1"):
        main([option, "0"])


def write_rows(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_two_ways_to_deal_rows_give_the_same_embeddings_and_less_padding(tmp_path, capsys):
    lines = [f"word {n} " * (40 if n == 5 else 2) for n in range(20)]
    write_rows(tmp_path / "corpus.jsonl", [{"_id": f"d{n}", "text": text} for n, text in enumerate(lines)])
    write_rows(tmp_path / "queries.jsonl", [{"_id": f"q{n}", "text": f"which {n}?"} for n in range(4)])
    file = tmp_path / "padding.json"

    padding([str(tmp_path), "--model", str(NANO), "--queries", "4", "--rounds", "1", "--output", str(file)])

    (row,) = json.loads(file.read_text())["rows"]
    assert row["rows"] == 24
    assert row["tokens"] < row["tokens_run"]["padding"] < row["tokens_run"]["budget"]
    assert row["largest_difference"] < 1e-5
    assert "of the limit" in capsys.readouterr().out
