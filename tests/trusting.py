"""Run folders as a stranger may have edited them, and how a command meets them.

Every attack would leave a file, `MARK`, in the working directory; the module that a user would have to trust
leaves another one when it is imported.
"""

import json
import signal
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from evil_pickles import MARK

from search_r3.cli.command import entry_point
from search_r3.cli.compose import compose, resolved_yaml
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.entry import Entry
from search_r3.cli.last_resort import run_command
from search_r3.cli.resume import resumed
from search_r3.errors import UsageError
from search_r3.train import check, reached_step

SFT = ["stage=sft", "data=triples", "data.files=[rows.jsonl]", "logger=csv"]
RL = ["stage=rl", "data=triples", "data.files=[rows.jsonl]", "model.path=model"]
RULES = """
import os
from os import system
from pathlib import Path
from torch import load

import search_r3.files as records

Path("{place}/imported").touch()


class Rule:
    def __init__(self, k=1):
        self.k = k


def reward(ranking):
    return ranking


partial_system = __import__("functools").partial(os.system)
number = 3
"""


@cache
def source_of(configs=None):
    """Reads conf/ and, before it, a folder of the user's; made once, which takes longer than to compose."""
    with ConfigSource(configs) as source:
        return source


@cache
def composed(*overrides):
    return compose("train", overrides, source_of()).config


def run_folder(place, overrides=SFT):
    """A run folder as a run leaves it that was killed before its first checkpoint."""
    folder = place / "run"
    folder.mkdir()
    config = composed(*overrides).copy()
    config.output_dir = str(folder)
    (folder / "config.yaml").write_text(resolved_yaml(config))
    (folder / "provenance.json").write_text(json.dumps({"choices": {}}))
    status = {"state": "interrupted", "error": None, "started": None, "finished": None, "host": "h", "pid": 1}
    (folder / "status.json").write_text(json.dumps(status))
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a module of the user's own, `my_rules`, and the file that `SFT` names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    (tmp_path / "code" / "my_rules").mkdir(parents=True)
    (tmp_path / "code" / "my_rules" / "__init__.py").write_text(RULES.replace("{place}", str(tmp_path)))
    (tmp_path / "code" / "my_rules" / "more.py").write_text("class Better:\n    pass\n")
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_rules"]:
        del sys.modules[name]


def edited(folder, key, value):
    """Puts a value at a dotted key of the stored configuration."""
    content = yaml.safe_load((folder / "config.yaml").read_text())
    *parents, last = key.split(".")
    node = content
    for name in parents:
        node = node[name]
    node[int(last) if isinstance(node, list) else last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


def resumed_config(folder, *overrides, configs=None):
    return resumed(source_of(configs), [*overrides], folder).config


def refusal(folder, *overrides, configs=None):
    """What resuming a folder is refused with; nothing has run by then."""
    with pytest.raises(UsageError) as refused:
        resumed_config(folder, *overrides, configs=configs)
    assert not Path(MARK).exists()
    return str(refused.value)


def ended(arguments, monkeypatch, capsys, run=None):
    """Exit code and messages of `python -m src.train`, in this process."""
    monkeypatch.setattr(sys, "argv", ["src.train", *arguments])
    handler = signal.getsignal(signal.SIGTERM)
    run = run or (lambda config: Path(MARK).touch())
    with pytest.raises(SystemExit) as end:
        run_command(lambda: entry_point(Entry("train", run, check, reached_step)))
    signal.signal(signal.SIGTERM, handler)
    captured = capsys.readouterr()
    return end.value.code, captured.out + captured.err
