"""docs/extend.md holds what it says: its files are written to a folder and its commands are run, in order.

Nothing of the page is repeated here, so that it cannot go stale. Only the interpreter is another one, and the
folder that it works in.
"""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest

from tests.command import ROOT, Done, run

PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r'^```(?:python|yaml) title="([^"]+)"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL))
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
KINDS = {
    "A data set": "sft",
    "A benchmark": "eval",
    "A loss": "spread",
    "A reward": "reward",
    "A refresh rule": "rule",
    "A backend": "backend",
    "An evaluation mode": "mode",
}
EVALUATIONS = ("A benchmark", "An evaluation mode")
"""Sections that add something, and the folder in outputs/mine/ that the command of each writes."""


def commands(section: str) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def called(command: str, folder: Path) -> Done:
    """Runs a command of the page in a folder, in which `mine/` lies."""
    path, python, flag, module, *arguments = shlex.split(command)
    assert (path, python, flag) == ("PYTHONPATH=mine", ".venv/bin/python", "-m")
    search_path = f"{folder / 'mine'}:{ROOT}"
    return run(module.removeprefix("src."), *arguments, cwd=folder, PYTHONPATH=search_path)


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, dict[str, list[Done]]]:
    """The page followed from its top to its end: the folder, and what each section's commands did."""
    folder = tmp_path_factory.mktemp("extended")
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    done = {
        section.splitlines()[0]: [called(command, folder) for command in commands(section)]
        for section in SECTIONS
    }
    return folder, done


def table(folder: Path, name: str) -> list[dict]:
    return list(csv.DictReader((folder / "outputs" / "mine" / name / "csv" / "metrics.csv").open(newline="")))


def test_the_page_adds_one_of_each_kind_by_one_file_and_one_yaml():
    assert set(KINDS) <= {section.splitlines()[0] for section in SECTIONS}
    for section in SECTIONS:
        title = section.splitlines()[0]
        files = re.findall(r'title="([^"]+)"', section)
        if title in KINDS and title != "A benchmark":  # which is the data set's
            assert [Path(file).suffix for file in files] == [".py", ".yaml"], title
    assert all(name.startswith("mine/") for name in FILES)


@pytest.mark.parametrize("title", [section.splitlines()[0] for section in SECTIONS])
def test_every_command_of_the_page_ends_well(ran, title):
    for done in ran[1][title]:
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("title", [title for title in KINDS if title not in EVALUATIONS])
def test_a_run_of_the_page_has_two_steps_and_a_model(ran, title):
    folder = ran[0] / "outputs" / "mine" / KINDS[title]
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert (folder / "model" / "search_r3.json").is_file()


def test_the_loss_is_logged_for_both_embeddings(ran):
    values = [row for row in table(ran[0], "spread") if row.get("train/spread_direct")]
    assert values
    assert all(float(row[f"train/spread_{view}"]) < 0 for row in values for view in ("direct", "reasoned"))


def test_the_benchmark_has_a_row_of_each_mode(ran):
    rows = json.loads((ran[0] / "outputs" / "mine" / "eval" / "metrics.json").read_text())["rows"]
    assert [(row["benchmark"], row["mode"], row["n_queries"], row["n_docs"]) for row in rows] == [
        ("colours", mode, 16, 64) for mode in ("bm25", "direct")
    ]
    assert rows[0]["metrics"]["ndcg@10"] == 1.0  # every query holds both words of its document


def test_the_mode_has_a_row_beside_those_of_ours(ran):
    folder = ran[0] / "outputs" / "mine" / "mode"
    rows = json.loads((folder / "metrics.json").read_text())["rows"]
    assert [row["mode"] for row in rows] == ["direct", "fused"]
    assert rows[1]["metrics"]["recall@100"] == 1.0  # both rankings hold all 64 documents
    assert (folder / "colours" / "fused" / "run.trec").is_file()


def test_the_reward_is_the_one_of_the_page(ran):
    """Of 64 documents: a rank earns 1/64 to 1, and the token 0.1."""
    for row in table(ran[0], "reward"):
        if row.get("train/reward_ranking"):
            assert 1 / 64 <= float(row["train/reward_ranking"]) <= 1


def test_the_rule_encodes_its_budget_once_rows_have_an_age(ran):
    first, second, _ = table(ran[0], "rule")  # the last step is that of the run as it went on
    assert float(first["train/index/documents_encoded"]) == 0  # all rows are of the model as it begins
    assert float(second["train/index/documents_encoded"]) == 20
    assert float(second["train/index/drift_largest"]) > 0


def test_a_run_with_the_backend_has_the_spread_that_it_learns_from(ran):
    assert all(float(row["train/reward_spread"]) > 0 for row in table(ran[0], "backend"))
