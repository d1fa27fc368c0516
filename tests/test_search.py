"""Searching with a trained folder: from Python in five lines, and from the command line."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import search_r3
from search_r3 import SearchR3
from search_r3.api import Found, Hit, _Spoken
from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.hits import Screen
from search_r3.cli.overrides import quote_free_text
from search_r3.errors import UsageError
from search_r3.search import check
from search_r3.search import run as search
from tests.command import run

DOCUMENTS = {
    "add": "def add(a, b): return a + b",
    "mul": "def mul(a, b): return a * b",
    "neg": "def neg(a): return -a",
    "markup": "[bold]x[/bold] = [1, 2]  # a list in brackets",
    "ünï": "schöne Grüße aus dem Index",
}
QUERY = "what's a (set), {x}=[1]? ${y} 'z' \"q\""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collection")
    rows = [{"_id": name, "text": text} for name, text in DOCUMENTS.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def model(nano_folder, corpus, tmp_path_factory):
    return SearchR3.load(nano_folder, cache_dir=tmp_path_factory.mktemp("cache")).read(corpus, progress=False)


def test_the_class_is_public_and_loaded_when_it_is_asked_for():
    assert search_r3.__all__ == ["SearchR3"]
    assert run_program("import search_r3, sys; print('torch' in sys.modules)") == "False\n"
    assert search_r3.SearchR3 is SearchR3
    assert SearchR3.__module__ == "search_r3.api"
    with pytest.raises(AttributeError, match="Searcher"):
        search_r3.Searcher  # noqa: B018


def run_program(program: str) -> str:
    import subprocess

    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("mode", ["direct", "reasoning"])
def test_hits_are_the_documents_by_the_cosine_of_their_embeddings(model, mode):
    found = model.search(QUERY, k=3, mode=mode)

    documents = model.embed_documents(list(DOCUMENTS.values()))
    said = model.reason([QUERY])
    query = model.embed_queries([QUERY])[0] if mode == "direct" else said.embeddings[0].numpy()
    cosines = documents @ query / (np.linalg.norm(documents, axis=1) * np.linalg.norm(query))
    best = np.argsort(-cosines)[:3]
    assert [hit.id for hit in found.hits] == [list(DOCUMENTS)[row] for row in best]
    np.testing.assert_allclose([hit.score for hit in found.hits], cosines[best], rtol=1e-5)
    assert [hit.rank for hit in found.hits] == [1, 2, 3]
    assert all(DOCUMENTS[hit.id] == hit.text for hit in found.hits)
    assert found.reasoning == (None if mode == "direct" else said.texts[0])


def test_the_reasoning_is_heard_as_it_is_written(model):
    pieces = []
    found = model.search(QUERY, on_text=pieces.append)

    assert found.n_tokens >= len(pieces) >= 1
    assert "".join(pieces).strip() == found.reasoning


def test_a_character_of_several_tokens_is_told_when_it_is_whole(model):
    text, pieces = "schöne Grüße, 日本 und mehr", []
    spoken = _Spoken(model.embedder.tokenizer.decode, pieces.append)
    ids = model.embedder.tokenizer(text, add_special_tokens=False)["input_ids"]

    for token in ids:
        spoken.hear(0, token)
    spoken.end()

    assert "".join(pieces) == model.embedder.tokenizer.decode(ids)
    assert "日本" in "".join(pieces)
    assert len(ids) > len(pieces) > 3
    assert not any("\ufffd" in piece for piece in pieces)


def test_tokens_are_heard_with_the_place_of_their_query(model):
    queries, heard = ["one", "a much longer query than the other one", "two"], {}
    said = model.reason(queries, heard=lambda place, token: heard.setdefault(place, []).append(token))

    assert [heard.get(place, []) for place in range(3)] == said.token_ids


def test_given_reasonings_are_embedded_as_the_models_own_would_be(model):
    said = model.reason([QUERY])
    tokenizer = model.embedder.tokenizer
    if tokenizer(said.texts[0], add_special_tokens=False)["input_ids"] != said.token_ids[0]:
        pytest.skip("the text is written with other tokens than it is read with")
    given = model.embed_queries([QUERY], said.texts)
    np.testing.assert_allclose(given, said.embeddings.numpy(), atol=1e-5)


def test_a_corpus_is_encoded_once(model, corpus, monkeypatch):
    again = SearchR3(model.embedder, model.cache_dir)
    monkeypatch.setattr(again.embedder, "embed_documents_and_count", lambda *_: pytest.fail("encoded again"))
    assert again.read(corpus / "corpus.jsonl", progress=False).corpus.ids == model.corpus.ids


def test_texts_alone_are_a_corpus_and_k_may_exceed_it(model):
    few = SearchR3(model.embedder, model.cache_dir).read(["one", "two"], progress=False)
    assert sorted(hit.id for hit in few.search("one", k=9, mode="direct").hits) == ["0", "1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"query": " "}, "empty"),
        ({"query": "x", "k": 0}, "at least 1"),
        ({"query": "x", "mode": "thinking"}, "direct, reasoning"),
    ],
)
def test_what_cannot_be_searched_is_said(model, arguments, words):
    with pytest.raises(ValueError, match=words):
        model.search(**arguments)


def test_a_search_before_a_corpus_is_read_is_refused(model):
    with pytest.raises(ValueError, match="read"):
        SearchR3(model.embedder).search("x")
    with pytest.raises(ValueError, match="one reasoning per query"):
        model.embed_queries(["x"], [])


# ---- the command


@pytest.fixture
def call(nano_folder, corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def answer(*overrides):
        given = [f"model.path={nano_folder}", f"corpus={corpus}", *overrides]
        with ConfigSource() as source:
            config = compose("search", quote_free_text(given), source).config
        check(config, False)
        search(config)
        return capsys.readouterr().out

    return answer


def test_free_text_arrives_as_it_was_typed_and_a_pipe_gets_json(nano_folder, corpus, tmp_path):
    given = [f"model.path={nano_folder}", f"corpus={corpus}", f"query={QUERY}", "k=2"]
    done = run("search", *given, cwd=tmp_path)

    answer = json.loads(done.stdout)
    assert answer["query"] == QUERY
    assert set(answer) == {"query", "query_is_cut", "direct", "reasoning"}
    assert [hit["rank"] for hit in answer["direct"]["hits"]] == [1, 2]
    assert answer["reasoning"]["n_tokens"] >= 0
    assert not (tmp_path / "outputs").exists()  # a query leaves no run folder


def piped(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8"))


def test_queries_are_read_from_standard_input_a_line_each(call, monkeypatch):
    piped(monkeypatch, "\ufefffirst query\n\nsecond [one]\r\nthird: é\n".encode())  # a byte order mark

    lines = call("modes=[direct]").splitlines()

    assert [json.loads(line)["query"] for line in lines] == ["first query", "second [one]", "third: é"]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_json_is_the_same_whatever_the_terminal_can_show(call, monkeypatch, encoding):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))

    call("query=日本 é", "modes=[direct]")

    answer = json.loads(written.getvalue())
    assert answer["query"] == "日本 é"
    assert {hit["id"]: hit["text"] for hit in answer["direct"]["hits"]} == DOCUMENTS


def test_documents_without_text_are_kept_and_told(nano_folder, tmp_path, caplog):
    """As published collections have them: two of Cranfield's."""
    file = tmp_path / "some.jsonl"
    rows = [{"_id": "a", "text": "x"}, {"_id": "b", "text": ""}, {"_id": "c", "title": " ", "text": " "}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    found = SearchR3.load(nano_folder, cache_dir=tmp_path / "cache").read(file).search("x", mode="direct")

    assert {hit.id for hit in found.hits} == {"a", "b", "c"}
    assert "2 of 3 documents have neither title nor text" in caplog.text


def test_a_line_that_is_no_text_is_named(call, monkeypatch):
    piped(monkeypatch, b"first query\n\nna\xefve\n")

    with pytest.raises(UsageError, match="standard input, line 3: is not UTF-8"):
        call("modes=[direct]")


def test_a_query_that_is_not_read_whole_is_told(call, model, monkeypatch):
    fits = "word " * 3
    long = "word " * 200
    assert [model.embedder.truncated_count([text], "query") for text in (fits, long)] == [0, 1]
    piped(monkeypatch, f"{fits}\n{long}\n".encode())

    told = [json.loads(line)["query_is_cut"] for line in call().splitlines()]

    assert told == [False, True]
    monkeypatch.setenv("COLUMNS", "120")
    line = f"the query is longer than {model.embedder.limit('query')}: it was not read whole"
    assert line in call("format=table", f"query={long}").splitlines()
    assert line not in call("format=table", f"query={fits}", "modes=[direct]").splitlines()


def test_documents_that_are_not_read_whole_are_told_each_time(call, model, tmp_path, caplog):
    texts = ["word " * 3, "word " * 200, "other " * 300]
    assert [model.embedder.truncated_count([text], "document") for text in texts] == [0, 1, 1]
    rows = [json.dumps({"_id": str(row), "text": text}) for row, text in enumerate(texts)]
    (tmp_path / "long.jsonl").write_text("\n".join(rows))
    line = f"2 of 3 documents are longer than {model.embedder.limit('document')} and are cut"
    for _ in range(2):  # the second call reads the vectors of the first
        caplog.clear()
        call("modes=[direct]", "query=word", "corpus=long.jsonl")
        assert caplog.messages == [line]
    caplog.clear()
    call("modes=[direct]", "query=word")
    assert caplog.messages == []


def test_a_terminal_gets_the_reasoning_and_both_rankings(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")

    shown = call("format=table", "query=a list [bold]in[/bold] brackets", "k=5")

    assert "[bold]in[/bold]" in shown
    assert "[bold]x[/bold]" in shown  # a document's brackets are text
    assert "direct" in shown
    assert "reasoning, " in shown
    assert all(name in shown for name in DOCUMENTS)


def test_json_holds_escapes_for_what_a_terminal_obeys(call, monkeypatch):
    obeyed, written = "a \x9b2J \x7f \u202e b", io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "utf-8"))

    call(f"query={obeyed}", "modes=[direct]")

    text = written.getvalue().decode()
    assert json.loads(text)["query"] == obeyed
    assert not set(text) & set(obeyed) - set("a 2Jb")


def test_what_a_terminal_obeys_is_not_written(monkeypatch, capsys):
    obeyed = "\x1b[2J\x07\x9b31m\u202e"
    hit = Hit(1, f"id{obeyed}", 0.5, f"zero\u200cwidth{obeyed}\r\nnext")
    screen = Screen()
    screen.ask(f"query{obeyed}")
    printed = capsys.readouterr().out
    pieces = ["one\r", "two", obeyed, "\x0bthree\nfour"]
    printed += shown_at(monkeypatch, capsys, 100, pieces, Found("q", "direct", (hit,)))

    assert not set(printed) & set("\x1b\x07\x9b\u202e\r\x0b")
    assert "id\ufffd[2J\ufffd\ufffd31m\ufffd" in printed
    assert "zero\u200cwidth" in printed  # which Persian writes with
    assert "one two\ufffd[2J\ufffd\ufffd31m\ufffd three\nfour" in printed


def test_documents_that_moved_are_marked(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    before = Found("q", "direct", tuple(Hit(n, name, 0.5, "t") for n, name in enumerate("abc", 1)))
    after = Found("q", "reasoning", tuple(Hit(n, name, 0.5, "t") for n, name in enumerate("bad", 1)), "so", 1)

    Screen().show([before, after])

    lines = [line for line in capsys.readouterr().out.splitlines() if "0.500" in line]
    assert ["▲1" in lines[0], "▼1" in lines[1], "new" in lines[2]] == [True] * 3
    assert lines[0].count("▲") == 1  # the first column is what is compared with


def shown_at(monkeypatch, capsys, width, pieces, *found, before=None):
    monkeypatch.setenv("COLUMNS", str(width))
    screen = Screen()
    for piece in pieces:
        screen.say(piece)
    screen.show(found, before)
    return capsys.readouterr().out


def long_hits(mode):
    return Found(
        "q", mode, tuple(Hit(n, f"d{n}", 0.5, f"{'considerable words ' * 30}end{n}") for n in (1, 2))
    )


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_nothing_is_broken_or_beyond_the_edge_of_a_terminal(monkeypatch, capsys, width):
    pieces = [" A", " reason", "ing that", " goes", " on", *[" and on", "wards"] * 30, ".\nA", " line"]
    given = long_hits("direct"), long_hits("reasoning")

    lines = shown_at(monkeypatch, capsys, width, pieces, *given).splitlines()

    assert max(map(len, lines)) <= width
    places = [place for place, line in enumerate(lines) if line.strip().startswith(("direct", "reasoning"))]
    assert len(places) == (1 if width >= 80 else 2)  # side by side, or one below the other
    said = lines[: places[0]]
    text = "".join(pieces).strip()
    assert " ".join(said).split() == f"thinks: {text}".split()  # no word is broken
    assert all(len(line) > width - 12 for line in said[:-2])  # lines are full
    assert said[-1] == "A line"
    words = set(" ".join(lines[places[0] + 1 :]).replace("…", " ").split())
    assert {"considerable", "words", "d1", "0.500"} <= words
    n_rows = (len(lines) - places[0] - len(places)) / 2 / len(places)
    assert n_rows == 3  # score and id, and two lines of text


def test_ranks_beyond_the_list_say_how_far_a_document_came(monkeypatch, capsys):
    before = Found("q", "direct", (Hit(1, "a", 0.5, "t"),))
    after = Found("q", "reasoning", (Hit(1, "z", 0.5, "t"),), "so", 1)
    assert "▲41" in shown_at(monkeypatch, capsys, 80, [], before, after, before={"a": 1, "z": 42})
    assert "reasoning, 1 token " in shown_at(monkeypatch, capsys, 80, [], before, after)


def test_colours_are_for_terminals(monkeypatch, capsys):
    found = long_hits("direct")
    assert "\x1b[" not in shown_at(monkeypatch, capsys, 80, [], found)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[36m" in shown_at(monkeypatch, capsys, 80, [], found)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[36m" not in shown_at(monkeypatch, capsys, 80, [], found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["model.path=nowhere"], "not a model folder .*; there is no such folder$"),
        (["model.path=run"], r"model\.path=run: not a model folder .*; give run/model, which lies in it$"),
        (["cache_dir=taken"], "cache_dir=taken: taken is no folder; name another"),
        (["cache_dir=taken/below/it"], "cache_dir=taken/below/it: taken is no folder"),
        (["corpus=nowhere"], "no such folder or file"),
        (["corpus=."], "no corpus.jsonl"),
        (["modes=[thinking]"], "thinking does not exist"),
        (["modes=direct"], "a list is needed"),
        (["format=xml"], "table, jsonl"),
        (["query= "], "query= is empty"),
        (["k=0"], "k=0"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(call, change, words):
    Path("taken").write_text("a file")
    Path("run", "model").mkdir(parents=True)
    Path("run", "model", "search_r3.json").write_text("{}")
    with pytest.raises(UsageError, match=words):
        call("query=x", *change)
