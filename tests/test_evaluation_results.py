"""What an evaluation has written is checked before it is used: damage is found, told and done again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TEXTS

from search_r3 import report
from search_r3.cli.provenance import write_metrics
from search_r3.data.types import Benchmark, Corpus
from search_r3.errors import UsageError
from search_r3.evaluation.benchmark import evaluate_benchmark
from search_r3.evaluation.places import PlaceError, earlier_rows, rows_on_disk, with_rows_on_disk
from search_r3.evaluation.rankers import Model, Settings
from search_r3.models.folder import load_embedder

SETTINGS = Settings(top_k=100, analyzer="code", k1=1.2, b=0.75, seed=0)
QUERIES = {f"q{i}": text.split("\n")[0] for i, text in enumerate(TEXTS[:5])}
CORPUS = Corpus([f"d{i}" for i in range(5)], [text.split("\n", 1)[1] for text in TEXTS[:5]])
TINY = Benchmark("tiny", CORPUS, QUERIES, {f"q{i}": {f"d{i}": 1, "d0": 1} for i in range(5)})
ORIGIN = {"command": "made by a test", "commit": "0" * 40, "seed": 0, "python": "3", "packages": {}}
MODES = ("bm25", "direct", "reasoning")


@pytest.fixture(scope="module")
def model(nano_folder) -> Model:
    return Model("nano", load_embedder(nano_folder))


@pytest.fixture(scope="module")
def written(model, tmp_path_factory) -> Path:
    """An output folder with three evaluations and their table; read only."""
    folder = tmp_path_factory.mktemp("written")
    rows = [evaluated(folder / "out", mode, model, folder / "cache") for mode in MODES]
    write_metrics(folder / "out" / "metrics.json", rows, ORIGIN)
    return folder


def evaluated(folder, mode, model=None, cache=None):
    return evaluate_benchmark(TINY, mode, folder, SETTINGS, model, None, cache or folder / "cache", ORIGIN)


@pytest.fixture
def copied(written, tmp_path) -> Path:
    shutil.copytree(written / "out", tmp_path / "out")
    return tmp_path / "out"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def flipped(file: Path) -> None:
    """One bit of the last digit."""
    content = bytearray(file.read_bytes())
    place = max(n for n, byte in enumerate(content) if chr(byte).isdigit())
    content[place] ^= 1
    file.write_bytes(content)


def folded(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES = {
    "cut off": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "without its last line": lambda file: file.write_text("".join(file.open().readlines()[:-1])),
    "one bit": flipped,
    "empty": lambda file: file.write_bytes(b""),
    "removed": Path.unlink,
    "a folder": folded,
    "binary": lambda file: file.write_bytes(bytes(range(256))),
}
NAMES = ("row.json", "run.trec", "qrels.trec", "per_query.jsonl", "reasoning.jsonl")


def without_time(row):
    return row | {"seconds_per_query": 0}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_its_evaluation_done_again_and_nothing_is_lost(
    copied, written, model, caplog, name, damage
):
    mode = "reasoning" if name == "reasoning.jsonl" else "bm25"
    folder = copied / "tiny" / mode
    before = json.loads((folder / "row.json").read_text())["row"]
    DAMAGES[damage](folder / name)
    broken = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    row = evaluated(copied, mode, model, written / "cache")
    said = [record.getMessage() for record in caplog.records if "done again" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith(f"{folder / name}: ")
    assert row["folder"] == f"tiny/{mode}"
    assert without_time(row) == without_time(before | {"folder": f"tiny/{mode}"})
    kept = copied / "tiny" / f"{mode}_before_1"
    assert {file.name: file.read_bytes() for file in kept.iterdir() if file.is_file()} == broken
    files = set(NAMES) if mode == "reasoning" else set(NAMES) - {"reasoning.jsonl"}
    assert contents(folder).keys() == files
    caplog.clear()
    assert evaluated(copied, mode, model, written / "cache") == row  # read back now
    assert "done again" not in caplog.text
    rows = rows_on_disk(copied)
    assert sorted(row["folder"] for row in rows) == [f"tiny/{mode}" for mode in MODES]


def unhashed(folder: Path) -> dict:
    """Makes the row one from before hashes were written, and returns it."""
    content = json.loads((folder / "row.json").read_text())
    del content["files"], content["sha256"]
    (folder / "row.json").write_text(json.dumps(content))
    return content["row"] | {"folder": f"tiny/{folder.name}"}


@pytest.mark.parametrize("mode", MODES)
def test_a_row_from_before_hashes_were_written_is_read_back_as_it_is(copied, written, model, mode):
    row = unhashed(copied / "tiny" / mode)
    assert evaluated(copied, mode, model, written / "cache") == row


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for name in NAMES[1:] for damage in DAMAGES if damage != "one bit"]
    + [("per_query.jsonl", "one bit")],
)
def test_a_row_from_before_is_done_again_where_ids_counts_or_numbers_do_not_fit(
    copied, written, model, caplog, name, damage
):
    mode = "reasoning" if name == "reasoning.jsonl" else "bm25"
    unhashed(copied / "tiny" / mode)
    DAMAGES[damage](copied / "tiny" / mode / name)
    evaluated(copied, mode, model, written / "cache")
    judged = f"{copied / 'tiny' / mode / 'run.trec'}: and qrels.trec give query"
    assert f"{copied / 'tiny' / mode / name}: " in caplog.text or (
        name == "qrels.trec" and judged in caplog.text
    )
    assert "done again" in caplog.text


def test_a_kill_between_two_renames_leaves_the_earlier_state(copied):
    folder = copied / "tiny" / "bm25"
    before = contents(folder)
    folder.rename(folder.with_name("bm25.old.partial"))
    evaluated(copied, "bm25")
    assert contents(folder) == before


def test_a_folder_without_a_row_that_is_not_all_ours_is_left_alone(copied):
    folder = copied / "tiny" / "bm25"
    (folder / "row.json").unlink()
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    assert evaluated(copied, "bm25")["folder"].startswith("tiny/bm25-")
    assert contents(folder) == before


# ---- the table


def test_a_row_of_the_table_that_was_changed_is_taken_from_its_folder(copied, caplog):
    file = copied / "metrics.json"
    table = earlier_rows(file)
    changed = [table[0] | {"n_docs": 77}, *table[1:]]
    assert with_rows_on_disk(changed, rows_on_disk(copied), file) == table
    assert f"{file}: the row of tiny/bm25 is not as row.json has it" in caplog.text


def test_a_damaged_row_is_told_and_left_out_of_the_table(copied, caplog):
    flipped(copied / "tiny" / "direct" / "row.json")
    assert [row["mode"] for row in rows_on_disk(copied)] == ["bm25", "reasoning"]
    assert f"left out of the table: {copied / 'tiny' / 'direct' / 'row.json'}: is damaged" in caplog.text


BAD_TABLES = {
    "empty": b"",
    "cut off": b'{"rows": [{"bench',
    "binary": bytes(range(256)),
    "utf-16": '{"rows": []}'.encode("utf-16"),
    "a list": b"[]",
    "rows of no list": b'{"rows": 1, "command": "", "commit": "", "seed": 1}',
    "a row of no object": b'{"rows": [1], "command": "", "commit": "", "seed": 1}',
    "a row without a key": b'{"rows": [{"ci95": {}}], "command": "", "commit": "", "seed": 1}',
    "NaN": b'{"rows": [], "command": "", "commit": "", "seed": NaN}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", [*BAD_TABLES, "a folder"])
def test_a_damaged_table_is_refused_in_one_line_that_names_it(tmp_path, monkeypatch, kind):
    file = tmp_path / "metrics.json"
    file.mkdir() if kind == "a folder" else file.write_bytes(BAD_TABLES[kind])
    with pytest.raises(PlaceError) as error:
        earlier_rows(file)
    assert str(file) in str(error.value)
    for arguments in ([str(file)], ["--runs", str(file)]):
        monkeypatch.setattr("sys.argv", ["report", *arguments])
        with pytest.raises(UsageError) as error:
            report.main()
        assert str(file) in str(error.value)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300 + len(str(file))


# ---- src.report


def reported(folder: Path, monkeypatch, *options: str) -> None:
    monkeypatch.setattr("sys.argv", ["report", str(folder), *map(str, options)])
    assert report.main() == 0


@pytest.mark.parametrize("options", [(), ("--runs",)])
@pytest.mark.parametrize("damage", [*DAMAGES, "of another row"])
def test_a_report_refuses_scores_that_are_missing_damaged_or_not_those_of_the_row(
    copied, monkeypatch, damage, options
):
    file = copied / "tiny" / "direct" / "per_query.jsonl"
    if damage == "of another row":
        unhashed(file.parent)
        shutil.copy(copied / "tiny" / "bm25" / "per_query.jsonl", file)
    else:
        DAMAGES[damage](file)
    with pytest.raises(UsageError) as error:
        reported(copied, monkeypatch, *options)
    assert str(error.value).startswith(f"{file}: ")
    assert "evaluate it again" in str(error.value)


def test_a_report_makes_every_comparison_of_whole_evaluations(copied, monkeypatch, capsys):
    reported(copied, monkeypatch, "--output", copied.parent / "joined.json")
    made = json.loads((copied.parent / "joined.json").read_text())["training"]["differences"]
    assert [one["less"]["mode"] for one in made] == ["bm25", "direct"]
    assert "not compared" not in capsys.readouterr().out


def test_a_report_of_several_evaluations_leaves_the_picture_of_each(copied, tmp_path, monkeypatch, capsys):
    other = tmp_path / "other"
    shutil.copytree(copied, other)
    for folder in (copied, other):
        (folder / "metrics.png").write_bytes(b"the picture of its evaluation")

    reported(copied, monkeypatch, other)

    assert f"chart: {copied / 'report.png'}" in capsys.readouterr().out
    assert (copied / "report.png").is_file()
    assert all((folder / "metrics.png").read_bytes()[:3] == b"the" for folder in (copied, other))


def test_a_table_that_was_copied_alone_is_printed_and_the_missing_comparison_said(
    copied, tmp_path, monkeypatch, capsys
):
    (tmp_path / "alone").mkdir()
    shutil.copy(copied / "metrics.json", tmp_path / "alone")
    reported(tmp_path / "alone", monkeypatch)
    printed = capsys.readouterr().out
    assert "not compared: the folders of the evaluations do not lie beside" in printed
    shutil.copytree(copied / "tiny" / "bm25", tmp_path / "alone" / "tiny" / "bm25")
    with pytest.raises(UsageError, match=r"tiny/direct: is missing, so its row cannot be compared"):
        reported(tmp_path / "alone", monkeypatch)


@pytest.mark.parametrize("name", ["a/b/c", "a/b/c/d", "a/b/c/d/e/f"])
def test_rows_of_a_collection_that_lies_any_number_of_folders_deep_are_found_again(tmp_path, name):
    benchmark = replace(TINY, name=name)
    evaluate_benchmark(benchmark, "bm25", tmp_path, SETTINGS, None, None, tmp_path / "cache", ORIGIN)
    assert [row["folder"] for row in rows_on_disk(tmp_path)] == [f"{name}/bm25"]


def test_rows_that_lie_behind_a_link_are_found_again(tmp_path):
    benchmark = replace(TINY, name="a/b/c/d")
    evaluate_benchmark(benchmark, "bm25", tmp_path, SETTINGS, None, None, tmp_path / "cache", ORIGIN)
    (tmp_path / "a/b/c/d/bm25").rename(tmp_path / "elsewhere")
    (tmp_path / "a/b/c/d/bm25").symlink_to(tmp_path / "elsewhere")
    assert [row["folder"] for row in rows_on_disk(tmp_path)] == ["a/b/c/d/bm25"]
