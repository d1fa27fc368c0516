"""Connections on which no request comes are closed: a client that sends a part of one may not stay for ever.

uvicorn closes a connection that is silent after an answer, and waits without end for the rest of a request's
headers and for the first request of all. The body and the answer have limits of their own (`Guard`, `Desk`).
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


def limited(timeout_s: float) -> type[H11Protocol]:
    """A protocol of uvicorn that closes a connection whose request's headers take longer than `timeout_s`."""

    class Limited(H11Protocol):
        limit: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._begin()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._is_answering():
                self._end()
            elif self.limit is None:
                self._begin()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.limit is None and not self._is_answering() and self.conn.trailing_data[0]:
                self._begin()  # a part of the next request came before the answer to this one

        def connection_lost(self, exc: Exception | None) -> None:
            self._end()
            super().connection_lost(exc)

        def _is_answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _begin(self) -> None:
            self.limit = self.loop.call_later(timeout_s, self._close)

        def _end(self) -> None:
            if self.limit is not None:
                self.limit.cancel()
                self.limit = None

        def _close(self) -> None:
            if not self._is_answering():
                self.transport.close()

    return Limited
