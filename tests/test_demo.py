"""The shipped trained model, and the demo that searches the standard library with it."""

import json
import os
from pathlib import Path

import pytest

from search_r3 import SearchR3
from search_r3.data.types import Corpus
from search_r3.demo import MODEL, write_corpus
from search_r3.models.folder import read_description

SHIPPED = Path(__file__).resolve().parents[1] / MODEL
FUNCTIONS = {
    "shutil:copymode": "def copymode(src, dst):\n    os.chmod(dst, stat.S_IMODE(os.stat(src).st_mode))",
    "json:dumps": "def dumps(obj):\n    return JSONEncoder().encode(obj)",
    "random:shuffle": "def shuffle(self, x):\n    for i in range(len(x)):\n        x[i], x[0] = x[0], x[i]",
    "calendar:isleap": "def isleap(year):\n    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("demo")
    file = place / "corpus.jsonl"
    write_corpus(file, [Corpus(list(FUNCTIONS)[:3], list(FUNCTIONS.values())[:3]),
                        Corpus(list(FUNCTIONS)[3:], list(FUNCTIONS.values())[3:])])  # fmt: skip
    assert [json.loads(line)["_id"] for line in file.open()] == list(FUNCTIONS)
    return SearchR3.load(SHIPPED, cache_dir=place / "cache").read(file, progress=False)


@pytest.mark.parametrize("mode", ["direct", "reasoning"])
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("copy the mode bits of a file", "shutil:copymode"),
        ("encode an object as json", "json:dumps"),
        ("shuffle a list in place", "random:shuffle"),
        ("whether a year is a leap year", "calendar:isleap"),
    ],
)
def test_it_finds_what_is_asked_for(model, query, expected, mode):
    found = model.search(query, k=1, mode=mode)

    assert found.hits[0].id == expected
    assert found.reasoning is None or found.reasoning


def test_it_is_small_in_half_precision_and_can_be_made_again():
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(os.stat(path).st_size for path in files) < 12e6
    assert json.loads((SHIPPED / "config.json").read_text())["dtype"] == "bfloat16"
    assert (SHIPPED / "modules.json").is_file()
    origin = read_description(SHIPPED)["provenance"]
    commands = " ".join((SHIPPED.parent / "commands.sh").read_text().replace("\\\n", " ").split())
    made = origin["command"].replace("outputs/quickstart/", "outputs/reproduce/nano_demo/")
    assert made in commands
