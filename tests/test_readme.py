"""The commands of the README mean something: each one composes, or names a target of the Makefile."""

import re
import shlex
from pathlib import Path

import pytest

from src.command_line import quote_free_text
from src.runtime import CONF, ConfigSource, compose

ROOT = Path(__file__).resolve().parents[1]


def commands(text: str) -> list[str]:
    """Command lines of the shell blocks, continued lines joined, prompts and comments cut."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [
        line.removeprefix("$ ").strip()
        for line in lines
        if line.strip() and not line.lstrip().startswith("#")
    ]


def readme_commands() -> list[str]:
    path = ROOT / "README.md"
    return commands(path.read_text(encoding="utf-8")) if path.is_file() else []


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_there_is_a_readme_with_commands():
    if not (ROOT / "README.md").is_file():
        pytest.skip("there is no README yet")

    assert len(readme_commands()) >= 4


@pytest.mark.parametrize("command", readme_commands())
def test_a_command_of_the_readme_means_something(command):
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= targets(), command
    if "-m" in words and words[words.index("-m") + 1].startswith("src."):
        position = words.index("-m") + 1
        _check_composes(words[position].removeprefix("src."), words[position + 1 :])


def _check_composes(name: str, arguments: list[str]) -> None:
    is_sweep = "--multirun" in arguments
    # a placeholder such as <folder> is a path like any other
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    if not (CONF / f"{name}.yaml").is_file() or any(text.startswith("resume=") for text in overrides):
        assert (ROOT / "src" / f"{name}.py").is_file(), name
        return
    overrides = [text for text in quote_free_text(overrides, is_sweep) if "..." not in text]
    if is_sweep:
        overrides = [re.sub(r"=([^\[{(']*?),.*$", r"=\1", text) for text in overrides]
    with ConfigSource() as source:
        compose(name, overrides, source)


def test_commands_are_read_from_shell_blocks_only():
    text = (
        "```bash\n# a comment\nmake train\npython -m src.train \\\n  stage=sft\n```\n```python\nmake = 1\n```"
    )

    assert commands(text) == ["make train", "python -m src.train    stage=sft"]
