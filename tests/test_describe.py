"""Every key of the configuration is described from its YAML file and the docstring of its target."""

import sys
import textwrap
from pathlib import Path

from omegaconf import OmegaConf

from search_r3.cli.describe import describe_file, describe_keys, headline
from search_r3.shipped import CONF

FILE = """
    # What a file is for
    # says its head.
    _target_: {target}
    size: 3          # how many there are
    # said above the key,
    # in two lines
    words:
      - one  # of the item
      - two
    text: >-
      a long
      line
    rule:
      share: 0.5
      others: {{a: 1}}
    limits:
      query: 4
"""

MODULE = '''
    """A user's own."""

    from user_limits import Limits

    def build(size, words, text, rule, limits):
        """Builds.

        Args:
            size: overridden by the comment.
            words: overridden as well.
            text: None reads nothing. More is said, and
                not shown.
            limits: the most that is read, as `Limits`.
        """
'''

LIMITS = '''
    """Limits."""

    class Limits:
        """Limits.

        Attributes:
            query: tokens of a query, at
                most
        """
'''


def described(tmp_path: Path, monkeypatch) -> dict[str, tuple[str, str]]:
    (tmp_path / "user_rule.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "user_limits.py").write_text(textwrap.dedent(LIMITS))
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "mine.yaml"
    file.write_text(textwrap.dedent(FILE.format(target="user_rule.build")).lstrip())
    found = describe_file(file, "thing")
    assert {(each.group, each.option) for each in found} == {("thing", "mine")}
    return {each.key: (each.default, each.meaning) for each in found}


def test_a_key_means_what_its_comment_says_and_else_what_the_docstring_of_its_target_says(
    tmp_path: Path, monkeypatch
) -> None:
    assert described(tmp_path, monkeypatch) == {
        "thing.size": ("3", "how many there are"),
        "thing.words": ("[one, two]", "said above the key, in two lines"),
        "thing.text": ("a long line", "null reads nothing"),
        "thing.rule.share": ("0.5", ""),
        "thing.rule.others": ("{a: 1}", ""),
        "thing.limits.query": ("4", "tokens of a query, at most"),
    }
    assert "user_rule" not in sys.modules, "reading a docstring imports nothing"
    assert headline(tmp_path / "mine.yaml") == "What a file is for says its head."


def test_every_value_of_every_option_has_a_line() -> None:
    found = describe_keys()
    for group, option in (("refresh", "certified"), ("reward", "margin_dcg"), ("index", "ivf")):
        node = OmegaConf.load(CONF / group / f"{option}.yaml")
        flat = [key for key in _leaves(OmegaConf.to_container(node), group) if not key.endswith("_")]
        assert [each.key for each in found if (each.group, each.option) == (group, option)] == flat


def test_an_option_that_builds_on_another_is_described_by_the_targets_of_that() -> None:
    found = {each.key: each.meaning for each in describe_keys() if each.option == "nano_hops"}
    assert found["model.create.num_hidden_layers"] == "transformer blocks"


def _leaves(node: object, key: str) -> list[str]:
    if isinstance(node, dict) and node:
        return [leaf for name, value in node.items() for leaf in _leaves(value, f"{key}.{name}")]
    return [key]
