"""The commands of the documents mean something: each one composes, or names a target of the Makefile.

Those that cost little are run as they stand in a folder that holds what they name; see also test_extend.py.
"""

import gzip
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.overrides import flat_keys, quote_free_text
from search_r3.errors import UsageError
from search_r3.shipped import CONF
from tests.command import ENVIRONMENT, become, forked, run

ROOT = Path(__file__).resolve().parents[1]
NOT_OURS = ("outputs", "build", "dist", "shared")


def commands(text: str) -> list[str]:
    """Command lines of the shell blocks, continued lines joined, prompts and comments cut."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [
        line.removeprefix("$ ").strip()
        for line in lines
        if line.strip() and not line.lstrip().startswith("#")
    ]


def inline_commands(text: str) -> list[str]:
    """Commands of ours between two backticks of the running text."""
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [" ".join(span.split()) for span in spans if re.match(r"(make|python -m src\.\w+)(\s|$)", span)]


def documents() -> list[Path]:
    """Every Markdown file, but for what is made by a run: outputs and the cards of model folders."""
    tops = [path for path in sorted(ROOT.iterdir()) if not path.name.startswith((".", *NOT_OURS))]
    found = [path for top in tops for path in (sorted(top.rglob("*.md")) if top.is_dir() else [top])]
    is_card = {path: (path.parent / "search_r3.json").is_file() for path in found}
    return [path for path in found if path.suffix == ".md" and not is_card[path]]


def written_commands() -> list:
    """Commands of all documents, each once, and once those that differ in a seed alone."""
    cases = {}
    for path in documents():
        text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        for command in [*commands(text), *inline_commands(text)]:
            alike = re.sub(r"(seed=?|/)\d+\b", r"\1N", command)
            cases.setdefault(alike, pytest.param(command, id=f"{name}: {command}"))
    return list(cases.values())


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def check_means_something(command: str) -> None:
    """Raises where the command line would be refused for its target, flags, keys or groups."""
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        variables = {word.split("=")[0] for word in words[1:] if "=" in word}
        assert {word for word in words[1:] if "=" not in word} <= targets(), command
        read = re.findall(r"\$\((\w+)\)|\$\$\{(\w+)", (ROOT / "Makefile").read_text())  # make, shell
        assert variables <= {name for names in read for name in names}, command
    if "-m" in words and words[words.index("-m") + 1].startswith("src."):
        position = words.index("-m") + 1
        _check_arguments(words[position].removeprefix("src."), words[position + 1 :])


def _check_arguments(name: str, arguments: list[str]) -> None:
    source = ROOT / "src" / "search_r3" / f"{name.replace(chr(46), chr(47))}.py"
    assert source.is_file(), name
    if not (CONF / f"{name}.yaml").is_file():
        flags = [word.split("=")[0] for word in arguments if word.startswith("-")]
        assert all(f'"{flag}"' in source.read_text(encoding="utf-8") for flag in flags), arguments
        return
    if "--config-dir" in arguments:
        return  # a folder that docs/extend.md makes; tests/test_extend.py runs these commands in it
    parsed = get_args_parser().parse_intermixed_args(arguments)  # ends the process at an unknown flag
    if parsed.help:
        return
    is_resumed = any(text.startswith("resume=") for text in parsed.overrides)
    if arguments and not is_resumed and "..." not in arguments:  # the latter leaves out what would be needed
        _check_composes(name, parsed.overrides, parsed.multirun)


def _check_composes(name: str, arguments: list[str], is_sweep: bool) -> None:
    # a placeholder such as <folder> is a path like any other; one such as seed=... has no value to compose
    overrides = [text for text in quote_free_text(arguments, is_sweep) if "..." not in text]
    if is_sweep:
        first = r"=(?:choice\()?([^\[{(']*?),.*$"
        overrides = [re.sub(first, r"=\1", text) for text in overrides]
    with ConfigSource() as source:
        config = compose(name, overrides, source).config
    open_keys = {text.split("=")[0] for text in arguments if "..." in text and "=" in text}
    assert open_keys <= set(flat_keys(OmegaConf.to_container(config))), open_keys


def test_there_is_a_readme_with_commands():
    if not (ROOT / "README.md").is_file():
        pytest.skip("there is no README yet")

    assert len(commands((ROOT / "README.md").read_text(encoding="utf-8"))) >= 4


@pytest.mark.parametrize("command", written_commands())
def test_a_command_of_a_document_means_something(command):
    check_means_something(command)


@pytest.mark.parametrize(
    "command",
    [
        "make trian",
        "make eval MODLE=x",
        "python -m src.trian stage=sft",
        "python -m src.train stage=sft --multirum seed=1,2",
        "python -m src.train stage=sft seeed=1",
        "python -m src.train stage=sft seeed=...",
        "python -m src.train stage=sfft",
        "python -m src.report --widht=3 outputs/x",
    ],
)
def test_a_command_without_meaning_is_found(command):
    with pytest.raises((AssertionError, UsageError, SystemExit)):
        check_means_something(command)


def test_commands_are_read_from_shell_blocks_and_from_the_running_text():
    text = (
        "```bash\n# a comment\nmake train\npython -m src.train \\\n  stage=sft\n```\n"
        "```python\nmake = 1\n```\n"
        "Then `make\ntest`, not `making` or `python x.py`; `python -m src.train seed=2`."
    )

    assert commands(text) == ["make train", "python -m src.train    stage=sft"]
    assert inline_commands(text) == ["make test", "python -m src.train seed=2"]


# ---- commands that are run

TINY = (
    "stage.datamodule.batch_size=4",
    "stage.trainer.max_steps=1",
    "stage.trainer.limit_val_batches=0",
    "stage.module.self_written.every_n_steps=0",
    "model=nano_scratch",
    "model.create.vocab_size=300",
    "model.create.hidden_size=16",
    "model.create.num_hidden_layers=1",
    "model.create.num_attention_heads=2",
    "model.create.num_key_value_heads=1",
)
"""What a training of a document is given besides, so that it takes seconds."""

RUN = [
    ("docs/quickstart.md", "python -m src.train --help"),
    ("docs/configuration.md", "python -m src.train stage=sft --cfg job"),
    ("docs/your-data.md", "python -m src.evaluate benchmarks=[my_collection] beir_dir=. modes=[bm25]"),
    ("docs/your-data.md", "python -m src.train stage=sft data=beir data.path=my_collection"),
    (
        "docs/your-data.md",
        "python -m src.train stage=sft data=beir data.path=my_collection data.reasonings=reasonings.jsonl",
    ),
    ("docs/your-data.md", "python -m src.train stage=sft data=triples data.files=[rows.jsonl,more.jsonl.gz]"),
    (
        "docs/your-data.md",
        "python -m src.train stage=sft data=triples data.files=rows.jsonl data.columns.query=question "
        "data.columns.positive=answer data.columns.reasoning=thought",
    ),
]


def write_rows(path: Path, rows: list[dict]) -> None:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory) -> Path:
    """What a reader of docs/your-data.md has: a folder in BEIR layout, reasonings, rows."""
    folder = tmp_path_factory.mktemp("reader")
    collection = folder / "my_collection"
    (collection / "qrels").mkdir(parents=True)
    names = ["oak", "elm", "ash", "fir", "yew", "box", "bay", "fig", "nut", "gum", "tea", "sal"]
    documents = [
        {"_id": f"d{n}", "title": name, "text": f"The {name} is a tree."} for n, name in enumerate(names)
    ]
    queries = [{"_id": f"q{n}", "text": f"What is an {name}?"} for n, name in enumerate(names)]
    write_rows(collection / "corpus.jsonl", documents)
    write_rows(collection / "queries.jsonl", queries)
    for split, numbers in (("train", range(8)), ("test", range(8, 12))):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in numbers)]
        (collection / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    write_rows(folder / "reasonings.jsonl", [{"_id": f"q{n}", "text": "a tree"} for n in range(8)])
    rows = [
        {
            "query": f"a {name}", "positive": f"The {name} tree.", "hard_negatives": ["A stone."],
            "question": f"one {name}", "answer": f"A {name} tree.", "thought": name,
        }
        for name in names
    ]  # fmt: skip
    write_rows(folder / "rows.jsonl", rows[:8])
    write_rows(folder / "more.jsonl.gz", rows[8:])
    return folder


@pytest.mark.parametrize(("document", "command"), RUN, ids=[command for _, command in RUN])
def test_a_command_that_costs_little_does_what_it_says(readers_folder, tmp_path, document, command):
    text = (ROOT / document).read_text(encoding="utf-8")
    found = [" ".join(each.split()) for each in [*commands(text), *inline_commands(text)]]
    assert command in found

    _, _, module, *arguments = shlex.split(command)
    is_training = module == "src.train" and not {"--help", "--cfg"} & set(arguments)
    extra = (*TINY, f"output_dir={tmp_path / 'run'}") if is_training else ()
    done = run(module.removeprefix("src."), *arguments, *extra, cwd=readers_folder)

    assert done.returncode == 0, done.stderr
    if is_training:
        assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"


def test_the_python_of_a_document_searches(readers_folder, tmp_path):
    """The block of docs/search.md, with the shipped base in place of a model that has to be trained first."""
    text = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    block = re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1]
    paths = {
        "outputs/quickstart/rl/model": ROOT / "experiments" / "nano_base" / "model",
        "my_corpus.jsonl": readers_folder / "my_collection",
    }
    for written, real in paths.items():
        assert f'"{written}"' in block
        block = block.replace(written, str(real))
    (tmp_path / "program.py").write_text(block, encoding="utf-8")
    done = forked(become, "program", [], tmp_path, ENVIRONMENT)

    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[-3:]] == ["1", "2", "3"]


def test_the_first_look_is_a_command_that_composes():
    lines = subprocess.run(
        ["make", "-n", "try"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.replace("\\\n", " ")
    found = [line for line in lines.splitlines() if "-m src." in line]

    assert len(found) == 1
    check_means_something(found[0])


def test_every_python_block_of_a_document_is_python():
    for path in documents():
        for number, block in enumerate(
            re.findall(r"^```python[^\n]*\n(.*?)^```", path.read_text(), re.M | re.S)
        ):
            compile(block, f"{path.name}, block {number + 1}", "exec")
