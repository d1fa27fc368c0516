"""Asks the shipped trained model about the standard library: `python -m src.demo "copy a file"`.

The documents are the functions of this Python that are documented, without their docstrings, as `data=pydocs`
mines them. They are mined and embedded at the first call, which takes under a minute, and read from the disk
later. Nothing is fetched from anywhere.
"""

import json
import platform
from collections.abc import Sequence
from pathlib import Path

from search_r3 import search
from search_r3.cli.last_resort import Parser, run_command
from search_r3.data.types import Corpus
from search_r3.files import write_text
from search_r3.folders import make_folder
from search_r3.shipped import shipped

MODEL = "experiments/nano_demo/model"
FOLDER = Path("outputs") / "demo"
QUERY = "remove a folder and everything in it"


def stdlib_corpora(cache_dir: Path) -> list[Corpus]:
    """The documented functions of the standard library of this Python, in the parts that pydocs makes."""
    from search_r3.data.pydocs.reader import load_pydocs

    data = load_pydocs([], cache_dir, min_test=0, workers=1)
    held_out = (part.corpus for part in (data.validation, data.test) if part is not None)
    return [data.corpus, *held_out]


def write_corpus(file: Path, corpora: Sequence[Corpus]) -> None:
    """A line per document with `_id` and `text`."""
    rows = (row for corpus in corpora for row in zip(corpus.ids, corpus.texts, strict=True))
    write_text(file, "".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the corpus where it is not there yet, and searches it.

    Raises:
        UsageError: If the folder of the demo cannot be made.
    """
    parser = Parser(prog="python -m src.demo", description=__doc__)
    parser.add_argument("query", nargs="*", help=f"what to look for; {QUERY!r} by default")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"of corpus and vectors; {FOLDER}")
    arguments = parser.parse_args(argv)
    folder = make_folder(arguments.folder, "--folder")
    file = folder / f"stdlib-{platform.python_version()}.jsonl"
    if not file.is_file():
        write_corpus(file, stdlib_corpora(folder / "pydocs"))
    query = " ".join(arguments.query) or QUERY
    given = [f"model.path={shipped(MODEL)}", f"corpus={file}", f"cache_dir={folder / 'embeddings'}"]
    return search.main([*given, "k=5", "format=table", f"query={query}"])


if __name__ == "__main__":
    run_command(main)
