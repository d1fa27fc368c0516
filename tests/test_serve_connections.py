"""Connections of the server: slow ones, silent ones, too many at once, and clients that leave."""

import http.client
import json
import socket
import threading
import time

import pytest
import serving
from serving import DOCUMENTS, ask, asked, events, refusal, running, until

searcher, port = serving.searcher, serving.port  # fixtures


def raw(port, data):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(data)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read()


HEAD = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_a_body_of_unknown_length_is_read_to_the_limit_alone(port):
    part = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    status, content = raw(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + 6 * part)
    assert status == 413
    refusal(status, content)


def test_a_body_that_does_not_come_and_an_answer_that_takes_too_long_end_in_time(searcher):
    with running(searcher, timeout_s=0.05) as (port, desk):
        status, content = raw(port, HEAD + b"Content-Length: 100\r\n\r\n{")
        assert status == 408
        assert "0.05 seconds" in refusal(status, content)

        held = threading.Event()
        desk.worker.submit(held.wait)
        code, _, content = ask(port, "/api/search", {"query": "x"})
        assert code == 504
        assert "no answer within 0.05 seconds" in refusal(code, content)
        told = events(ask(port, "/api/stream", {"query": "x"})[2])
        assert told[-1][0] == "error"
        assert "0.05 seconds" in told[-1][1]["error"]
        held.set()


UNFINISHED = {
    "nothing": b"",
    "a part of the first line": b"GE",
    "a part of the headers": b"GET /api/health HTTP/1.1\r\nHost: 127",
    "a part of a second request": b"GET /api/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET / HT",
}


@pytest.mark.parametrize("sent", UNFINISHED.values(), ids=UNFINISHED)
def test_a_connection_on_which_no_request_comes_is_closed(searcher, sent):
    with (
        running(searcher, timeout_s=0.3) as (port, _),
        socket.create_connection(("127.0.0.1", port), timeout=4) as client,
    ):
        client.sendall(sent)
        while client.recv(4096):  # uvicorn's own limit for a silent connection is 5 seconds, above the 4
            pass


def test_a_slow_request_is_answered_and_its_connection_serves_the_next(searcher):
    head = b"GET /api/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with (
        running(searcher, timeout_s=2) as (port, _),
        socket.create_connection(("127.0.0.1", port), timeout=20) as client,
    ):
        for _ in range(3):
            for part in (head[:20], head[20:]):
                client.sendall(part)
                time.sleep(0.4)
            assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")


def test_one_request_too_many_is_refused_and_those_that_wait_are_answered(searcher):
    with running(searcher, max_requests=2) as (port, desk):
        held, codes = threading.Event(), []
        desk.worker.submit(held.wait)
        waiting = [
            threading.Thread(target=lambda: codes.append(ask(port, "/api/search", {"query": "x"})[0]))
            for _ in range(2)
        ]
        for thread in waiting:
            thread.start()
        until(lambda: len(desk.works) == 2)

        code, headers, content = ask(port, "/api/stream", {"query": "x"})
        assert code == 503
        assert headers["retry-after"] == "1"
        assert "2 requests" in refusal(code, content)
        assert ask(port, "/api/health")[0] == 200
        held.set()
        for thread in waiting:
            thread.join()
        assert codes == [200, 200]
        until(lambda: not desk.works)


@pytest.mark.parametrize("path", ["/api/search", "/api/stream", "/api/inspect"])
def test_a_client_that_leaves_frees_its_place(searcher, path):
    with running(searcher) as (port, desk):
        held = threading.Event()
        desk.worker.submit(held.wait)
        body = {"query": "x"} | ({"id": DOCUMENTS[0][0]} if path == "/api/inspect" else {})
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        until(lambda: desk.works)
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        until(lambda: not desk.works)  # while the model is still busy with something else
        held.set()
        assert asked(port, "/api/search", {"query": "x"})["query"] == "x"
