"""What goes to Weights & Biases, read back by its own reader: no network, no account."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from search_r3.cli.wandb_run import RECORD, _logger, _mode, _record, ended
from search_r3.records import RecordError
from tests.command import call, run
from tests.wandb_files import of_kind, offline_runs


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A run of three steps whose folder was moved, resumed to six, whose model was then evaluated."""
    place = tmp_path_factory.mktemp("wandb")
    silent = {"WANDB_API_KEY": "", "HOME": str(place), "WANDB_MODE": "offline"}

    def done(code_and_output: tuple[int, str]) -> str:
        assert code_and_output[0] == 0, code_and_output[1]
        return code_and_output[1]

    steps = "stage.trainer.max_steps"
    first = done(call("train", "logger=wandb", f"{steps}=3", "output_dir=before", cwd=place, **silent))
    (place / "before").rename(place / "after")
    again = done(call("train", "resume=after", f"{steps}=6", cwd=place, **silent))
    assert "the model is an artifact of 0." in first
    assert "logger.log_model=false leaves it out" in first
    assert "Weights & Biases: the model is an artifact" in again
    (place / "beir" / "tiny" / "qrels").mkdir(parents=True)
    rows = [{"_id": f"d{i}", "title": "", "text": f"def add_{i}(x): return x"} for i in range(4)]
    (place / "beir/tiny/corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"_id": f"q{i}", "text": f"adds {i}"} for i in range(4)]
    (place / "beir/tiny/queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"q{i}\td{i}\t1\n" for i in range(4)]
    (place / "beir/tiny/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    asked = ["model.path=after/model", "benchmarks=[tiny]", "beir_dir=beir", "modes=[direct,reasoning]"]
    ended = run("evaluate", *asked, "logger=wandb", "output_dir=evaluation", cwd=place, **silent)
    assert ended.returncode == 0, ended.stderr
    return place


def histories(records: list[dict]) -> list[dict]:
    return [each["item"] for each in of_kind(records, "history")]


def test_a_resumed_run_joins_its_own_though_its_folder_was_moved(place):
    first, again = offline_runs(place / "after")

    (one,), (other,) = of_kind(first, "run"), of_kind(again, "run")
    assert one["run_id"] == other["run_id"] == json.loads((place / "after" / RECORD).read_text())["id"]
    assert one["project"] == "search-r3"
    assert one["config"]["update"]["stage"]["trainer"]["max_steps"] == 3
    table = list(csv.DictReader((place / "after" / "csv" / "metrics.csv").open()))
    for name in ("train/loss", "val/direct/ndcg@10"):
        expected = [float(line[name]) for line in table if line[name]]
        found = [row[name] for row in histories(first) + histories(again) if name in row]
        assert found == pytest.approx(expected, rel=1e-6)
        assert len(found) >= 2


def test_validation_is_a_table_and_the_model_an_artifact(place):
    first, again = offline_runs(place / "after")

    assert [each["name"] for each in models(first)] == [
        each["name"] for each in models(again)
    ]  # two versions
    (model,) = models(again)
    facts = json.loads(model["metadata"])
    assert (facts["stage"], facts["step"], facts["seed"]) == ("tiny", 6, 1)
    assert facts["bytes"] == sum(path.stat().st_size for path in files_of(place / "after/model"))
    names = {each["path"] for each in model["manifest"]["contents"]}
    assert {"model.safetensors", "search_r3.json", "tokenizer.json"} <= names
    assert names == {p.relative_to(place / "after/model").as_posix() for p in files_of(place / "after/model")}
    staged = place / ".local/share/wandb/artifacts/staging"
    assert not [path for path in staged.rglob("*") if path.is_file() and path.stat().st_size > 10_000]
    (rows,) = tables(place / "after", "validation/rows")[-1:]
    content = json.loads((place / "after" / "metrics.json").read_text())["rows"]
    (row,) = rows
    assert row["ndcg@10"] == pytest.approx(content[0]["metrics"]["ndcg@10"], rel=1e-12)
    summary = {}
    for each in of_kind(again, "summary"):
        summary |= each.get("update", {})
    assert summary["validation/tiny-validation/direct/ndcg@10"] == pytest.approx(row["ndcg@10"], rel=1e-12)


def models(records: list[dict]) -> list[dict]:
    return [each for each in of_kind(records, "artifact") if each["type"] == "model"]


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def tables(folder: Path, name: str) -> list[list[dict]]:
    """The rows of a table at each time that it was logged, by column."""
    found = []
    for file in sorted(folder.glob(f"wandb/offline-run-*/files/media/table/{name}_*.table.json")):
        content = json.loads(file.read_text())
        found.append([dict(zip(content["columns"], cells, strict=True)) for cells in content["data"]])
    return found


def test_an_evaluation_is_added_to_the_run_of_its_model(place):
    ((records,), content) = (
        offline_runs(place / "evaluation"),
        json.loads((place / "evaluation/metrics.json").read_text()),
    )

    (its,) = of_kind(records, "run")
    assert its["run_id"] == json.loads((place / "after" / RECORD).read_text())["id"]
    assert not (place / "evaluation" / RECORD).exists()
    (rows,) = tables(place / "evaluation", "evaluation/rows")
    assert [row["mode"] for row in rows] == ["direct", "reasoning"]
    for row, expected in zip(rows, content["rows"], strict=True):
        assert row["ndcg@10"] == pytest.approx(expected["metrics"]["ndcg@10"], rel=1e-12)
        assert [row["ndcg@10 low"], row["ndcg@10 high"]] == pytest.approx(
            expected["ci95"]["ndcg@10"], rel=1e-12
        )
        assert row["tokens_per_query"] == expected["tokens_per_query"]
    (queries,) = tables(place / "evaluation", "evaluation/tiny/reasoning")
    written = [json.loads(line) for line in (place / "evaluation/tiny/reasoning/reasoning.jsonl").open()]
    assert [(row["query_id"], row["reasoning"]) for row in queries] == [
        (each["query_id"], each["reasoning"]) for each in written
    ]


def test_trials_of_a_search_are_grouped(tmp_path):
    (tmp_path / "space.yaml").write_text("stage.module.learning_rate: {low: 0.1, high: 1.0}\n")
    asked = [
        "space=space.yaml",
        "study=searches/mine.db",
        "n_trials=1",
        "logger=wandb",
        "logger.log_model=false",
    ]
    code, output = call(
        "tune",
        *asked,
        "stage.trainer.max_steps=3",
        "monitor=val/direct/ndcg@10",
        cwd=tmp_path,
        HOME=str(tmp_path),
    )
    assert code == 0, output

    ((records,), folder) = offline_runs(tmp_path / "searches/mine/0"), tmp_path / "searches/mine/0"

    (its,) = of_kind(records, "run")
    assert models(records) == []
    assert its["run_group"] == json.loads((folder / RECORD).read_text())["group"] == "searches/mine"


def test_the_environment_turns_it_off(tmp_path):
    asked = ["logger=wandb", "stage.trainer.max_steps=1", "output_dir=run"]
    code, output = call("train", *asked, cwd=tmp_path, HOME=str(tmp_path), WANDB_MODE="disabled")
    assert code == 0, output
    assert "WANDB_MODE=disabled: nothing goes to Weights & Biases" in output
    assert (tmp_path / "run" / "csv" / "metrics.csv").is_file()
    assert not [path for path in tmp_path.rglob("*") if "wandb" in path.name]


def test_a_mode_in_the_environment_that_is_none_is_refused_at_once(tmp_path):
    asked = ["logger=wandb", "stage.trainer.max_steps=1", "output_dir=run"]
    code, output = call("train", *asked, cwd=tmp_path, HOME=str(tmp_path), WANDB_MODE="off")
    assert code == 2
    assert "WANDB_MODE=off in the environment: choices are online, offline, shared, disabled" in output
    assert not (tmp_path / "run").exists()


def test_the_environments_mode_wins_over_the_key_and_is_left_as_it_is(tmp_path, monkeypatch):
    offline, online = (OmegaConf.create({"offline": value}) for value in (True, False))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert (_mode(offline), _mode(online)) == ("offline", None)
    monkeypatch.setenv("WANDB_MODE", "online")
    assert (_mode(offline), _mode(online)) == (None, None)
    assert _mode(OmegaConf.create({"offline": True, "mode": "shared"})) == "shared"

    monkeypatch.delenv("WANDB_MODE")
    node = OmegaConf.create({"_target_": "pytorch_lightning.loggers.WandbLogger", "offline": True})
    logger = _logger(node, tmp_path, {"id": "a", "name": "b", "group": None})
    with ended():
        assert logger.experiment.offline
    assert "WANDB_MODE" not in os.environ


def test_the_record_of_a_run_is_checked(tmp_path):
    record = _record(tmp_path, "a")
    assert _record(tmp_path, "b") == record
    assert _record(tmp_path / "other", "a")["id"] != record["id"]

    for broken in ({"id": "../x"}, {"id": 3}, {"id": "a", "name": 1, "group": None}, {"name": "x"}):
        (tmp_path / RECORD).write_text(json.dumps(broken))
        with pytest.raises(RecordError, match="begins without it: rm"):
            _record(tmp_path, "a")
    shutil.rmtree(tmp_path / "other")
