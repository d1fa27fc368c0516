"""Serves a page to search with: `python -m src.serve model.path=<folder> corpus=<folder or JSONL>`.

The address is taken before the model is loaded, so that one in use costs no waiting. Ctrl-C ends it.
"""

import contextlib
import errno
import importlib.util
import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, ListConfig

from search_r3.cli.command import entry_point
from search_r3.cli.entry import Entry
from search_r3.cli.last_resort import run_command
from search_r3.cli.searching import check_searched, opened
from search_r3.errors import UsageError

if TYPE_CHECKING:
    import uvicorn

    from search_r3.api import SearchR3
    from search_r3.web.app import Settings
    from search_r3.web.desk import Desk

BACKLOG = 64
"""Connections that wait while the model is loaded."""

CONNECTIONS = 128
"""Open at once; many idle ones cost little."""


def check(config: DictConfig, is_sweep: bool) -> None:
    """Refuses what cannot be served, before anything is loaded.

    Raises:
        UsageError: With what to give.
    """
    if is_sweep:
        raise UsageError("src.serve serves one model; --multirun does not apply")
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"src.serve needs {' and '.join(missing)}: make setup, or pip install search-r3[serve]"
        )
    check_searched(config, ["reasoning"])
    if config.k > config.max_k:
        raise UsageError(f"k={config.k}: at most max_k={config.max_k} documents are shown")
    _check_names(config.allowed_hosts)


def _check_names(names: ListConfig) -> None:
    """Refuses names that no Host header can hold, which would be ignored.

    Raises:
        UsageError: With the name and the rule.
    """
    from search_r3.web.guard import is_host

    if not isinstance(names, ListConfig):
        raise UsageError(f"allowed_hosts={names}: a list is needed, as allowed_hosts=[search.example.org]")
    for name in map(str, names):
        if not is_host(name):
            raise UsageError(
                f"allowed_hosts: {name!r} is not the name of a host; without scheme, port, path and *, as "
                "search.example.org"
            )


def run(config: DictConfig) -> None:
    """Takes the address, loads the model and the corpus, and answers until Ctrl-C."""
    listener = listening(str(config.host), config.port)
    with listener:
        host, port = listener.getsockname()[:2]
        searcher = opened(config)
        _tell(searcher, config, host, port)
        server, desk = server_of(searcher, settings_of(config, searcher), config.max_new_tokens)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again when it has ended
            server.run(sockets=[listener])
        desk.close()
    print("ended")


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens, so that whoever connects while the model is loaded waits.

    Raises:
        UsageError: If the address is not one of this machine, or is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise UsageError(f"host={host}: there is no such address") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(f"host={host}: this machine does not have this address") from None
        raise UsageError(
            f"port={port}: {error.strerror} ({host}); choose another port, or 0 for a free one"
        ) from None
    return listener


def settings_of(config: DictConfig, searcher: "SearchR3") -> "Settings":
    """The limits, and what the page says of model and corpus."""
    from search_r3.web.app import Settings

    corpus = Path(config.corpus).resolve()
    about = {
        "model": "/".join(
            Path(config.model.path).resolve().parts[-2:]
        ),  # whoever may search need not know more
        "corpus": corpus.name if corpus.is_dir() else corpus.name.removesuffix(".gz").removesuffix(".jsonl"),
        "n_documents": len(searcher.corpus),
    }
    return Settings(
        k=config.k,
        max_k=config.max_k,
        max_query_characters=config.max_query_characters,
        max_requests=config.max_requests,
        timeout_s=config.timeout_s,
        host=str(config.host),
        allowed_hosts=tuple(map(str, config.allowed_hosts)),
        about=about,
    )


def server_of(
    searcher: "SearchR3", settings: "Settings", max_new_tokens: int | None = None
) -> "tuple[uvicorn.Server, Desk]":
    """A server that is not running yet, and where its requests wait.

    Args:
        searcher: that has read its corpus.
        settings: the limits.
        max_new_tokens: the most tokens of reasoning; None for the limit of the folder.
    """
    import uvicorn

    from search_r3.web.answers import Answers
    from search_r3.web.app import build_app
    from search_r3.web.connections import limited
    from search_r3.web.desk import Desk

    desk = Desk(settings.max_requests, settings.timeout_s)
    app = build_app(Answers(searcher, max_new_tokens, settings.max_query_characters), desk, settings)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: object) -> None:
            desk.close()
            super().handle_exit(sig, frame)

    quiet = {"log_level": "warning", "access_log": False, "server_header": False}
    plain = {"http": limited(settings.timeout_s), "ws": "none", "loop": "asyncio", "lifespan": "off"}
    ends = {"limit_concurrency": CONNECTIONS, "timeout_graceful_shutdown": 3}
    return Server(uvicorn.Config(app, **quiet, **plain, **ends)), desk


def _tell(searcher: "SearchR3", config: DictConfig, host: str, port: int) -> None:
    """Where to look, and a warning where others can."""
    name = f"[{host}]" if ":" in host else host
    print(f"model     {config.model.path}")
    print(f"corpus    {config.corpus}, {len(searcher.corpus):,} documents")
    print(f"serving   http://{name}:{port}/  (Ctrl-C ends it)", flush=True)
    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        print("warning   whoever reaches this machine can search: there is no login", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; `argv` is what follows its name, else the process's own."""
    return entry_point(Entry("serve", run, check, is_recorded=False), argv)


if __name__ == "__main__":
    run_command(main)
