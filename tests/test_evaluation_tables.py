"""The tables, charts and reports of evaluations, and where their rows lie."""

import json
import re
import warnings

import pytest
from small_evaluations import configs, evaluate, write_collection  # noqa: F401

from search_r3 import report
from search_r3.cli.evaluation_report import scores_by_query
from search_r3.evaluation.report import print_differences, print_table, short_names, write_chart


def test_a_report_finds_the_scores_of_every_row_and_where_its_own_rows_lie(tmp_path, monkeypatch, capsys):
    write_collection(tmp_path / "beir" / "a")
    evaluate(tmp_path, "benchmarks=[a]")
    rows = evaluate(tmp_path, "benchmarks=[a]", "limit=2")
    file = tmp_path / "out" / "metrics.json"
    assert [len(scores_by_query(file, row)) for row in rows] == [5, 2]
    joined = tmp_path / "joined" / "metrics.json"
    monkeypatch.setattr("sys.argv", ["report", str(file), "--output", str(joined)])
    assert report.main() == 0
    written = json.loads(joined.read_text())["rows"]
    assert all((joined.parent / row["folder"] / "run.trec").is_file() for row in written)
    assert rows[1]["folder"].partition("/")[2] in capsys.readouterr().out


NO_TABLE = "no metrics.json, which has rows, command, commit and seed; give one, or the folder of an"
NO_EVALUATION = {
    "{}": NO_TABLE,
    "[]": NO_TABLE,
    '{"rows": [], "command": "", "commit": "", "seed": 1}': "no row of an evaluation; `python -m src",
}


@pytest.mark.parametrize("content", NO_EVALUATION)
def test_a_report_of_what_is_no_evaluation_is_one_line(tmp_path, content):
    file = tmp_path / "metrics.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=re.escape(f"metrics.json: {NO_EVALUATION[content]}")) as refused:
        report.joined({str(file): json.loads(content)})
    assert "\n" not in str(refused.value)


def test_a_table_and_a_chart_show_names_as_they_are_and_any_number_of_them(tmp_path, capsys):
    row = {
        "mode": "bm25", "model": "bm25", "n_queries": 1, "n_docs": 1, "missing_embed_token": 0,
        "seconds_per_query": 0.1, "tokens_per_query": 0, "weights_sha256": None,
        "metrics": {"ndcg@10": 0.5, "recall@100": 1.0}, "ci95": {"ndcg@10": [0.4, 0.6]},
    }  # fmt: skip
    print_table([row | {"benchmark": "we[b] 1"}])
    assert "we[b] 1" in capsys.readouterr().out
    assert write_chart([row | {"benchmark": "$x$ {"}], tmp_path / "one.png").is_file()
    two = [row | {"benchmark": "b", "model": f"runs/{n}/model", "weights_sha256": n} for n in ("_$a", "_$^")]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "No artists with labels")  # of a legend without a line
        assert write_chart(two, tmp_path / "two.png").is_file()
    many = [row | {"benchmark": f"b{number}"} for number in range(70)]
    image = write_chart(many, tmp_path / "many.png").read_bytes()
    assert int.from_bytes(image[16:20]) == 100 * 100  # no wider however many; matplotlib refuses 2^16 pixels
    one, three = (write_chart(many[:n], tmp_path / f"{n}.png").read_bytes()[16:20] for n in (1, 3))
    assert [int.from_bytes(width) for width in (one, three)] == [
        800,
        860,
    ]  # 3.2 + 1.8 inches each, at least 8; 100 dots
    with pytest.raises(ValueError, match="no row to draw"):
        write_chart([], tmp_path / "none.png")


def test_the_rows_of_two_models_are_told_apart_by_the_part_of_their_paths_that_differs(capsys):
    row = {
        "benchmark": "a", "mode": "direct", "n_queries": 1, "n_docs": 1, "missing_embed_token": 0,
        "seconds_per_query": 0.1, "tokens_per_query": 0, "weights_sha256": "0",
        "metrics": {"ndcg@10": 0.5, "recall@100": 1.0}, "ci95": {"ndcg@10": [0.4, 0.6]},
    }  # fmt: skip
    made = ["outputs/quickstart/sft/model", "outputs/quickstart/rl/model", "experiments/nano_base/model"]
    rows = [row | {"model": model} for model in made]
    bm25 = row | {"mode": "bm25", "model": "bm25 (english)", "weights_sha256": None}
    print_table([bm25, *rows])
    lines = [line.split("│")[2:4] for line in capsys.readouterr().out.splitlines() if "│ a " in line]
    found = [[cell.strip() for cell in line] for line in lines]
    assert found == [["", "bm25"], ["sft", "direct"], ["rl", "direct"], ["nano_base", "direct"]]
    assert short_names([rows[0]]) == {made[0]: "sft"}
    twice = short_names([row | {"model": f"{seed}/sft/model"} for seed in "12"])
    assert twice == {"1/sft/model": "1/sft", "2/sft/model": "2/sft"}


def test_rows_of_two_evaluations_that_are_called_alike_have_the_name_of_theirs(tmp_path, capsys):
    row = {
        "benchmark": "a/b", "mode": "auto", "model": "rl/model", "n_queries": 1, "n_docs": 1,
        "seconds_per_query": 0.1, "tokens_per_query": 0, "weights_sha256": "0", "missing_embed_token": 0,
        "metrics": {"ndcg@10": 0.5, "recall@100": 1.0}, "ci95": {"ndcg@10": [0.4, 0.6]},
    }  # fmt: skip
    other = row | {"mode": "direct", "folder": "eval/low/a/b/direct"}
    rows = [row | {"folder": f"eval/{name}/a/b/auto"} for name in ("low", "high")]

    print_table([*rows, other])
    differences = [rows[1] | {"less": one, "difference": 0.1, "ci95": [0.0, 0.2], "p": 0.01} for one in rows]
    print_differences(differences, {})

    modes = [line.split("│")[3].strip() for line in capsys.readouterr().out.splitlines() if "│ a/b" in line]
    assert modes == ["auto (low)", "auto (high)", "direct", "auto (low)", "auto (high)"]

    many = [row | {"folder": f"eval/{number}/a/b/auto"} for number in range(13)]
    image = write_chart(many, tmp_path / "many.png").read_bytes()
    assert int.from_bytes(image[16:20]) == 970  # a place for each bar: 3.2 + 0.5 * 13 inches of 100 dots


def test_the_table_of_differences_has_a_heading_for_every_column(capsys):
    one = {"benchmark": "a", "mode": "direct", "model": "m"}
    print_differences([one | {"less": one, "difference": 0.1, "ci95": [0.0, 0.2], "p": 0.01}], {})
    shown = capsys.readouterr().out
    headings = next(line for line in shown.splitlines() if "benchmark" in line)
    cells = [cell.strip() for cell in headings.strip("┃").split("┃")]
    assert cells == ["benchmark", "this", "less", "difference", "95 % interval", "p"]
    assert "+0.000 to +0.200" in shown
