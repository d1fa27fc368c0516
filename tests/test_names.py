"""Names are checked as names, and nothing is removed or replaced that no run of ours has written."""

import json

import pytest
from conftest import TEXTS, build_embedder
from omegaconf import OmegaConf

from search_r3.benchmarks.refresh import check as check_bench
from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.names import check_names
from search_r3.errors import UsageError
from search_r3.folders import MARK, empty_part
from search_r3.index.saved_state import saved_folders
from search_r3.models.folder import load_embedder, save_embedder
from search_r3.train import check

ROWS = ["stage=sft", "data=triples", "data.files=[rows.jsonl]"]


@pytest.fixture(scope="module")
def source():
    with ConfigSource() as source:
        return source


@pytest.fixture(scope="module")
def embedder():
    return build_embedder()


LEADING_ELSEWHERE = [
    "../../x", "..", ".", "", "/etc", "a/../../x", "a//b", "a/", "/", "a/.", "a\\..\\b", "a\nb", "a\0b",
    "\x1b[2J", "a/..", "./a", "x" * 300,
]  # fmt: skip


@pytest.mark.parametrize("name", LEADING_ELSEWHERE)
@pytest.mark.parametrize("key", ["data.name", "data.sources.pydocs.name", "stage.name", "data.train_split"])
def test_a_name_that_leads_elsewhere_is_refused(key, name):
    config = {}
    node = config
    *parents, last = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = name

    with pytest.raises(UsageError) as refused:
        check_names(config)

    assert str(refused.value).startswith(f"{key}=")
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "name", ["pydocs", "cqadupstack/android", "what?", "größe", "a.b", "...", "a b", "-", None]
)
def test_names_of_data_sets_pass(name):
    check_names({"data": {"name": name, "sources": {"mine": {"name": name}}}})


@pytest.mark.parametrize("name", ["..", "a/b", "", "a\\b"])
def test_a_source_is_named_as_a_folder_is(name):
    with pytest.raises(UsageError, match=r"data\.sources"):
        check_names({"data": {"sources": {name: None}}})


def test_a_composed_command_is_refused_before_anything_starts(source):
    with pytest.raises(UsageError, match=r"data\.name='\.\./\.\./x' is used as a name in paths"):
        compose("train", [*ROWS, "data.name=../../x"], source)
    with pytest.raises(UsageError, match=r"stage\.name="):
        compose("train", [*ROWS, "stage.name=a/b"], source)


@pytest.mark.parametrize("rule", ["..", ".", ".hidden", "a/b"])
def test_a_rule_of_the_benchmark_is_a_name(rule):
    with pytest.raises(UsageError, match=r"rules: .* names a folder"):
        check_bench(OmegaConf.create({"rules": [rule]}), False)


# ---- model folders


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FOREIGN = {
    "a folder of somebody's": "model/thesis.tex",
    "a plain model": "model/config.json",
    "a description that says nothing": "model/search_r3.json",
    "a file": "model",
    "a part of somebody's": "model.partial/thesis.tex",
    "a file as the part": "model.partial",
}


def refused_by_all(embedder, place):
    """What `python -m src.train` says before it starts, and a save too."""
    config = OmegaConf.create(
        {
            "if_exists": "refuse", "output_dir": str(place), "save_dtype": None, "resume": None,
            "stage": {"name": "sft", "trainer": {}}, "model": {"path": None},
            "strategy": {"accelerator": "cpu"},
        }
    )  # fmt: skip
    with pytest.raises(UsageError) as early:
        check(config, False)
    with pytest.raises(UsageError) as late:
        save_embedder(embedder, place / "model", {})
    assert str(late.value) == str(early.value)
    return str(late.value)


@pytest.mark.parametrize("name", FOREIGN.values(), ids=FOREIGN)
def test_what_no_run_has_written_is_not_replaced(embedder, tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("{}")

    message = refused_by_all(embedder, tmp_path)

    assert str(tmp_path / "model") in message
    assert "move it away" in message
    assert file.read_text() == "{}"


@pytest.mark.parametrize("name", ["model", "model.partial"])
@pytest.mark.parametrize("kind", ["empty", "model", "thesis", "missing"])
def test_a_symbolic_link_is_neither_followed_nor_lost(embedder, tmp_path, name, kind):
    elsewhere = tmp_path / "elsewhere"
    if kind == "model":
        save_embedder(embedder, elsewhere, {})
    elif kind != "missing":
        elsewhere.mkdir()
    if kind == "thesis":
        (elsewhere / "thesis.tex").write_text("years of work")
    before = content(elsewhere)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(elsewhere)

    message = refused_by_all(embedder, tmp_path / "run")

    assert str(tmp_path / "run" / name) in message
    assert content(elsewhere) == before
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


def test_a_model_folder_of_ours_is_replaced_and_an_empty_folder_filled(embedder, tmp_path):
    (tmp_path / "model").mkdir()
    for number in (1, 2):
        folder = save_embedder(embedder, tmp_path / "model", {"number": number})
        (folder / "README.md").write_text("edited")

    assert json.loads((folder / "search_r3.json").read_text())["provenance"] == {"number": 2}
    assert load_embedder(folder).embed_documents(TEXTS[:1]).shape[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (folder / MARK).exists()


def test_a_file_that_a_user_put_into_a_model_folder_is_not_deleted_with_it(embedder, tmp_path):
    folder = save_embedder(embedder, tmp_path / "model", {})
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_text("mine")

    message = refused_by_all(embedder, tmp_path)

    assert f"{folder}/onnx/model.onnx is no file of the model" in message
    assert (folder / "onnx" / "model.onnx").read_text() == "mine"


def test_what_a_killed_save_left_is_removed(embedder, tmp_path):
    part = empty_part(tmp_path / "model")
    (part / "model.safetensors").write_bytes(b"half")

    folder = save_embedder(embedder, tmp_path / "model", {})

    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    load_embedder(folder)


def test_a_save_that_fails_leaves_the_earlier_model(embedder, tmp_path, monkeypatch):
    folder = save_embedder(embedder, tmp_path / "model", {})
    before = content(folder)
    with pytest.raises(ValueError, match="dtype must be one of"):
        save_embedder(embedder, tmp_path / "model", {}, dtype="float8")
    assert content(folder) == before
    assert save_embedder(embedder, tmp_path / "model", {}) == folder


# ---- other folders


def test_only_states_of_an_index_count_as_states(tmp_path):
    for name in (
        "state-000001",
        "state-1000000",
        "state-of-the-art",
        "state-000001.part",
        "states",
        "state-",
    ):
        (tmp_path / name).mkdir()

    assert [path.name for path in saved_folders(tmp_path)] == ["state-000001", "state-1000000"]


def test_the_replay_removes_its_own_folder_alone(tmp_path):
    for name in ("store", "base.npy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    assert empty_part(tmp_path / "replay") == tmp_path / "replay.partial"
    assert empty_part(tmp_path / "replay") == tmp_path / "replay.partial"  # after a kill
    (tmp_path / "replay.partial" / MARK).unlink()
    (tmp_path / "replay.partial" / "mine").write_text("mine")

    with pytest.raises(UsageError, match=r"replay\.partial is in the way"):
        empty_part(tmp_path / "replay")

    assert (tmp_path / "replay.partial" / "mine").read_text() == "mine"


@pytest.mark.parametrize("key", ["name", "train_split"])
def test_a_name_that_a_file_gives_as_a_number_is_refused_with_what_to_do(key):
    for config in ({"data": {key: 2020}}, {"data": {"sources": {"mine": {key: 2020}}}}):
        with pytest.raises(
            UsageError, match=rf"{key}: 2020 is no text, and a name is one; write it in quotes"
        ):
            check_names(config)
