"""The server, asked over real connections: answers, limits, and what it refuses."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import serving
from serving import DOCUMENTS, ask, asked, events, refusal, running

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.errors import UsageError
from search_r3.serve import check, listening
from search_r3.web.app import FILES
from search_r3.web.guard import host_name
from tests.command import ENVIRONMENT, run

searcher, port = serving.searcher, serving.port  # fixtures
QUERY = 'what\'s <b>a</b> (set), "日本"?\u2028'


# Answers


def test_both_rankings_are_those_of_the_class(port, searcher):
    answer = asked(port, "/api/search", {"query": QUERY, "k": 3})

    assert answer["query"] == QUERY
    assert answer["n_documents"] == len(DOCUMENTS)
    texts = {name: (title, f"{title} {text}".strip()) for name, title, text in DOCUMENTS}
    for mode in ("direct", "reasoning"):
        found = searcher.search(QUERY, 3, mode)
        hits = answer[mode]["hits"]
        assert [(h["rank"], h["id"], h["score"]) for h in hits] == [
            (h.rank, h.id, h.score) for h in found.hits
        ]
        for hit in hits:
            assert hit["title"] == texts[hit["id"]][0]
            assert hit["text"] == texts[hit["id"]][1][:1000]
            assert hit["is_cut"] == (len(texts[hit["id"]][1]) > 1000)
    assert answer["reasoning"]["reasoning"] == searcher.search(QUERY).reasoning


def test_moves_are_between_the_ranks_in_all_documents(port, searcher):
    answer = asked(port, "/api/search", {"query": QUERY, "k": 1})
    whole = {
        mode: [hit.id for hit in searcher.search(QUERY, len(DOCUMENTS), mode).hits]
        for mode in ("direct", "reasoning")
    }
    for mode in whole:
        (hit,) = answer[mode]["hits"]
        direct, reasoned = (whole[each].index(hit["id"]) + 1 for each in ("direct", "reasoning"))
        assert (hit["direct_rank"], hit["reasoning_rank"]) == (direct, reasoned)
        assert hit["moved_up"] == direct - reasoned


def test_a_stream_tells_the_direct_hits_then_the_reasoning_word_by_word_then_all(port):
    status, headers, content = ask(port, "/api/stream", {"query": QUERY})
    told = events(content)
    names = [name for name, _ in told]

    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert names[:2] == ["waiting", "direct"]
    assert names[-1] == "done"
    assert set(names[2:-1]) == {"text"}
    answer = asked(port, "/api/search", {"query": QUERY})
    assert told[-1][1] == answer
    assert (
        "".join(data["text"] for name, data in told if name == "text").strip()
        == answer["reasoning"]["reasoning"]
    )
    assert [hit["id"] for hit in told[1][1]["hits"]] == [hit["id"] for hit in answer["direct"]["hits"]]


@pytest.mark.parametrize("document", [name for name, _, _ in DOCUMENTS])
def test_an_inspected_document_has_its_rank_after_every_step(port, searcher, document):
    answer = asked(port, "/api/inspect", {"query": QUERY, "id": document})
    found = searcher.search(QUERY, len(DOCUMENTS))
    embedder = searcher.embedder
    prompt = embedder.encoder.reasoning_prompts([QUERY])[0]
    documents = searcher.embed_documents(searcher.corpus.texts)
    row = searcher.corpus.row_of[document]

    assert answer["document"]["id"] == document
    assert answer["document"]["text"] == searcher.corpus.texts[row]
    assert answer["steps"][0]["n_tokens"] == 0
    assert answer["steps"][-1]["n_tokens"] == found.n_tokens
    assert answer["steps"][-1]["rank"] == [hit.id for hit in found.hits].index(document) + 1
    for step in answer["steps"]:  # each from a separate full pass
        ids = [*prompt, *found.token_ids[: step["n_tokens"]], embedder.embed_token_id]
        cosines = documents @ embedder.embed_ids([ids])[0].numpy()
        assert np.diff(np.sort(cosines)).min() > 1e-5
        assert step["rank"] == 1 + (cosines > cosines[row]).sum()
        assert step["score"] == pytest.approx(cosines[row], abs=1e-5)
    direct = [hit.id for hit in searcher.search(QUERY, len(DOCUMENTS), "direct").hits]
    assert answer["direct"]["rank"] == direct.index(document) + 1


def test_the_description_of_the_api_names_each_operation_once(port):
    status, _, body = ask(port, "/api/openapi.json")
    paths = json.loads(body)["paths"]
    assert status == 200
    assert sorted(paths) == ["/api/health", "/api/inspect", "/api/search", "/api/stream"]
    names = [operation["operationId"] for each in paths.values() for operation in each.values()]
    assert len(set(names)) == len(names)
    assert ask(port, "/api/health", method="HEAD")[0] == 200


def test_health_says_what_is_served(port):
    status, _, content = ask(port, "/api/health")
    health = json.loads(content)
    assert (status, health["status"]) == (200, "ok")
    assert {"model": "m", "corpus": "c", "k": 10, "max_k": 20}.items() <= health.items()


# Refusals


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"query": " \n"}, 422, "query: it is empty"),
        ({"query": "x" * 61}, 422, "61 characters; at most 60"),
        ({"query": "a b c d e f g h i j k l m n o p q r s t u v w x y z 1 2"}, 422, "at most 24 tokens"),
        ({"query": "x", "k": 0}, 422, "from 1 to 20, got 0"),
        ({"query": "x", "k": 21}, 422, "from 1 to 20, got 21"),
        ({"query": "x", "k": "3"}, 422, "k: "),
        ({"query": "x", "k": 2.5}, 422, "k: "),
        ({"query": "x", "k": True}, 422, "k: "),
        ({"query": "x", "kk": 3}, 422, "kk: "),
        ({"query": ["x"]}, 422, "query: "),
        ({"k": 3}, 422, "query: "),
        ([1], 422, ""),
        (b'{"query": "\\ud800"}', 422, "query: "),
        (b'{"query": "\xff"}', 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"[" * 15_000, 400, ""),
        (b"x" * 20_000, 413, "at most 17,104 bytes"),
    ],
)
@pytest.mark.parametrize("path", ["/api/search", "/api/stream"])
def test_what_cannot_be_searched_is_one_line(port, path, body, status, words):
    code, _, content = ask(port, path, body)
    assert (code, words in refusal(code, content)) == (status, True), content


def test_a_document_that_the_corpus_does_not_have(port):
    code, _, content = ask(port, "/api/inspect", {"query": "x", "id": "nowhere"})
    assert code == 404
    assert "no such document" in refusal(code, content)


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/../serve.py",
        "/..%2fserve.py",
        "/style.css/../../serve.py",
        "/static/style.css",
        "//etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/style.css%00.html",
        "/docs",
        "/redoc",
        "/index.html",
        "/page/index.html",
    ],
)
def test_only_the_files_of_the_list_are_given(port, path):
    code, _, content = ask(port, path)
    assert code == 404
    refusal(code, content)


@pytest.mark.parametrize("path", FILES)
def test_every_answer_says_that_nothing_comes_from_elsewhere(port, path):
    status, headers, content = ask(port, path)
    assert status == 200
    assert content
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {"'self'", "'none'"} == set(policy.values())
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-type"].startswith(FILES[path][1].split(";")[0])
    assert ask(port, path, method="HEAD")[2] == b""
    assert b"//" not in content.replace(b"http://www.w3.org/2000/svg", b"") or path.endswith(".js")


@pytest.mark.parametrize(
    ("host", "is_taken"),
    [
        ("localhost", True),
        ("LOCALHOST.:99", True),
        ("127.0.0.1:8080", True),
        ("[::1]:80", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost@evil.example", False),
        ("192.168.0.1", False),
        ("", False),
        ("local host", False),
    ],
)
def test_a_name_that_is_not_ours_is_not_answered_to(port, host, is_taken):
    code, headers, content = ask(port, "/api/health", Host=host)
    assert code == (200 if is_taken else 403)
    assert "content-security-policy" in headers
    if not is_taken:
        assert "allowed_hosts=" in refusal(code, content)


def test_further_names_and_every_address_where_it_listens_everywhere(searcher):
    with running(searcher, host="0.0.0.0", allowed_hosts=("Search.example.",)) as (port, _):
        codes = [
            ask(port, "/api/health", Host=host)[0]
            for host in ("search.example", "192.168.0.1:80", "localhost", "evil.example")
        ]
    assert codes == [200, 200, 200, 403]


@pytest.mark.parametrize(
    ("header", "name"), [("a.b:1", "a.b"), ("[::1]", "::1"), ("a:b", None), ("a/b", None), ("[::1", None)]
)
def test_names_of_hosts(header, name):
    assert host_name(header) == name


def test_pages_of_other_sites_cannot_have_it_work(port):
    body = {"query": "x"}
    own = f"http://127.0.0.1:{port}"
    assert ask(port, "/api/search", body, Origin=own)[0] == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"https://{own}"):
        code, _, content = ask(port, "/api/search", body, Origin=origin)
        assert code == 403
        assert "another site" in refusal(code, content)
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert ask(port, "/api/search", body, Content_Type=kind)[0] == 415
    assert "access-control-allow-origin" not in ask(port, "/api/search", body, Origin=own)[1]
    assert ask(port, "/api/search", method="OPTIONS", Origin="http://evil.example")[0] >= 400
    assert ask(port, "/api/search")[0] == 405


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "//[x]"])
def test_an_origin_that_cannot_be_read_is_one_of_another_site(port, origin, capfd):
    code, headers, content = ask(port, "/api/search", {"query": "x"}, Origin=origin)
    assert code == 403
    assert "content-security-policy" in headers
    assert "another site" in refusal(code, content)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH"])
def test_another_method_is_told_apart_from_another_type(port, method):
    for path, status in (("/api/search", 405), ("/", 405), ("/api/nothing", 404)):
        code, _, content = ask(port, path, method=method)
        assert code == status
        assert "JSON" not in refusal(code, content)
    assert ask(port, "/api/search", method=method, Origin="http://evil.example")[0] == 403


def test_an_address_with_a_slash_more_is_another_one(port):
    """A redirection would have no JSON, and curl does not follow it."""
    for path, body in (("/api/search/", {"query": "x"}), ("/api/health/", None), ("/style.css/", None)):
        code, _, content = ask(port, path, body)
        assert code == 404
        assert refusal(code, content) == "there is nothing at this address"


def test_health_is_asked_without_a_body(port):
    code, headers, content = ask(port, "/api/health", method="HEAD")
    assert (code, content) == (200, b"")
    assert int(headers["content-length"]) == len(ask(port, "/api/health")[2])


def test_reasonings_are_kept_for_a_while_and_not_for_ever(searcher):
    from search_r3.web.answers import KEPT, Answers

    answers = Answers(searcher, None, 60)
    for number in range(KEPT + 3):
        answers.search(f"query {number}", 1, lambda *news: None)
    assert list(answers.kept) == [f"query {number}" for number in range(3, KEPT + 3)]
    news = []
    answers.inspect("query 9", DOCUMENTS[0][0], lambda *each: news.append(each))
    assert news == []  # nothing was written anew
    answers.inspect("query 0", DOCUMENTS[0][0], lambda *each: news.append(each))
    assert news[0][0] == "direct"


# The command


def composed(*overrides):
    with ConfigSource() as source:
        return compose("serve", list(overrides), source).config


def test_what_cannot_be_served_is_refused(nano_folder, tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "text": "a text"}\n')
    given = [f"model.path={nano_folder}", f"corpus={tmp_path}"]
    check(composed(*given), False)
    check(composed(*given, "allowed_hosts=['my-pc', '10.0.0.7', '::1', '[::1]', search.example.org.]"), False)
    for change, words in [
        (["model.path=nowhere"], "not a model folder"),
        (["corpus=nowhere"], "no such folder"),
        (["k=101"], "max_k=100"),
        (["port=65536"], "at most 65535"),
        (["timeout_s=0"], "above 0"),
        (["max_requests=0"], "at least 1"),
        (["allowed_hosts=search.example.org"], "a list is needed"),
        (["allowed_hosts=['search.example.org:8080']"], "not the name of a host"),
        (["allowed_hosts=['https://search.example.org']"], "not the name of a host"),
        (["allowed_hosts=['*.example.org']"], "not the name of a host"),
    ]:
        with pytest.raises(UsageError, match=words):
            check(composed(*given, *change), False)
    with pytest.raises(UsageError, match="multirun"):
        check(composed(*given), True)


def test_a_port_in_use_and_an_address_elsewhere_are_refused():
    with listening("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UsageError, match=f"port={port}: Address already in use"):
            listening("127.0.0.1", port)
    with pytest.raises(UsageError, match="no such address"):
        listening("no host", 0)
    with pytest.raises(UsageError, match=r"host=198\.51\.100\.1: this machine does not have"):
        listening("198.51.100.1", 0)  # kept for documentation, and nobody's


@pytest.fixture(scope="module")
def started(nano_folder, tmp_path_factory):
    """The command as a user starts it, its port and what it prints."""
    folder = tmp_path_factory.mktemp("served")
    rows = [{"_id": f"d{number}", "text": f"text {number}"} for number in range(3)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [f"model.path={nano_folder}", f"corpus={folder}", "port=0", f"cache_dir={folder / 'cache'}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "src.serve", *given],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    lines = [process.stdout.readline() for _ in range(3)]
    yield process, lines
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_the_command_says_where_it_is_answers_and_ends_by_ctrl_c(started, nano_folder):
    process, lines = started
    assert "3 documents" in lines[1]
    port = int(lines[2].split("http://127.0.0.1:")[1].split("/")[0])
    assert len(asked(port, "/api/search", {"query": "text 1"})["direct"]["hits"]) == 3

    other = run("serve", f"model.path={nano_folder}", f"corpus={nano_folder}/README.md", f"port={port}")
    assert (other.returncode, other.stdout) == (2, "")
    assert other.stderr.startswith(
        f"error: port={port}: Address already in use"
    )  # and the corpus was not read
    assert len(other.stderr.splitlines()) == 1

    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "ended\n")
    assert [line.split(":")[0] for line in err.splitlines()] == ["embed"]  # how far the encoding is
