"""Several calls of the command in one folder: what is added, kept, refused and left alone."""

import json
from pathlib import Path

import pytest
from small_evaluations import OPENED, call, configs, evaluate, write_collection  # noqa: F401

from search_r3.cli.compose import compose, resolved_yaml
from search_r3.cli.resume import changes_since
from search_r3.errors import UsageError
from search_r3.evaluation.places import PlaceError


def test_a_second_call_adds_its_rows_and_takes_none_away(tmp_path):
    for name in ("a", "b"):
        write_collection(tmp_path / "beir" / name)
    first = evaluate(tmp_path, "benchmarks=[a]")
    both = evaluate(tmp_path, "benchmarks=[b]")
    assert both[0] == first[0]
    assert [row["benchmark"] for row in both] == ["a", "b"]
    more = evaluate(tmp_path, "benchmarks=[a]", "limit=2")
    assert more[:2] == both
    assert (more[2]["n_queries"], more[2]["folder"][:7]) == (2, "a/bm25-")
    again = evaluate(tmp_path, "benchmarks=[a]")
    assert sorted(again, key=lambda row: row["folder"]) == sorted(more, key=lambda row: row["folder"])
    other = evaluate(tmp_path, "benchmarks=[a]", "bm25.k1=0.9", "seed=2")
    assert len(other) == 4
    assert other[3]["seed"] == 2


def test_another_data_set_is_told_in_a_line_and_its_keys_are_counted(tmp_path):
    def config(*overrides: str):
        return compose("evaluate", ["benchmarks=[a]", f"output_dir={tmp_path}", *overrides], OPENED[0]).config

    first = config("data=hops", "limit=3")
    (tmp_path / "config.yaml").write_text(resolved_yaml(first))
    n_keys = sum(key != "_target_" for key in first.data)
    told = changes_since(tmp_path, config("data=beir", "data.path=x", "bm25.k1=0.9"))
    assert told[0] == "bm25.k1: 1.2 -> 0.9"
    before, after = first.data._target_, "search_r3.data.beir.training.load_beir_training"
    assert told[1].startswith(f"data._target_: {before} -> {after}, and ")
    assert int(told[1].split(", and ")[1].split(" other keys below data")[0]) > n_keys
    assert told[2:] == ["held_out: hops -> beir", "limit: 3 -> None"]


def test_collections_of_one_name_in_two_places_do_not_share_a_folder(tmp_path):
    write_collection(tmp_path / "beir" / "a")
    write_collection(tmp_path / "elsewhere" / "a", queries=3)
    first = evaluate(tmp_path, "benchmarks=[a]")
    both = evaluate(tmp_path, "benchmarks=[a]", f"beir_dir={tmp_path / 'elsewhere'}")
    assert both[0] == first[0]
    assert [row["n_queries"] for row in both] == [5, 3]


def test_rows_of_a_call_that_was_killed_before_it_wrote_the_table_are_in_the_next_table(tmp_path):
    for name in ("a", "b", "x/y"):
        write_collection(tmp_path / "beir" / name)
    (row, nested) = evaluate(tmp_path, "benchmarks=[a,x/y]")
    (tmp_path / "out" / "metrics.json").unlink()
    half = tmp_path / "out" / "a" / "direct.partial"  # killed while it wrote: no evaluation
    half.mkdir()
    (half / "row.json").write_text(json.dumps({"key": {}, "row": row | {"mode": "direct"}}))
    strange = tmp_path / "out" / "other_run" / "a" / "bm25"  # an evaluation of another output folder
    strange.mkdir(parents=True)
    (strange / "row.json").write_bytes((tmp_path / "out" / "a" / "bm25" / "row.json").read_bytes())
    assert evaluate(tmp_path, "benchmarks=[b]")[:2] == [row, nested]


def test_rows_from_before_rows_named_their_folder_stay_with_the_origin_of_their_file(tmp_path):
    write_collection(tmp_path / "beir" / "a")
    (row,) = evaluate(tmp_path, "benchmarks=[a]")
    file = tmp_path / "out" / "metrics.json"
    content = json.loads(file.read_text())
    old = {key: value for key, value in row.items() if key not in ("folder", "command", "commit", "seed")}
    content |= {"command": "as it was", "commit": "123", "rows": [old | {"benchmark": "old"}]}
    file.write_text(json.dumps(content))
    (tmp_path / "out" / "old" / "bm25").mkdir(parents=True)
    (tmp_path / "out" / "old" / "bm25" / "run.trec").touch()
    rows = evaluate(tmp_path, "benchmarks=[a]")
    assert [(r["benchmark"], r["folder"], r["command"], r["commit"]) for r in rows] == [
        ("old", "old/bm25", "as it was", "123"),
        ("a", "a/bm25", row["command"], row["commit"]),
    ]


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": [{"benchmark": "validation"}]}', '{"rows": 1}'])
def test_a_file_that_no_evaluation_wrote_is_not_replaced(tmp_path, content):
    write_collection(tmp_path / "beir" / "a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.json").write_text(content)
    with pytest.raises(PlaceError, match=r"metrics\.json is there and is none that src.evaluate wrote"):
        evaluate(tmp_path, "benchmarks=[a]")
    assert (tmp_path / "out" / "metrics.json").read_text() == content


def test_the_folder_of_a_training_run_is_refused(tmp_path):
    write_collection(tmp_path / "beir" / "a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("seed: 1\nstage:\n  name: sft\n")
    with pytest.raises(UsageError, match="is the folder of a training run"):
        evaluate(tmp_path, "benchmarks=[a]")


def test_what_lies_in_the_place_of_an_evaluation_is_left_alone(tmp_path):
    write_collection(tmp_path / "beir" / "a")
    notes = tmp_path / "out" / "a" / "bm25" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    (row,) = evaluate(tmp_path, "benchmarks=[a]")
    assert row["folder"].startswith("a/bm25-")
    assert notes.read_text() == "mine"


def test_one_table_for_several_output_folders_says_where_each_row_lies(tmp_path, caplog):
    for name in ("a", "b"):
        write_collection(tmp_path / "beir" / name)
    table = tmp_path / "tables" / "all.json"
    with caplog.at_level("INFO"):
        for name in ("a", "b"):
            out = f"output_dir={tmp_path / 'outs' / name}"
            beir = f"beir_dir={tmp_path / 'beir'}"
            call(beir, out, f"metrics_file={table}", f"benchmarks=[{name}]")
    rows = json.loads(table.read_text())["rows"]
    assert [row["folder"] for row in rows] == ["../outs/a/a/bm25", "../outs/b/b/bm25"]
    assert all((table.parent / row["folder"] / "run.trec").is_file() for row in rows)
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("wrote ")]
    assert said == [f"wrote {table}", f"wrote {table.with_suffix('.png')}"] * 2
    assert all(Path(line.removeprefix("wrote ")).is_file() for line in said)
