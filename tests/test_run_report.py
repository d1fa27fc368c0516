"""A run folder is reported: its state, its validation, its curves; a run draws them at its end."""

import json
import sqlite3
from pathlib import Path

import pytest
from PIL import Image

from search_r3.cli import curves
from search_r3.cli.curves import FILE, drawn_curves, read_panels
from search_r3.errors import UsageError
from search_r3.report import main

CSV = (
    "epoch,step,train/loss,train/kl,train/reward,train/reward_spread,train/index/age_mean,val/direct/ndcg@10\n"
    "0,1,3.5,0.5,0.25,,1.5,\n"
    "0,2,3.0,nan,0.5,0.125,2.5,0.75\n"
    "0,3,2.5,0.25,cut"
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "csv").mkdir(parents=True)
    (folder / "csv" / "metrics.csv").write_text(CSV)
    (folder / "config.yaml").write_text("output_dir: run\nstage:\n  name: sft\n")
    times = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:30:00+00:00"}
    (folder / "status.json").write_text(json.dumps({"state": "interrupted", "error": None} | times))
    return folder


def test_the_curves_of_a_run_are_its_logged_columns_by_unit(run: Path) -> None:
    assert read_panels(run / "csv" / "metrics.csv") == {
        "loss terms": {"loss": ([1, 2, 3], [3.5, 3.0, 2.5]), "kl": ([1, 3], [0.5, 0.25])},
        "reward": {"reward": ([1, 2], [0.25, 0.5])},
        "spread in a group": {"reward_spread": ([2], [0.125])},
        "nDCG@10, validation": {"direct": ([2], [0.75])},
        "age of rows, steps": {"age_mean": ([1, 2], [1.5, 2.5])},
    }


def test_a_run_that_is_not_finished_is_shown_with_the_command_that_goes_on(run: Path, capsys) -> None:
    assert main([str(run)]) == 0

    said = capsys.readouterr().out
    assert f"{run}: interrupted after 30 min" in said
    assert f"resume={run}" in said
    assert "direct  2     0.750" in said
    assert "loss terms at step 3: loss 2.5, kl 0.25" in said
    assert f"curves: {run / FILE}" in said
    assert Image.open(run / FILE).width == 800


def test_the_validation_rows_of_a_finished_run_are_shown(run: Path, capsys) -> None:
    row = {"benchmark": "b-validation", "mode": "direct", "model": "m", "n_queries": 7, "n_docs": 90}
    content = {"command": "python -m src.train x", "commit": "c", "seed": 1}
    content["rows"] = [row | {"metrics": {"ndcg@10": 0.5, "mrr@10": 0.25}}]
    (run / "metrics.json").write_text(json.dumps(content))

    main([str(run)])

    said = capsys.readouterr().out
    assert "python -m src.train x  (commit c, seed 1)" in said
    assert "b-validation   direct  7        90         0.500    0.250" in said


def test_the_folder_above_runs_is_answered_with_what_lies_in_it(run: Path, tmp_path: Path) -> None:
    for name in ("eval", "next", "other", "nothing"):
        (tmp_path / name).mkdir()
    (tmp_path / "eval" / "metrics.json").write_text("{}")
    with pytest.raises(UsageError, match=rf"no sweep either; in it lie {tmp_path}/eval, {tmp_path}/run$"):
        main([str(tmp_path)])
    for name in ("next", "other"):
        (tmp_path / name / "search.json").write_text("{}")
    with pytest.raises(UsageError, match=r"/eval, .*/next, .*/other and others$"):
        main([str(tmp_path)])
    with pytest.raises(UsageError, match=r"and no sweep either$"):
        main([str(tmp_path / "nothing")])


def test_the_database_of_a_search_is_answered_with_the_folder_of_its_trials(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "sft.db") as database:
        database.execute("create table trials (id)")
    with pytest.raises(UsageError, match=rf"the study of a search; its trials lie in {tmp_path}/sft$"):
        main([str(tmp_path / "sft.db")])


def test_what_cannot_be_drawn_is_a_warning(run: Path, caplog, monkeypatch) -> None:
    (run / FILE).mkdir()

    assert drawn_curves(run) is None
    assert "is not drawn" in caplog.text
    monkeypatch.setattr(curves, "FILE", "other.png")
    (run / "csv" / "metrics.csv").write_text("")
    assert drawn_curves(run) is None
