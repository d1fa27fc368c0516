"""The pages in docs/ say what is: made parts are as made again, links lead somewhere, quoted words exist."""

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from search_r3.shipped import CONF, PACKAGE

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def script(name: str) -> ModuleType:
    """A script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module


def test_the_page_of_keys_is_what_conf_says():
    made = script("configuration").page()
    assert (DOCS / "configuration.md").read_text(encoding="utf-8") == made, "python docs/configuration.py"


def test_every_key_of_the_page_says_what_it_means_but_lists_of_settings():
    rows = re.findall(r"^\| `([\w.@]+)` \|.*\| (.*) \|$", script("configuration").page(), re.MULTILINE)
    assert len(rows) > 250
    assert [key for key, meaning in rows if not meaning.strip()] == ["settings.full"]


def test_the_picture_is_what_its_script_draws():
    drawn = script("loop").picture()
    assert (DOCS / "loop.svg").read_text(encoding="utf-8") == drawn, "python docs/loop.py"
    assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "")


def test_every_module_of_the_picture_exists():
    panels = script("loop").PANELS
    named = {name for panel in panels for part in panel.parts for name in (panel.module, *part.modules)}
    assert len(named) > 10
    lost = {name for name in named if importlib.util.find_spec(f"search_r3.{name}") is None}
    assert lost == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in slugs, f"{page.name}: {target}"


def test_the_site_has_every_page():
    named = re.findall(r"\w[\w-]*\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(named) == sorted(page.name for page in DOCS.glob("*.md"))


def test_the_site_asks_for_nothing_from_elsewhere():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert settings["theme"]["font"] is False
    assert not settings.get("extra_javascript")
    assert not settings.get("extra_css")


def messages() -> str:
    """Every text that stands in the package and in the Makefile, white space as one blank."""
    texts = [(ROOT / "Makefile").read_text(encoding="utf-8")]
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        texts += [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
    return " ".join("\n".join(texts).split())


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "extend.md"], ids=lambda page: page.name
)
def test_every_choice_that_a_page_names_exists(page):
    groups = "|".join(sorted(path.name for path in CONF.iterdir() if path.is_dir()))
    spans = " ".join(re.findall(r"`([^`]+)`", page.read_text(encoding="utf-8")))
    for group, option in re.findall(rf"(?<![\w.@])({groups})=(\w+)", spans):
        assert option in ("null", "x") or (CONF / group / f"{option}.yaml").is_file(), f"{group}={option}"


OF_OTHERS = (
    "No module named",
    "'torch'",
    "'search_r3'",
    "No space left on device",
    "must be a whole number",
    "skipped",
)
"""What Python and the system say, and what a table of ranges puts together."""


def test_what_troubleshooting_quotes_is_said_somewhere():
    known = messages()
    quoted = []
    for row in (DOCS / "troubleshooting.md").read_text(encoding="utf-8").splitlines():
        if row.startswith("| `"):
            quoted += re.findall(r"`([^`]+)`", row.split(" | ")[0])
    assert len(quoted) > 60
    assert [words for words in quoted if words.strip() not in known and not words.startswith(OF_OTHERS)] == []


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.md", *sorted(set(DOCS.glob("*.md")) - {DOCS / "configuration.md"})],
    ids=lambda path: path.name,
)
def test_no_line_of_a_document_is_longer_than_110_characters(path):
    """Tables, and outside of the README examples, which are taken as they are, may be longer."""
    text = path.read_text(encoding="utf-8")
    if path.name != "README.md":
        text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    assert [line for line in text.splitlines() if len(line) > 110 and not line.startswith("|")] == []
