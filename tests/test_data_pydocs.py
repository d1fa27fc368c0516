"""pydocs: which functions are mined, what becomes query and document, and how they are split."""

import ast
import json
import logging
import textwrap

import pytest
from mined_packages import function_source, load_small, module_files, stdlib_sources

from search_r3.data.cold_start import identifier_words
from search_r3.data.pydocs.docstrings import (
    MIN_BODY_WORDS,
    mine_functions,
    plain_text,
    split_docstring,
)
from search_r3.data.pydocs.reader import load_pydocs
from search_r3.data.pydocs.settings import split_of


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
