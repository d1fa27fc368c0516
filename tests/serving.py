"""The server as the tests run it, in a thread, and how it is asked; a module takes the fixtures by name."""

import contextlib
import http.client
import json
import threading
import time

import pytest

from search_r3 import SearchR3
from search_r3.serve import listening, server_of
from search_r3.web.app import Settings

DOCUMENTS = [
    ("d/1", "Adding", "def add(a, b): return a + b"),
    ("d 2", "", "def mul(a, b): return a * b"),
    ('"><script>alert(1)</script>', "<b>neg</b>", "def neg(a): return -a  # <img src=x onerror=alert(2)>"),
    ("ünï/日本 \u2028?#%00", "Grüße", "schöne Grüße aus dem Index, 日本"),
    ("../../etc/passwd", "", "x" * 1500),
]


def searcher_of(embedder, folder):
    """A model that has read `DOCUMENTS`, written into a folder."""
    rows = [{"_id": name, "title": title, "text": text} for name, title, text in DOCUMENTS]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SearchR3(embedder, folder / "cache").read(folder, progress=False)


@contextlib.contextmanager
def running(searcher, **limits):
    """A server on a free port; the port and its desk."""
    given = {"k": 10, "max_k": 20, "max_query_characters": 60, "max_requests": 4, "timeout_s": 60}
    server, desk = server_of(searcher, Settings(**given | limits))
    with listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1], desk
        finally:
            desk.close()
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def searcher(loaded_embedder, tmp_path_factory):
    return searcher_of(loaded_embedder, tmp_path_factory.mktemp("collection"))


@pytest.fixture(scope="module")
def port(searcher):
    """That a server with generous limits listens on."""
    with running(searcher, about={"model": "m", "corpus": "c"}) as (number, _):
        yield number


def ask(port, path, body=None, method=None, **headers):
    """Status, headers and body of an answer; a body that is no text is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    given = {"Content-Type": "application/json"} if body is not None else {}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, given)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def asked(port, path, body, status=200):
    code, _, content = ask(port, path, body)
    assert code == status, content
    return json.loads(content)


def refusal(status, content):
    """The one line of an error."""
    error = json.loads(content)
    assert status >= 400
    assert error.keys() == {"error"}
    assert error["error"]
    assert "\n" not in error["error"]
    return error["error"]


def events(content):
    parts = [part.split("\n") for part in content.decode().strip("\n").split("\n\n")]
    assert all(len(part) == 2 for part in parts)
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in parts]


def until(is_so, limit_s=60):
    end = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.005)
