"""A few of the attacks that `make faults` makes by the hundred, and what their judge sees."""

import re
import shutil

import pytest

from tests.faults import results
from tests.faults.attack import KEPT, Workshop, complaint
from tests.faults.commands import Ended, counted
from tests.faults.run import KINDS, ROOT, named, rows_of, table

SEED = 1
ATTACKS = (
    "kill/rl/41",
    "damage/run/checkpoints/last.ckpt/flipped",
    "records/rl/1",
    "kill/evaluate/0",
    "full/evaluate/1",
    "damage/evaluation/tiny/direct/run.trec/flipped",
    "starters/evaluate/0",
)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    yield Workshop(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_breaks_no_promise(workshop, name):
    verdict = named(workshop, name).verdict(SEED)

    if verdict.outcome == "skipped":
        pytest.skip(verdict.told)
    assert verdict.outcome in KEPT, verdict.told


def test_an_undisturbed_run_has_events_of_every_part(workshop):
    counts = workshop.reference("rl").counts

    assert min(counts[part] for part in ("step", "validation", "save", "model", "index", "records")) > 5
    assert counts == counted(workshop.reference("rl").place / "events")


@pytest.mark.parametrize(
    "file", ["model/model.safetensors", "checkpoints/best.ckpt", "index/shard-0-of-1/rows.f32"]
)
def test_another_bit_in_a_result_is_seen(workshop, tmp_path, file):
    reference = workshop.reference("rl")
    folder = shutil.copytree(reference.place / "disk" / "run", tmp_path / "disk" / "run")
    assert results.differences(results.of_training(tmp_path), reference.result) == []
    if file.endswith(".ckpt"):
        import torch

        content = torch.load(folder / file, weights_only=True)
        next(iter(content["state_dict"].values())).view(torch.int32).flatten()[0] ^= 1
        torch.save(content, folder / file)
    else:
        content = bytearray((folder / file).read_bytes())
        content[-1] ^= 1
        (folder / file).write_bytes(content)

    assert results.differences(results.of_training(tmp_path), reference.result) == [file]


def test_a_row_that_is_lost_and_a_file_that_stays_are_seen(workshop, tmp_path):
    reference = workshop.reference("rl")
    folder = shutil.copytree(reference.place / "disk" / "run", tmp_path / "disk" / "run")
    lines = (folder / "csv" / "metrics.csv").read_text().splitlines(keepends=True)
    (folder / "csv" / "metrics.csv").write_text("".join([*lines[:2], *lines[3:]]))
    (folder / "status.json.77.part").touch()

    found = results.differences(results.of_training(tmp_path), reference.result)

    assert found == ["csv/metrics.csv", "left over: status.json.n.part"]


TOLD = "error: run/a.json is no JSON; remove it"


@pytest.mark.parametrize(
    ("code", "stderr", "words"),
    [
        (1, TOLD, None),
        (2, f"5/6 steps\n{TOLD}\ntraceback: run/train.log", None),
        (1, "", "without a line"),
        (None, "", "no end"),
        (-11, TOLD, "signal 11"),
        (1, f"Traceback (most recent call last)\n{TOLD}", "traceback"),
        (1, "error: no JSON", "a.json is not named"),
        (1, f"{TOLD}{' x' * 1000}", "characters"),
        (1, f"{TOLD}\n" + "more\n" * 20, "21 lines"),
    ],
)
def test_a_refusal_is_one_clear_line_that_names_the_file(code, stderr, words):
    found = complaint(Ended(code, "", stderr, 1.0, 0), "a.json")

    assert found is None if words is None else words in found


def test_the_table_counts_by_kind_and_says_why_attacks_were_skipped():
    outcomes = (("kill/sft", "equal"), ("kill/sft", "differs"), ("full/rl", "skipped"))
    rows = rows_of([{"kind": kind, "outcome": outcome, "told": outcome} for kind, outcome in outcomes])

    kill, full, whole = rows
    assert (kill["tried"], kill["equal"], kill["differs"]) == (2, 1, 1)
    assert (full["tried"], full["skipped"], full["why_skipped"]) == (0, 1, ["skipped"])
    assert (whole["kind"], whole["tried"]) == ("all", 2)
    assert len(table(rows).splitlines()) == 4


def test_every_test_and_attack_that_the_page_names_is_there():
    text = (ROOT / "docs" / "what-it-survives.md").read_text(encoding="utf-8")
    tests = re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", text)
    kinds = re.findall(r"ONLY=([\w-]+)", text)

    assert len(tests) > 30
    assert set(kinds) <= KINDS.keys()
    for file, name in tests:
        assert (ROOT / "tests" / file).is_file(), file
        assert not name or f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name
