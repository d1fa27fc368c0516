"""A Hugging Face hub on this machine: repositories in memory, at the addresses of huggingface_hub."""

import base64
import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "1" * 40


class Hub(ThreadingHTTPServer):
    """Holds what is committed: `files[repository][path]`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def environment(self, home: Path) -> dict[str, str]:
        """Variables with which huggingface_hub knows this hub and nothing else; its cache is in `home`."""
        unset = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"), "0")
        return {
            **os.environ,
            **unset,
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_TOKEN": "hf_any",
        }


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        """Is silent."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        files = self.server.files.setdefault("me/model", {})
        if path == "/api/repos/create":
            asked = json.loads(body)
            assert (asked.get("organization"), asked["name"]) == ("me", "model")
            self._tell({"url": f"{self.server.address}/me/model", "name": "me/model", "id": "1"})
        elif path == "/api/validate-yaml":
            self._tell({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self._tell({"files": [{"path": file["path"], **modes} for file in json.loads(body)["files"]]})
        elif path.endswith("/commit/main"):
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            url = f"{self.server.address}/me/model/commit/{COMMIT}"
            self._tell({"success": True, "commitUrl": url, "commitOid": COMMIT})
        else:
            self._refuse()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        files = self.server.files.get("me/model", {})
        if path.startswith("/api/models/me/model/tree/"):
            sizes = {name: len(content) for name, content in files.items()}
            self._tell([{"type": "file", "path": name, "size": sizes[name], "oid": COMMIT} for name in sizes])
        elif path.startswith("/api/models/me/model"):
            siblings = [{"rfilename": name} for name in files]
            self._tell({"id": "me/model", "modelId": "me/model", "sha": COMMIT, "siblings": siblings})
        elif path.startswith("/me/model/resolve/"):
            name = path.split("/", 5)[5]
            self._give(files[name]) if name in files else self._refuse("EntryNotFound")
        else:
            self._refuse()

    do_HEAD = do_GET

    def _tell(self, answer: object) -> None:
        self._send(json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _give(self, content: bytes) -> None:
        etag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        self._send(content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def _refuse(self, code: str = "RepoNotFound") -> None:
        self._send(b"", {"X-Error-Code": code, "X-Repo-Commit": COMMIT}, 404)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextlib.contextmanager
def local_hub() -> Iterator[Hub]:
    """A hub that runs in a thread of its own."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
