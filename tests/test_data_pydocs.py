"""pydocs: on small distributions that the tests write, and on real modules of the standard library."""

import ast
import hashlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path

import pytest

from search_r3.data.pydocs.docstrings import (
    MIN_BODY_WORDS,
    mine_functions,
    plain_text,
    read_source,
    split_docstring,
)
from search_r3.data.pydocs.duplicates import NearDuplicates, bands, jaccard, shingles
from search_r3.data.pydocs.reader import load_pydocs
from search_r3.data.pydocs.settings import STDLIB, Settings, cache_key, split_of
from search_r3.data.pydocs.sources import source_files
from search_r3.data.reasoning import cold_start_reasoning, identifier_words
from tests.command import LIMIT_S, PYTHONPATH

ROOT = Path(__file__).resolve().parents[1]
STDLIB_MODULES = ("argparse", "textwrap", "csv", "statistics", "shutil", "difflib", "email.message", "heapq")
VERBS = "read write parse merge split count filter rotate encode index".split()  # noqa: SIM905
NOUNS = "record matrix header token ledger socket vector frame packet branch".split()  # noqa: SIM905


def write_distribution(site: Path, name: str, version: str, files: dict[str, str]) -> None:
    """An installed distribution as a wheel installer leaves it: files, METADATA and RECORD."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense-Expression: MIT\n"
    )
    for path, source in files.items():
        target = site / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source)
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))


def function_source(seed: int) -> str:
    """A function whose words differ from those of every other seed."""
    verb, noun = VERBS[seed % 10], NOUNS[seed // 10 % 10]
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghij", k=7)) for _ in range(12)]
    body = "\n".join(f"    {left} = {right}({noun}, {seed})" for left, right in pairwise(words))
    return (
        f'def {verb}_{noun}_{seed}({noun}, limit: int = 3) -> list:\n    """{verb.title()} the {noun} of '
        f'ledger number {seed}. More {seed}."""\n{body}\n    return {words[-1]}\n\n\n'
    )


def module_files(package: str, n_modules: int = 60) -> dict[str, str]:
    return {
        f"{package}/m{number}.py": function_source(2 * number) + function_source(2 * number + 1)
        for number in range(n_modules)
    }


def load_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], **options):
    write_distribution(tmp_path / "site", "smallpack", "1.2", files)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    defaults = {"include_stdlib": False, "test_share": 0.3, "validation_share": 0.2, "min_test": 1}
    arguments = {"packages": ["smallpack==1.2"], "cache_dir": tmp_path / "cache"} | defaults | options
    return load_pydocs(**arguments)


def stdlib_sources() -> dict[str, str]:
    files = {file.module: file.path for file in source_files(STDLIB)}
    return {module: read_source(Path(files[module]).read_bytes()) for module in STDLIB_MODULES}


def test_no_document_holds_a_docstring_of_its_own_or_of_a_nested_definition():
    found = 0
    for source in stdlib_sources().values():
        docstrings = {
            node.name: ast.get_docstring(node, clean=False)
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node)
        }
        for mined in mine_functions(source):
            tree = ast.parse(mined.document)
            function = tree.body[0]
            nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
            assert all(ast.get_docstring(node) is None for node in nodes), mined.name
            assert function.name == mined.name.split("#")[0].split(".")[-1]
            docstring = docstrings.get(function.name, "")
            if mined.query and len(docstring) > 20:
                found += 1
                assert docstring.strip() not in mined.document
    assert found > 100


def test_a_document_is_the_function_as_written_but_for_its_docstring():
    # unparse drops comments and layout, so this compares the code alone
    compared = 0
    for source in stdlib_sources().values():
        mined = {function.name: function for function in mine_functions(source)}
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name in mined and ast.get_docstring(node):
                bare = ast.FunctionDef(**{**vars(node), "body": node.body[1:]})
                inner = [n for n in ast.walk(bare) if isinstance(n, ast.FunctionDef) and n is not bare]
                if not any(ast.get_docstring(n) for n in inner):
                    compared += 1
                    assert ast.unparse(ast.parse(mined[node.name].document)) == ast.unparse(bare)
    assert compared > 30


def test_a_sentence_that_the_body_repeats_is_no_query():
    body = (
        'parser = make(description="Convert the old files to new ones.", a=1, b=2)\n    return parser.run()'
    )
    (mined,) = mine_functions(f'def main():\n    """Convert the old files\n    to new ones."""\n    {body}\n')
    assert mined.query == ""
    assert "Convert the old files" in mined.document


def test_comments_decorators_and_one_line_functions_keep_what_is_theirs():
    source = textwrap.dedent(
        '''
        class Reader:
            @property
            # before
            def größe(self, path):  # signature
                r"""Größe der Datei in bytes here."""  # behind
                # a comment
                text = open(path, encoding="utf-8").read(); count = len(text)
                return count + self.offset * 2  # last

        def one(a, b): "Add two numbers here."; total = a + b + a + b + a + b; return total
        '''
    )
    reader, one = mine_functions(source)
    assert reader.name == "Reader.größe"
    assert reader.document.split("\n")[:3] == ["@property", "# before", "def größe(self, path):  # signature"]
    assert "# behind" in reader.document
    assert "# a comment" in reader.document
    assert reader.document.endswith("return count + self.offset * 2  # last")
    assert "Größe der" not in reader.document
    assert one.document == "def one(a, b): total = a + b + a + b + a + b; return total"


@pytest.mark.parametrize(
    "body",
    [
        "pass",
        "...",
        "raise NotImplementedError",
        "raise NotImplementedError('a b c d e f g h i j')",
        "return a.b.c",
    ],
)
def test_a_trivial_body_is_no_document(body):
    assert list(mine_functions(f'def f(a, b, c, d):\n    """Do what it says here."""\n    {body}\n')) == []
    long = " + ".join("abcdefghij"[:MIN_BODY_WORDS])
    assert len(list(mine_functions(f'def f(a):\n    """Do what it says here."""\n    x = {long}\n'))) == 1


@pytest.mark.parametrize(
    ("docstring", "query"),
    [
        ("Read a :class:`~io.Reader` line by line.  Then stop.", "Read a Reader line by line."),
        ("Return ``x`` and *y* of `the map <https://a.b/c>`_\n\n:param x: z", "Return x and y of the map"),
        ("Pass *args and **kwargs to it.\nArgs:\n  x: y", "Pass *args and **kwargs to it."),
        ("Split at a dot, e.g. at this one. Next.", "Split at a dot, e.g. at this one."),
        ("Wraps\nover two\n   lines\n    :param a: b", "Wraps over two lines"),
        ("Too short", ""),
        ("word " * 41, ""),
        ("f(x, y) -> a list of the two", ""),
        ("Deprecated since version 2 of this", ""),
        (">>> a = 1 + 2 + 3", ""),
        ("", ""),
    ],
)
def test_the_query_is_the_first_sentence_without_markup(docstring, query):
    assert split_docstring(docstring)[0] == query


def test_plain_text_of_plain_text_is_itself():
    for text in ("snake_case and 2 * 3 * 4", "a|b, c: d `", "f(*args, **kwargs)"):
        assert plain_text(plain_text(text)) == plain_text(text)
    assert plain_text("snake_case and 2 * 3 * 4") == "snake_case and 2 * 3 * 4"


def test_no_module_is_in_two_splits_and_the_split_depends_on_its_name_only(tmp_path, monkeypatch):
    data = load_small(tmp_path, monkeypatch, module_files("smallpack"))
    modules = [
        {document.split(":")[0] for document in corpus.ids}
        for corpus in (data.corpus, data.validation.corpus, data.test.corpus)
    ]
    assert all(modules)
    assert not modules[0] & modules[1]
    assert not modules[0] & modules[2]
    assert not modules[1] & modules[2]
    for split, names in zip(("train", "validation", "test"), modules, strict=True):
        assert {split_of(name, 0.3, 0.2) for name in names} == {split}


def test_split_shares_are_met_over_many_names():
    splits = [split_of(f"package.module{number}", 0.08, 0.02) for number in range(20_000)]
    # binomial standard deviations: 0.0019 and 0.0010; five of them
    assert splits.count("test") / 20_000 == pytest.approx(0.08, abs=0.01)
    assert splits.count("validation") / 20_000 == pytest.approx(0.02, abs=0.005)


def test_a_near_duplicate_of_a_held_out_document_is_removed_from_training(tmp_path, monkeypatch):
    files = module_files("smallpack")
    held_out = next(
        path for path in sorted(files) if split_of(path[:-3].replace("/", "."), 0.3, 0.2) == "test"
    )
    copy = next(path for path in sorted(files) if split_of(path[:-3].replace("/", "."), 0.3, 0.2) == "train")
    original = files[held_out].split("\n\n\n")[0]
    renamed = original.replace("limit: int", "bound : int").replace("ledger number", "copied book")
    files[copy] += renamed.replace("def ", "def renamed_", 1) + "\n"
    data = load_small(tmp_path, monkeypatch, files)
    assert not [document for document in data.corpus.ids if ":renamed_" in document]
    assert data.card["near_duplicates_removed"] == {"documented": 1}
    assert any(document.startswith(held_out[:-3].replace("/", ".")) for document in data.test.corpus.ids)
    assert not any("renamed_" in text for text in data.texts)


def test_nothing_of_a_held_out_module_is_in_the_running_text(tmp_path, monkeypatch):
    undocumented = (
        "def bare_{0}(x):\n    kept_{0} = x.alpha(x.beta, x.gamma, x.delta, {0})\n"
        "    return kept_{0} + x.eps{0}\n"
    )
    files = module_files("smallpack")
    files = {
        path: source + undocumented.format(f"{ord(path[-4])}{len(path)}{i}")
        for i, (path, source) in enumerate(files.items())
    }
    data = load_small(tmp_path, monkeypatch, files)
    running = "\n".join(data.texts)
    held_out = [*data.test.corpus.texts, *data.validation.corpus.texts]
    assert held_out
    assert not [text for text in held_out if text in running]
    assert not [query for query in data.test.queries.values() if query in running]
    assert all(text in running for text in data.corpus.texts)
    assert "def bare_" in running
    names = {path[:-3].replace("/", "."): source for path, source in files.items()}
    for name, source in names.items():
        bare = source[source.index("def bare_") :].split("(")[0]
        assert (bare in running) == (split_of(name, 0.3, 0.2) == "train")


def test_a_sentence_of_two_documents_is_relevant_for_both(tmp_path, monkeypatch):
    files = module_files("smallpack")
    train, test = (
        [path for path in files if split_of(path[:-3].replace("/", "."), 0.3, 0.2) == split]
        for split in ("train", "test")
    )
    for paths, sentence in ((train, "Shared by training rows."), (test, "Shared by held-out rows.")):
        for path in paths[:2]:
            old = files[path].split('"""')[1]
            files[path] = files[path].replace(old, sentence)
    data = load_small(tmp_path, monkeypatch, files)
    shared = [example for example in data.examples if example.query == "Shared by training rows."]
    assert len(shared) == 2
    assert shared[0].relevant_ids == shared[1].relevant_ids == {example.positive_id for example in shared}
    query_ids = [query for query, text in data.test.queries.items() if text == "Shared by held-out rows."]
    assert len(query_ids) == 1
    assert len(data.test.qrels[query_ids[0]]) == 2
    assert not data.test.queries.keys() & set(data.test.corpus.ids)


def test_boilerplate_and_held_out_sentences_are_no_training_queries(tmp_path, monkeypatch):
    files = module_files("smallpack")
    for path in files:
        first, second = (part.split('"""')[1] for part in files[path].split("\n\n\n")[:2])
        number = int(path.split("/m")[1][:-3])
        files[path] = files[path].replace(first, "Fit the whole model.")
        if number % 7 == 0:
            files[path] = files[path].replace(second, f"Sentence for two numbered {number % 14 and 1}.")
    data = load_small(tmp_path, monkeypatch, files, max_documents_per_query=12)
    queries = {example.query for example in data.examples}
    assert "Fit the whole model." not in queries
    assert data.card["pairs_dropped"]["boilerplate query"] == 60
    held_out = {*data.test.queries.values(), *data.validation.queries.values()}
    shared = [sentence for sentence in held_out if sentence.startswith("Sentence for two")]
    assert shared
    assert data.card["pairs_dropped"]["query of a held-out split"] > 0
    assert not queries & held_out
    assert not [text for text in data.texts if any(sentence in text for sentence in shared)]


def test_the_folder_of_the_cache_is_made_with_those_above_it(tmp_path, monkeypatch):
    files = module_files("smallpack", 30)
    data = load_small(tmp_path, monkeypatch, files, cache_dir=tmp_path / "not" / "there" / "yet")
    assert data.examples
    assert any((tmp_path / "not" / "there" / "yet").iterdir())


def test_two_builds_are_equal_and_the_second_call_reads_the_cache(tmp_path, monkeypatch):
    files = module_files("smallpack")
    first = load_small(tmp_path, monkeypatch, files)
    options = {"include_stdlib": False, "test_share": 0.3, "validation_share": 0.2, "min_test": 1}
    other = load_pydocs(["smallpack==1.2"], tmp_path / "other", workers=1, **options)
    (folder,) = (tmp_path / "cache").iterdir()
    (twin,) = (tmp_path / "other").iterdir()
    assert folder.name == twin.name
    for name in ("train.jsonl", "test.jsonl", "validation.jsonl", "texts.jsonl", "word_counts.json"):
        assert (folder / name).read_bytes() == (twin / name).read_bytes()
    for path in (tmp_path / "site" / "smallpack").iterdir():
        path.unlink()  # a second call can only come from the cache
    again = load_pydocs({"smallpack": "1.2"}, tmp_path / "cache", **options)
    assert again.examples == first.examples == other.examples
    assert list(again.texts) == list(first.texts)
    assert again.corpus.fingerprint == first.corpus.fingerprint


def test_two_processes_that_start_at_once_build_once(tmp_path, monkeypatch):
    site = tmp_path / "site"
    write_distribution(site, "smallpack", "1.2", module_files("smallpack", 30))
    code = (
        "import sys; from search_r3.data.pydocs.reader import load_pydocs\n"
        "options = {'include_stdlib': False, 'test_share': 0.3, 'min_test': 1}\n"
        "data = load_pydocs(['smallpack==1.2'], sys.argv[1], **options)\n"
        "print(data.corpus.fingerprint)"
    )
    environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{PYTHONPATH}"}
    command = [sys.executable, "-c", code, str(tmp_path / "cache")]
    jobs = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [job.communicate(timeout=LIMIT_S) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], outputs
    assert len({fingerprint for fingerprint, _ in outputs}) == 1
    assert sum("pydocs: parsing" in log for _, log in outputs) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_rl_asks_in_other_modules_than_sft_and_nothing_that_sft_has_been_asked(tmp_path, monkeypatch):
    files = module_files("smallpack")
    for number in range(0, 120, 2):  # other functions under sentences that are there already
        source = function_source(200 + number).replace(f"number {200 + number}.", f"number {number}.")
        files[f"smallpack/again{number}.py"] = source
    options = {"rl_share": 0.25, "test_share": 0.1, "validation_share": 0.1}
    every = load_small(tmp_path, monkeypatch, files, **options)
    options |= {"include_stdlib": False, "min_test": 1}
    sft, rl = (
        load_pydocs(["smallpack==1.2"], tmp_path / "cache", split=split, **options) for split in ("sft", "rl")
    )

    def modules(data):
        return {row.id.split(":")[0] for row in data.examples}

    assert len(modules(sft)) > len(modules(rl)) > 10
    assert modules(sft).isdisjoint(modules(rl))
    assert {row.query for row in sft.examples}.isdisjoint(row.query for row in rl.examples)
    left_out = {row.id for row in every.examples} - {row.id for row in (*sft.examples, *rl.examples)}
    asked_in_sft = {row.query for row in sft.examples}
    assert left_out == {
        row.id
        for row in every.examples
        if row.id.split(":")[0] not in modules(sft) and row.query in asked_in_sft
    }
    assert left_out
    assert sft.corpus.fingerprint == rl.corpus.fingerprint == every.corpus.fingerprint
    assert (rl.card["split"], rl.card["pairs"]) == ("rl", len(rl.examples))
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_another_reasoning_recipe_keeps_the_rows(tmp_path, monkeypatch):
    first = load_small(tmp_path, monkeypatch, module_files("smallpack"))
    options = {"include_stdlib": False, "test_share": 0.3, "validation_share": 0.2, "min_test": 1}
    recipe = {"n_body_words": 0, "n_types": 0, "n_arguments": 0}
    other = load_pydocs(["smallpack==1.2"], tmp_path / "cache", reasoning=recipe, **options)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert [row.positive for row in other.examples] == [row.positive for row in first.examples]
    for row, longer in zip(other.examples, first.examples, strict=True):
        name = set(identifier_words(row.positive_id.split(":")[1]))
        said = set(identifier_words(row.reasoning))
        assert name - set(identifier_words(row.query)) <= said <= name | set(identifier_words(row.query))
        assert longer.reasoning.startswith(row.reasoning)
        assert len(longer.reasoning) > len(row.reasoning)


def test_another_installed_version_is_mined_with_a_warning_and_named_in_the_card(
    tmp_path, monkeypatch, caplog
):
    with caplog.at_level(logging.WARNING):
        data = load_small(tmp_path, monkeypatch, module_files("smallpack"), packages=["smallpack==1.1"])
    assert "smallpack 1.2 is installed, 1.1 is pinned" in caplog.text
    (fact,) = data.card["packages"]
    assert (fact["installed"], fact["pinned"], fact["is_pinned_version"]) == ("1.2", "1.1", False)
    (folder,) = (tmp_path / "cache").iterdir()
    assert "| smallpack | 1.2 | 1.1 | MIT |" in (folder / "card.md").read_text()
    assert json.loads((folder / "card.json").read_text())["documents"]["test"] == len(data.test.corpus)


def test_missing_packages_are_named_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"not installed: no-such-a==1.0, no-such-b==2.0.*pip install"):
        load_pydocs(["no-such-a==1.0", "no-such-b==2.0"], tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packages": ["smallpack"]}, "name==version"),
        ({"packages": ["smallpack==1.2", "smallpack==1.2"]}, "listed twice: smallpack"),
        ({"test_share": 0.0}, "test_share"),
        ({"test_share": 0.7, "validation_share": 0.3}, "test_share"),
        ({"min_test": 10_000}, "min_test=10000"),
        ({"split": "test"}, "split must be one of sft, rl, all"),
        ({"rl_share": 0.5}, "rl_share must be .* leave SFT a share"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, monkeypatch, options, message):
    with pytest.raises(ValueError, match=message):
        load_small(tmp_path, monkeypatch, module_files("smallpack", 30), **options)


def test_tests_vendored_generated_and_broken_files_are_not_mined(tmp_path, monkeypatch):
    files = module_files("smallpack")
    taken = function_source(999)
    left_out = ("tests/a.py", "_vendor/b.py", "test_c.py", "d_pb2.py", "conftest.py", "broken.py", "made.py")
    for path in left_out:
        files[f"smallpack/{path}"] = taken
    files["smallpack/broken.py"] = taken + "def ("
    files["smallpack/made.py"] = "# This file was automatically generated\n" + taken
    data = load_small(tmp_path, monkeypatch, files)
    assert data.card["files"] == 62
    assert data.card["files_skipped"] == {"generated": 1, "not parsable": 1}
    assert "ledger number 999" not in " ".join(
        [e.query for e in data.examples] + list(data.test.queries.values())
    )


def test_a_failed_build_leaves_no_cache_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("search_r3.data.pydocs.cache.count_words", lambda texts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_small(tmp_path, monkeypatch, module_files("smallpack", 20))
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "missing"])
@pytest.mark.parametrize(
    "name", ["train.jsonl", "texts.offsets", "card.json", "SHA256SUMS", "reasoning-*.json"]
)
def test_a_damaged_cache_is_refused_and_says_how_to_mine_it_anew(tmp_path, monkeypatch, name, damage):
    load_small(tmp_path, monkeypatch, module_files("smallpack", 20))
    (file,) = (tmp_path / "cache").glob(f"*/{name}")
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 0x80]) + content[middle + 1 :]
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"flipped": flipped, "cut": content[:middle], "emptied": b""}[damage])
    options = {"include_stdlib": False, "test_share": 0.3, "validation_share": 0.2, "min_test": 1}

    if damage == "missing" and name.startswith("reasoning"):  # made again
        assert load_pydocs(["smallpack==1.2"], tmp_path / "cache", workers=1, **options).examples
        return
    with pytest.raises(ValueError, match=f"{file.name.split('-')[0]}.*(damaged|cannot be read)") as refused:
        load_pydocs(["smallpack==1.2"], tmp_path / "cache", workers=1, **options)
    remedy = str(refused.value).partition("anew: ")[2]
    assert remedy.startswith(f"rm -r '{tmp_path / 'cache'}")
    subprocess.run(remedy, shell=True, check=True)
    assert load_pydocs(["smallpack==1.2"], tmp_path / "cache", workers=1, **options).examples


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_mining_that_is_interrupted_ends_with_its_workers_and_without_a_traceback(tmp_path, number):
    site, started = tmp_path / "site", tmp_path / "started"
    write_distribution(site, "smallpack", "1.2", module_files("smallpack", 30))
    code = (
        "import pathlib, signal, sys, time\n"
        "from search_r3.data.pydocs import mining, reader\n"
        "def interrupt(*_):\n    raise KeyboardInterrupt\n"
        "signal.signal(signal.SIGTERM, interrupt)\n"
        "signal.signal(signal.SIGINT, interrupt)\n"  # a shell has it ignored in what runs in the background
        "def slow(file):\n    pathlib.Path(sys.argv[2]).touch()\n    time.sleep(600)\n"
        "mining._mine_file = slow\n"
        "try:\n    reader.load_pydocs(['smallpack==1.2'], sys.argv[1], include_stdlib=False, workers=2)\n"
        "except KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "cache"), str(started)],
        env=os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{PYTHONPATH}"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not started.exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        _, said = process.communicate(timeout=LIMIT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_what_a_killed_build_left_is_gone_after_the_next_one(tmp_path, monkeypatch):
    load_small(tmp_path, monkeypatch, module_files("smallpack", 20))
    (folder,) = (tmp_path / "cache").iterdir()
    left = [folder.with_name(name) for name in (f"{folder.name}.partial", f".{folder.name}-8x1kq0")]
    for each in left:
        each.mkdir()
        (each / "train.jsonl").write_text("{")
    other = tmp_path / "cache" / "other.partial"
    other.mkdir()
    folder.rename(tmp_path / "aside")

    options = {"include_stdlib": False, "test_share": 0.3, "validation_share": 0.2, "min_test": 1}
    load_pydocs(["smallpack==1.2"], tmp_path / "cache", workers=1, **options)

    assert sorted((tmp_path / "cache").iterdir()) == sorted([folder, other])


def test_near_duplicates_are_what_comparing_all_pairs_finds():
    rng = random.Random(5)
    documents = []
    for _ in range(60):
        words = ["".join(rng.choices("abcdef", k=5)) for _ in range(40)]
        documents.append(words)
        for n_changes in (1, 3, 8):
            changed = list(words)
            for place in rng.sample(range(40), n_changes):
                changed[place] = "changed" + rng.choice("xyz")
            documents.append(changed)
    rng.shuffle(documents)
    texts = [" ".join(words) for words in documents]

    def bigrams(text: str) -> set[tuple[str, str]]:
        words = text.split()
        return set(pairwise(words))

    expected, kept = [], []
    for text in texts:
        near = any(len(bigrams(text) & bigrams(o)) >= 0.8 * len(bigrams(text) | bigrams(o)) for o in kept)
        expected.append(near)
        if not near:
            kept.append(text)
    assert 20 < sum(expected) < len(texts) - 60
    near = NearDuplicates(0.8)
    found = [near.add(shingles(text), bands(shingles(text))) is not None for text in texts]
    assert found == expected


def test_layout_case_and_punctuation_do_not_tell_documents_apart():
    left, right = "def readFile(path):\n    return open(path)", "def read_file( path ) :  return open( path )"
    assert jaccard(shingles(left), shingles(right)) == 1.0
    assert jaccard(shingles(left), shingles("def write(x): print(x, y, z)")) < 0.2
    assert shingles("").size == shingles("word").size == 1


def test_reasoning_goes_from_shared_words_to_name_to_arguments_to_types_to_characteristic_words():
    document = (
        "def loadHTTPPage(self, url: str, retry_policy: Policy = None) -> Page:\n"
        "    if not url:\n        raise MissingAddress('address')\n    return common(common, zebra)\n"
    )
    text = cold_start_reasoning("Fetch the zebra from a url", document, {"common": 9, "fetched": 1}, 10)
    assert text == "zebra url, load http page, retry policy, missing address, common"
    # tf-idf of 20 documents: zebra 1 * ln(21 / 5.5) = 1.34, common 2 * ln(21 / 15.5) = 0.61; address is rare
    counts = {"common": 15, "zebra": 5, "address": 4}
    counted = cold_start_reasoning("Fetch it", document, counts, 20)
    assert counted == "load http page, url retry policy, missing address, zebra common"
    with_rare = cold_start_reasoning("Fetch it", document, counts, 20, n_types=0, min_frequency=4)
    assert with_rare == "load http page, url retry policy, address zebra common"
    assert cold_start_reasoning("Fetch it", document, max_words=4) == "load http page, url"


def test_reasoning_is_one_line_without_repeats_and_within_its_limit():
    for source in stdlib_sources().values():
        for mined in mine_functions(source):
            text = cold_start_reasoning(mined.query, mined.document)
            words = text.replace(",", "").split()
            assert "\n" not in text
            assert len(words) <= 14
            assert text == cold_start_reasoning(mined.query, mined.document)
            assert len(set(words)) == len(words)
            assert set(words) <= set(identifier_words(mined.document))
            asked = identifier_words(mined.query)
            shared = [word for word in words if word in asked]
            assert shared == words[: len(shared)] == sorted(shared, key=asked.index)


def test_reasoning_says_the_rarest_words_of_the_query_again_in_its_order():
    counts = {"parse": 3, "header": 2, "file": 90}
    document = "def read(file): return parse(header(file))"
    text = cold_start_reasoning("Parse a file with a long header", document, counts, 100, n_query=2)
    assert text.split(",")[0] == "parse header"
    assert cold_start_reasoning("Parse a file with a long header", document).startswith(
        "parse file header, read"
    )


def test_reasoning_may_say_words_of_the_query_that_the_positive_does_not_have():
    document = "def read(file): return parse(header(file))"
    text = cold_start_reasoning("Parse a file with a long header", document, n_query=3, only_shared=False)
    assert text.startswith("parse file long, read")


def test_reasoning_of_plain_text_is_shared_and_then_other_words():
    assert cold_start_reasoning("cells", "The rare mitochondria of cells.") == "cells, rare mitochondria"
    assert cold_start_reasoning("", "") == ""


def test_a_cache_that_was_mined_before_is_found_under_the_same_name():
    settings = Settings(("a", "b"), False, 0.08, 0.02, 8, 0.8, True)
    version = f"{sys.version_info[0]}, {sys.version_info[1]}"
    recipe = (
        f'{{"code": 4, "python": [{version}], "settings": {{"include_stdlib": false, '
        '"include_undocumented": true, "max_documents_per_query": 8, "packages": ["a", "b"], '
        '"similarity": 0.8, "test_share": 0.08, "validation_share": 0.02}, '
        '"versions": {"a": "1.0", "b": "2.1"}}'
    )
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    assert cache_key({"b": "2.1", "a": "1.0"}, settings) == f"py{version.replace(', ', '')}-{digest}"
