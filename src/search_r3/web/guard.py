"""What stands before every request: whom it is addressed to, where it comes from, and how large it is.

A page of another site cannot read answers of this server, since it sends no permission to (CORS). Two ways
around that are closed here: a name that an attacker's DNS points at this machine (the Host header must be one
of ours), and requests that a page of another site sends blindly (Origin, and a type that needs permission).
"""

import asyncio
import ipaddress
import json
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from search_r3.web.answers import Refused

LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/@\s]+)(?::\d{1,5})?")


def host_name(header: str) -> str | None:
    """The name or address of a Host header, in lower case, without port and brackets; None if it is no host.

    >>> host_name("LOCALHOST:8080"), host_name("[::1]:80"), host_name("a@b")
    ('localhost', '::1', None)
    """
    match = _HOST.fullmatch(header)
    return match[1].strip("[]").lower().removesuffix(".") if match else None


def is_address(name: str) -> bool:
    """Whether it is an IP address, which no DNS can point elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_host(name: str) -> bool:
    """Whether a Host header can hold it beside a port: a name or an address, and no URL or pattern.

    >>> is_host("search.example.org"), is_host("[::1]"), is_host("a.b:8080"), is_host("*.b")
    (True, True, False, False)
    """
    return _NAME.fullmatch(name) is not None or is_address(name.strip("[]"))


class Guard:
    """Refuses what no page of ours sends, and gives every answer its headers.

    Args:
        app: that answers.
        listened: the address that the server listens on.
        names: further ones that it may be reached by.
        max_body: bytes.
        timeout_s: within which a body must arrive.
    """

    def __init__(
        self, app: ASGIApp, listened: str, names: Collection[str], max_body: int, timeout_s: float
    ) -> None:
        self.app = app
        self.names = {name.strip("[]").lower().removesuffix(".") for name in (listened, *names)}
        is_bound = is_address(listened)
        self.is_everywhere = is_bound and ipaddress.ip_address(listened).is_unspecified
        if listened == "localhost" or (is_bound and ipaddress.ip_address(listened).is_loopback):
            self.names |= set(LOOPBACK)
        if self.is_everywhere:
            self.names |= {"localhost"}
        self.max_body, self.timeout_s = max_body, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or refuses it."""
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            self._check_headers(scope, Headers(scope=scope))
            body = await asyncio.wait_for(self._body(receive), self.timeout_s)
        except TimeoutError:
            await refuse(
                send_with_headers, 408, f"the request did not arrive within {self.timeout_s:g} seconds"
            )
        except Refused as refused:
            await refuse(send_with_headers, refused.status, str(refused))
        else:
            if body is not None:
                await self.app(scope, _replayed(body, receive), send_with_headers)

    def _check_headers(self, scope: Scope, headers: Headers) -> None:
        hosts = headers.getlist("host")
        name = host_name(hosts[0]) if len(hosts) == 1 else None
        if name is None or not self._is_ours(name):
            asked = "no host" if name is None else repr(name[:100])
            raise Refused(403, f"this server does not answer to {asked}; allowed_hosts= names further ones")
        if scope["method"] in ("GET", "HEAD"):
            return
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != hosts[0].lower():
            raise Refused(403, "requests from pages of another site are not answered")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":  # no address is asked in another way
            raise Refused(415, "a request must be JSON, of the type application/json")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length) > self.max_body:
            raise Refused(413, self._too_large())

    def _is_ours(self, name: str) -> bool:
        return name in self.names or (self.is_everywhere and is_address(name))

    def _too_large(self) -> str:
        return f"the request is too large; at most {self.max_body:,} bytes are read"

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None where the client has left."""
        parts: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            if sum(map(len, parts)) > self.max_body:
                raise Refused(413, self._too_large())
            if not message.get("more_body"):
                return b"".join(parts)


def _netloc(origin: str) -> str | None:
    """Host and port of an Origin header in lower case; None where it cannot be read."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, and then waits for the client to leave."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def refuse(send: Send, status: int, why: str) -> None:
    """Sends `{"error": why}`."""
    content = json.dumps({"error": why}, ensure_ascii=False).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),  # of a body that was not read
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
