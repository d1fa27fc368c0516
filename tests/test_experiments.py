"""The experiments have the figures of their files, and every link of a document leads somewhere."""

import json
import re
from pathlib import Path

import pytest

from experiments import figures, markdown, tables
from search_r3.markdown import table
from tests import test_readme

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "experiments"
READMES = sorted(EXPERIMENTS.glob("*/README.md"))
MADE_AGAIN = sorted(EXPERIMENTS.glob("*/commands.sh"))


def name_of_folder(path: Path) -> str:
    return path.parent.name


# ---- figures


@pytest.mark.parametrize("document", tables.documents())
def test_a_document_has_the_figures_of_its_files(document):
    text = (ROOT / document).read_text(encoding="utf-8")

    assert tables.filled(document, text) == text, f"{document} is out of date: run `make tables`"


@pytest.mark.parametrize("document", sorted(figures.FIGURES))
def test_a_figure_that_was_changed_by_hand_is_set_right(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    name = next(iter(figures.FIGURES[document]))
    start = text.index(f"<!-- generated: {name} -->")
    figure = re.compile(r"\| \**\d[\d.,]* ").search(text, text.index("---", text.index("|", start)))
    changed = f"{text[: figure.start()]}| 9.999 {text[figure.end() :]}"

    assert changed != text
    assert tables.filled(document, changed) == text


def test_the_front_page_says_what_the_files_say():
    rows = {
        line.split(" | ")[0].removeprefix("| "): [cell.strip(" *") for cell in line.split("|")[2:-1]]
        for line in tables.FIGURES["README.md"]["results"]().splitlines()[2:]
    }
    runs = json.loads((EXPERIMENTS / "quickstart" / "runs.json").read_text())["rows"]
    means = {run["label"]: f"{run['mean']:.3f}" for run in runs}
    pydocs = next(cells for name, cells in rows.items() if re.fullmatch(r"pydocs.*queries", name))

    assert pydocs[0] == means["bm25"]
    assert [cell.split()[0] for cell in pydocs[2:6]] == [
        means[label] for label in ("sft direct", "sft reasoning", "rl direct", "rl reasoning")
    ]
    for folder, model in (("other_collections", "model of code"), ("mixture", "the mixture")):
        others = json.loads((EXPERIMENTS / folder / "metrics.json").read_text())["rows"]
        scores = {(row["benchmark"], row["mode"]): f"{row['metrics']['ndcg@10']:.3f}" for row in others}
        for collection in ("CoSQA", "Cranfield", "SciFact"):
            (cells,) = (
                cells for name, cells in rows.items() if name.startswith(collection) and name.endswith(model)
            )
            asked = (scores[collection.lower(), mode] for mode in ("bm25", "direct", "reasoning"))
            assert [cells[0], *cells[2:4]] == list(asked)


def test_one_row_is_asked_for_and_one_is_given():
    file = "bm25/metrics_auto.json"

    assert markdown.row(file, benchmark="cosqa")["n_queries"] == 500
    with pytest.raises(ValueError, match=r"bm25/metrics_auto\.json: 3 rows have .*bm25"):
        markdown.row(file, mode="bm25")
    with pytest.raises(ValueError, match="0 rows"):
        markdown.row(file, benchmark="nfcorpus")


def test_a_table_has_as_many_cells_in_every_line():
    assert table(("a", ">b"), [("x", "1")]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
    with pytest.raises(ValueError, match="1 cells under 2 headings"):
        table(("a", "b"), [("x",)])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<!-- generated: nothing -->\n<!-- end -->\n", "generated parts are"),
        ("<!-- generated: modes -->\n", "needs an <!-- end -->"),
        ("", "generated parts are"),
    ],
)
def test_a_part_that_cannot_be_filled_is_named(text, told):
    with pytest.raises(ValueError, match=re.escape("experiments/base_in_budget/README.md: ") + f".*{told}"):
        tables.filled(
            "experiments/base_in_budget/README.md", "<!-- generated: commands -->\n<!-- end -->\n" + text
        )


# ---- what a folder says of itself


@pytest.mark.parametrize("path", READMES, ids=name_of_folder)
def test_an_experiment_says_question_command_commit_answer_figures_and_change(path):
    told = tables.sections(path.read_text(encoding="utf-8"))

    assert tuple(told) == tables.HEADINGS
    assert all(told.values())
    assert tables.first_paragraph(told["Question"]).endswith("?")
    assert "](" not in tables.first_paragraph(told["Question"]) + tables.first_paragraph(told["Answer"])


def test_every_folder_is_in_the_list_newest_first():
    lines = re.findall(r"^\| (\d{4}-\d\d-\d\d) .*\[(\w+)\]\(\2\) \|$", tables.index(), re.MULTILINE)
    folders = {path.name for path in EXPERIMENTS.iterdir() if path.is_dir() and path.name[0] not in "_."}

    assert {name for _, name in lines} == folders
    assert [date for date, _ in lines] == sorted((date for date, _ in lines), reverse=True)


@pytest.mark.parametrize("path", MADE_AGAIN, ids=name_of_folder)
def test_a_readme_shows_the_commands_that_are_run(path):
    command = tables.sections((path.parent / "README.md").read_text(encoding="utf-8"))["Command"]
    shown = re.search(r"```bash\n(.*?)```", command, re.DOTALL)[1]

    assert shown == path.read_text(encoding="utf-8")


def test_no_committed_figure_names_a_place_of_one_machine():
    files = [
        path for path in EXPERIMENTS.rglob("*") if path.suffix in (".json", ".yaml", ".md", ".csv", ".sh")
    ]
    told = {
        path.name: re.search(r"(?<![\w.])/(work|tmp|home|root|mnt|Users)/", path.read_text())
        for path in files
    }

    assert len(files) > 50
    assert not {name: found for name, found in told.items() if found}


# ---- links


def links(text: str) -> list[str]:
    """Targets of the links and pictures of a Markdown text, but for those within code."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    found = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", prose)
    return found + re.findall(r"^\[[^\]]+\]:\s*(\S+)", prose, re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors that a code host gives to the headings of a Markdown text."""
    seen: dict[str, int] = {}
    found = set()
    for heading in re.findall(
        r"^#+\s+(.+?)\s*#*$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE
    ):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(slug if slug not in seen else f"{slug}-{seen[slug]}")
        seen[slug] = seen.get(slug, 0) + 1
    return found


def broken(target: str, document: Path) -> bool:
    """Whether a link of a document leads nowhere; addresses of the web are not asked."""
    if re.match(r"[a-z][a-z0-9+.-]*:", target):
        return False
    place, _, anchor = target.partition("#")
    path = (document.parent / place) if place else document
    if not path.exists():
        return True
    page = path / "README.md" if path.is_dir() else path
    return bool(anchor) and anchor not in anchors(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "document", test_readme.documents(), ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_every_link_of_a_document_leads_somewhere(document):
    found = links(document.read_text(encoding="utf-8"))

    assert [target for target in found if broken(target, document)] == []


def test_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "other.md").write_text("# A `b` in [c](d)\n\n# Twice\n\n# Twice\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md) ![b](no.png) [c](other.md#a-b-in-c) [d](other.md#x) [e](#here) [f](#there)\n"
        "[g](https://x.org/none) `[h](none)` [i](other.md#twice-1) [j](other.md#twice-2)\n\n[k]: gone.md\n"
    )

    found = links(page.read_text())

    assert len(found) == 10
    assert [target for target in found if broken(target, page)] == [
        *("no.png", "other.md#x", "#there", "other.md#twice-2", "gone.md")
    ]


def test_a_path_in_experiments_that_code_or_configuration_names_is_there():
    files = [path for top in ("src", "conf", "docs") for path in (ROOT / top).rglob("*") if path.is_file()]
    files = [path for path in [*files, ROOT / "Makefile"] if path.suffix in (".py", ".yaml", ".md", "")]
    named = {
        found.rstrip("./"): path
        for path in files
        for found in re.findall(r"(?<![\w/])experiments/[\w./-]+", path.read_text(encoding="utf-8"))
    }

    assert len(named) > 3
    assert {name: path for name, path in named.items() if not (ROOT / name).exists()} == {}
