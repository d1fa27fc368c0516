"""A run folder whose records are damaged is refused in one line that names the file and what to do."""

import json
import os
import shutil

import pytest
from conftest import TEXTS
from hypothesis import given
from hypothesis import strategies as st
from test_fuzzed_readers import damaged

from search_r3.cli.compose import compose, resolved_yaml
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.last_resort import described
from search_r3.cli.resume import resumed
from search_r3.cli.run_status import write_status
from search_r3.errors import UsageError
from search_r3.files import keep_earlier, write_json
from search_r3.records import LONGEST_MESSAGE, clipped, read_json, shown, shown_names
from tests.fuzzing import fuzzed

OPENED: list[ConfigSource] = []


@pytest.fixture(scope="module", autouse=True)
def run(tmp_path_factory):
    """A folder as a run leaves it, without what is large; read only."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with ConfigSource() as source:
        OPENED.append(source)
        composed = compose("train", ["stage=sft", "model=nano", "stage.trainer.max_steps=2"], source)
        folder.mkdir()
        (folder / "config.yaml").write_text(resolved_yaml(composed.config))
        write_json(folder / "provenance.json", {"command": "c", "choices": composed.choices})
        write_status(folder, "interrupted")
        yield folder
    OPENED.clear()


def resumed_config(folder, *overrides: str):
    return resumed(OPENED[0], [f"resume={folder}", *overrides], folder)


def folder_in_place(file):
    file.unlink()
    file.mkdir()


DAMAGES = {
    "empty": lambda file: file.write_bytes(b""),
    "blank": lambda file: file.write_bytes(b" \n\n"),
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-40]),
    "binary": lambda file: file.write_bytes(bytes(range(256))),
    "utf-16": lambda file: file.write_text(file.read_text(), encoding="utf-16"),
    "list": lambda file: file.write_bytes(b"[1, 2]"),
    "number": lambda file: file.write_bytes(b"3"),
    "null": lambda file: file.write_bytes(b"null"),
    "word": lambda file: file.write_bytes(b"text"),
    "tabs": lambda file: file.write_bytes(b"a:\n\t- b: [\n"),
    "deep": lambda file: file.write_bytes(b"[" * 20_000),
    "long": lambda file: file.write_bytes(b'{"a": ' + b"x" * 2_000_000),
    "folder": folder_in_place,
}


@pytest.mark.parametrize("name", ["config.yaml", "status.json", "provenance.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_one_line_with_its_name_and_what_to_do(run, tmp_path, name, damage):
    folder = shutil.copytree(run, tmp_path / "run")
    DAMAGES[damage](folder / name)
    if (name, damage) == ("config.yaml", "cut off"):
        pytest.skip("YAML that is cut off at a line is YAML; see the next test")
    with pytest.raises(UsageError) as error:
        resumed_config(folder)
    said = described(error.value)
    assert str(folder / name) in said or (damage == "folder" and str(folder) in said)
    assert "\n" not in said
    assert len(said) < 500
    assert any(word in said for word in ("rm ", "start a new run", "not a run folder"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["config.yaml", "status.json", "provenance.json"])
def test_a_record_that_may_not_be_read_is_named(run, tmp_path, name):
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / name).chmod(0)
    with pytest.raises(UsageError, match=f"{name}: cannot be read"):
        resumed_config(folder)


@fuzzed(25)
@given(data=st.data())
def test_whatever_a_configuration_holds_a_resume_takes_it_or_refuses_it(run, tmp_path, data):
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run, folder)
    (folder / "config.yaml").write_bytes(data.draw(damaged((run / "config.yaml").read_bytes())))
    try:
        resumed_config(folder, "stage.trainer.max_steps=9")
    except UsageError as error:
        message = described(error)
    else:
        message = "taken"
    assert "\n" not in message
    assert len(message) < 1500


def test_a_record_that_is_replaced_is_kept_as_it_is_whatever_it_holds(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_bytes(bytes(range(256)))
    kept = keep_earlier(file, "seed: 1\n")
    assert kept.name == "config_before_1.yaml"
    assert kept.read_bytes() == bytes(range(256))
    assert keep_earlier(file, "seed: 1\n") is None


def test_what_a_message_repeats_is_cut():
    assert shown("a" * 10**7) == f"'{'a' * 80}'... (10000000 characters)"
    assert len(shown("\U0010ffff" * 10**6)) < 250
    assert shown([1] * 10**6) == "list of 1000000"
    assert shown(10**5000) == "a whole number of 16610 bits"
    assert clipped("a\n b " * 10**6, 10) == "a b a b a ..."
    assert shown_names(range(10**4), 2) == "'0', '1' and 9998 more"
    assert len(described(UsageError("x " * 10**6))) < LONGEST_MESSAGE + 10
    assert len(described(ValueError("x " * 10**6))) < LONGEST_MESSAGE + 50
    assert shown(TEXTS[0][:20]) == repr(TEXTS[0][:20])


def test_a_byte_order_mark_is_no_part_of_a_record(tmp_path):
    (tmp_path / "a.json").write_text('\ufeff{"a": 1}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_a_key_that_is_given_twice_is_refused_at_any_depth(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [{"b": 1, "c": 2, "b": 1}]}')
    for has_nan in (False, True):
        with pytest.raises(
            UsageError, match=r"a\.json: is damaged: it is no JSON \(key 'b' is given twice\)"
        ):
            read_json(tmp_path / "a.json", has_nan=has_nan)


@pytest.mark.parametrize("content", ['{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": "\\ud800"}'])
def test_json_that_no_other_reader_takes_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UsageError, match=r"a\.json: is damaged: it is no JSON"):
        read_json(tmp_path / "a.json")
    assert json.loads(content)
