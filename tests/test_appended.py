"""Records that grow by lines and go back to a checkpoint."""

import csv
import math
import subprocess

import pytest

from search_r3.records import RecordError
from search_r3.stages.appended import AppendedText, MetricsTable

LINES = ['{"text": "a\u2028b\x85c"}\n', '{"text": "é"}\n', "\n", "last\n"]


@pytest.mark.parametrize("torn", ["", '{"text": "cut of'])
@pytest.mark.parametrize("n_kept", range(len(LINES) + 1))
def test_a_text_goes_back_to_its_checkpoint_and_grows_from_there(tmp_path, n_kept, torn):
    record = AppendedText(tmp_path / "lines.jsonl")
    record.append("".join(LINES[:n_kept]))
    state = record.checkpoint()
    record.append("".join(LINES[n_kept:]) + torn)

    other = AppendedText(record.file)
    other.go_back(state)
    for line in LINES[n_kept:]:
        other.append(line)

    assert record.file.read_bytes() == "".join(LINES).encode()
    again = AppendedText(record.file)
    again.go_back(other.checkpoint())
    assert record.file.read_bytes() == "".join(LINES).encode()


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied"])
def test_a_text_that_does_not_begin_as_the_checkpoint_knows_is_refused_and_left_alone(tmp_path, damage):
    (tmp_path / "it's a run").mkdir()
    record = AppendedText(tmp_path / "it's a run" / "lines.jsonl")
    record.append("".join(LINES))
    state = record.checkpoint()
    content = record.file.read_bytes()
    damaged = {"flipped": bytes([content[0] ^ 1]) + content[1:], "cut": content[:-1], "emptied": b""}[damage]
    record.file.write_bytes(damaged)

    with pytest.raises(RecordError, match=r"lines\.jsonl: its first") as refused:
        AppendedText(record.file).go_back(state)
    assert record.file.read_bytes() == damaged
    subprocess.run(str(refused.value).partition("a new record: ")[2], shell=True, check=True)
    assert record.file.with_name("lines_damaged.jsonl").read_bytes() == damaged


def test_without_a_checkpoint_a_record_begins_anew(tmp_path):
    record = AppendedText(tmp_path / "lines.jsonl")
    record.append("of a start that saved nothing\n")
    AppendedText(record.file).go_back(None)
    assert record.file.read_bytes() == b""


def test_a_record_that_was_moved_away_begins_anew(tmp_path, caplog):
    record, table = AppendedText(tmp_path / "lines.jsonl"), MetricsTable(tmp_path)
    record.append("one\n")
    table.log_metrics({"loss": 1.0}, 0)
    states = record.checkpoint(), table.checkpoint()
    record.file.unlink()
    table.file.unlink()

    record.go_back(states[0])
    table.go_back(states[1])
    record.append("two\n")
    table.log_metrics({"loss": 0.5}, 1)

    assert caplog.text.count("is missing; it begins anew") == 2
    assert record.file.read_text() == "two\n"
    assert read(table) == [{"loss": "0.5", "step": "1"}]


METRICS = [
    {"loss": 2.5},
    {"loss": 1 / 3},
    {"val/a, quoted": 1e-9},
    {"loss": math.nan, "extra": 7},
    {"val/a, quoted": 0.5},
]


def table_of(folder, metrics):
    table = MetricsTable(folder)
    table.go_back(None)
    for step, values in enumerate(metrics):
        table.log_metrics(values, step)
    return table


def read(table):
    with table.file.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_holds_every_value_under_its_name(tmp_path):
    table = table_of(tmp_path, METRICS)

    rows = [{name: value for name, value in row.items() if value} for row in read(table)]
    expected = [{**values, "step": step} for step, values in enumerate(METRICS)]
    assert rows == [{name: str(value) for name, value in row.items()} for row in expected]
    assert table.file.read_text().splitlines()[0] == 'loss,step,"val/a, quoted",extra'


@pytest.mark.parametrize("torn", ["", '0.1,"cut of'])
@pytest.mark.parametrize("n_kept", range(len(METRICS) + 1))
def test_a_table_goes_back_to_its_checkpoint_whatever_columns_came_later(tmp_path, n_kept, torn):
    whole = table_of(tmp_path / "whole", METRICS)
    table = table_of(tmp_path / "cut", METRICS[:n_kept])
    state, at_checkpoint = table.checkpoint(), table.file.exists() and table.file.read_bytes()
    for step, values in enumerate(METRICS[n_kept:], n_kept):
        table.log_metrics(values, step)
    with table.file.open("a") as file:
        file.write(torn)

    other = MetricsTable(tmp_path / "cut")
    other.go_back(state)
    assert other.file.read_bytes() == (at_checkpoint or b"")
    for step, values in enumerate(METRICS[n_kept:], n_kept):
        other.log_metrics(values, step)

    assert other.file.read_bytes() == whole.file.read_bytes()
    assert other.checkpoint() == whole.checkpoint()


@pytest.mark.parametrize("damage", ["value", "cut", "emptied", "binary"])
def test_a_damaged_table_is_refused_and_left_alone(tmp_path, damage):
    table = table_of(tmp_path, METRICS)
    state = table.checkpoint()
    text = table.file.read_text()
    damaged = {
        "value": text.replace("2.5", "2.6"),
        "cut": "".join(text.splitlines(keepends=True)[:-1]),
        "emptied": "",
        "binary": "\x00\udcff",
    }[damage].encode(errors="surrogateescape")
    table.file.write_bytes(damaged)

    with pytest.raises(RecordError, match=r"metrics\.csv.*mv .*metrics_damaged\.csv$"):
        MetricsTable(tmp_path).go_back(state)
    assert table.file.read_bytes() == damaged
