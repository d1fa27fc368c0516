"""The addresses of the server.

`GET /api/health`; `POST /api/search` with `{"query", "k"}` answers at once, `POST /api/stream` the same as
server-sent events while it is found (`waiting`, `direct`, `text`, `done`, `error`); `POST /api/inspect` with
`{"query", "id"}`. What is refused or fails is `{"error": "one line"}`. The page's files are a fixed list: no
address is ever turned into a path.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp

from search_r3.web.answers import Answers, Refused
from search_r3.web.desk import Desk, Job, Work
from search_r3.web.guard import Guard

log = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/draw.js": ("draw.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Everything that is served besides the API."""

BYTES_PER_CHARACTER = 12
"""Of JSON that writes every character of a query as two escapes."""

NOT_JSON = "the request is not JSON"
BODY_BESIDES = 16_384
"""Bytes for an id, and for the rest of a request."""


@dataclass(frozen=True)
class Settings:
    """What the server takes.

    Attributes:
        k: documents where a request does not say how many.
        max_k: the most documents of one request.
        max_query_characters: of one query.
        max_requests: being answered or waiting.
        timeout_s: of one request, waiting included.
        host: the address listened on.
        allowed_hosts: further names that it may be reached by.
        about: what the page says of model and corpus.
    """

    k: int
    max_k: int
    max_query_characters: int
    max_requests: int
    timeout_s: float
    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    about: dict | None = None


class SearchRequest(BaseModel):
    """What a search is asked with."""

    model_config = ConfigDict(extra="forbid", strict=True)
    query: str
    k: int | None = None


class InspectRequest(BaseModel):
    """A query, and a document of the corpus."""

    model_config = ConfigDict(extra="forbid", strict=True)
    query: str
    id: str


def build_app(answers: Answers, desk: Desk, settings: Settings) -> ASGIApp:
    """The whole server, guarded.

    Args:
        answers: of a model and a corpus.
        desk: that lets requests wait.
        settings: the limits.
    """
    pages = {"docs_url": None, "redoc_url": None, "openapi_url": "/api/openapi.json"}
    app = FastAPI(title="Search-R3", redirect_slashes=False, **pages)  # every refusal is JSON
    _add_errors(app)
    for path, (name, kind) in FILES.items():
        app.add_api_route(path, _file(name, kind), methods=["GET", "HEAD"], include_in_schema=False)

    def search_job(asked: SearchRequest) -> Job:
        k = settings.k if asked.k is None else asked.k
        if not 1 <= k <= settings.max_k:
            raise Refused(422, f"k: must be a whole number from 1 to {settings.max_k}, got {k}")
        answers.check_query(asked.query)
        return lambda say: answers.search(asked.query, k, say)

    @app.head("/api/health", include_in_schema=False)
    @app.get("/api/health")
    async def health() -> JSONResponse:
        limits = {"k": settings.k, "max_k": settings.max_k, "max_query": settings.max_query_characters}
        return JSONResponse({"status": "ok", "at_work": len(desk.works), **limits, **(settings.about or {})})

    @app.post("/api/search")
    async def search(asked: SearchRequest, request: Request) -> JSONResponse:
        return await _answered(desk.take(search_job(asked)), request)

    @app.post("/api/stream")
    async def stream(asked: SearchRequest) -> StreamingResponse:
        work = desk.take(search_job(asked))
        return StreamingResponse(_events(work, len(desk.works) - 1), media_type="text/event-stream")

    @app.post("/api/inspect")
    async def inspect(asked: InspectRequest, request: Request) -> JSONResponse:
        answers.check_query(asked.query)
        work = desk.take(lambda say: answers.inspect(asked.query, asked.id, say))
        return await _answered(work, request)

    max_body = BYTES_PER_CHARACTER * settings.max_query_characters + BODY_BESIDES
    return Guard(app, settings.host, settings.allowed_hosts, max_body, settings.timeout_s)


def _file(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    content = (PAGE / name).read_bytes()

    async def give() -> Response:
        return Response(content, media_type=kind)

    return give


async def _answered(work: Work, request: Request) -> JSONResponse:
    """The answer; where the client leaves before it, the work ends."""
    answer, leaving = (asyncio.ensure_future(each) for each in (_last(work), _left(request)))
    try:
        await asyncio.wait({answer, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise Refused(503, "nobody waits for the answer any more")
        return JSONResponse(answer.result())
    finally:
        answer.cancel()
        leaving.cancel()


async def _last(work: Work) -> dict:
    answer: dict = {}
    async for name, data in work.news():
        answer = data if name == "done" else answer
    return answer


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(work: Work, n_ahead: int) -> AsyncIterator[str]:
    """Server-sent events of a search; what goes wrong by then is an event too."""
    try:
        yield _event("waiting", {"ahead": n_ahead})
        async with aclosing(work.news()) as news:
            async for name, data in news:
                yield _event(name, data)
    except Refused as refused:
        yield _event("error", {"error": str(refused)})
    except Exception as error:
        log.exception("a search failed")
        yield _event("error", {"error": _line(error)})


def _event(name: str, data: dict) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def _add_errors(app: FastAPI) -> None:
    """Every error is `{"error": "one line"}`."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status == 503 else None
        return JSONResponse({"error": str(error)}, error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        if first["type"] == "json_invalid":
            return JSONResponse({"error": NOT_JSON}, 400)
        message = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        return JSONResponse({"error": f"{place}: {message}" if place else message}, 422)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        words = {
            400: NOT_JSON,
            404: "there is nothing at this address",
            405: "this address is asked in another way",
        }
        why = words.get(error.status_code, str(error.detail))
        return JSONResponse({"error": why}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": _line(error)}, 500)


def _line(error: Exception) -> str:
    """What the server was not made for, in a line; the traceback is on its standard error."""
    return f"the server failed ({type(error).__name__}); its terminal says why"
