"""Fills the generated parts of the documents: `python -m experiments.tables`, or `make tables`.

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`, on lines of their own. Figures come from
the metrics.json files in `experiments/`, command blocks from the `commands.sh` beside a README, and the list
of all experiments from the READMEs themselves. A test holds that filling them again changes nothing.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from experiments.figures import FIGURES
from experiments.markdown import EXPERIMENTS
from search_r3.markdown import table

ROOT = EXPERIMENTS.parent
INDEX = "experiments/README.md"
START, END = r"^<!-- generated: (?P<name>[\w-]+) -->\n", r"^<!-- end -->$"
PART = re.compile(f"({START}).*?({END})", re.DOTALL | re.MULTILINE)
HEADINGS = ("Question", "Command", "Commit", "Answer", "Figures", "What it changed")
"""Of every experiment's README, in this order."""


def sections(text: str) -> dict[str, str]:
    """What stands under each `##` heading of a document, by heading, in the document's order."""
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return {heading.strip(): body.strip() for heading, body in zip(parts[1::2], parts[2::2], strict=True)}


def first_paragraph(body: str) -> str:
    """The first paragraph of a section, on one line."""
    return " ".join(body.split("\n\n")[0].split())


def folders() -> list[Path]:
    """The folders of the experiments, by name."""
    return sorted(path.parent for path in EXPERIMENTS.glob("*/README.md"))


def index() -> str:
    """All experiments, newest first, those of one day by name: date, question, answer in a sentence, link."""
    lines = sorted(map(_index_line, folders()), key=lambda line: line[0], reverse=True)
    return table(("date", "question", "answer", "all of it"), lines)


def _index_line(folder: Path) -> tuple[str, str, str, str]:
    told = sections((folder / "README.md").read_text(encoding="utf-8"))
    if tuple(told) != HEADINGS:
        raise ValueError(f"{folder.name}/README.md has the headings {list(told)}; it needs {list(HEADINGS)}")
    dates = re.findall(r"\d{4}-\d\d-\d\d", told["Commit"])
    if not dates:
        raise ValueError(f"{folder.name}/README.md has no date under Commit; write one as 2026-11-25")
    question, answer = (first_paragraph(told[heading]) for heading in ("Question", "Answer"))
    return max(dates), question, answer, f"[{folder.name}]({folder.name})"


def command_block(folder: Path) -> str:
    """The commands of an experiment as its README shows them."""
    return f"```bash\n{(folder / 'commands.sh').read_text(encoding='utf-8').strip()}\n```"


def parts(document: str) -> dict[str, Callable[[], str]]:
    """What makes each generated part of a document, by name."""
    folder = (ROOT / document).parent
    commands = {"commands": lambda: command_block(folder)} if (folder / "commands.sh").is_file() else {}
    experiments = {"experiments": index} if document == INDEX else {}
    return FIGURES.get(document, {}) | commands | experiments


def filled(document: str, text: str) -> str:
    """A document's text with its generated parts made anew.

    Raises:
        ValueError: If a part has an unknown name, stands there twice or has no end, or one is missing.
    """
    makers, found = parts(document), re.findall(START, text, re.MULTILINE)
    if sorted(found) != sorted(makers):
        raise ValueError(f"{document}: the generated parts are {sorted(found)}, not {sorted(makers)}")
    if not len(PART.findall(text)) == len(found) == len(re.findall(END, text, re.MULTILINE)):
        raise ValueError(f"{document}: every <!-- generated: NAME --> needs an <!-- end --> after it")
    return PART.sub(lambda part: f"{part[1]}\n{makers[part['name']]()}\n\n{part[3]}", text)


def documents() -> list[str]:
    """The documents that have generated parts; the list of experiments last, which reads the others."""
    have_commands = [
        f"experiments/{path.parent.name}/README.md" for path in EXPERIMENTS.glob("*/commands.sh")
    ]
    return [*sorted({*FIGURES, *have_commands}), INDEX]


def main() -> int:
    """Fills all documents, and names those that have changed.

    Returns:
        0, or 2 where a document cannot be filled, which is said on one line.
    """
    try:
        for document in documents():
            path = ROOT / document
            text = path.read_text(encoding="utf-8")
            if (made := filled(document, text)) != text:
                path.write_text(made, encoding="utf-8")
                print(f"{document} is filled anew")
    except (ValueError, OSError) as error:
        print(f"tables: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
