"""One thread works with the model, a bounded number of requests wait for it, and each has a time limit."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor

from search_r3.web.answers import Refused, Say

Job = Callable[[Say], dict]
"""Answers a request; calls what it is given with news, which raises once nobody waits for the answer."""


class Work:
    """One request, from when it was taken until its work has ended.

    Args:
        job: what is done.
        limit_s: seconds from now, waiting included.
    """

    def __init__(self, job: Job, limit_s: float) -> None:
        self.job, self.limit_s = job, limit_s
        self.deadline = time.monotonic() + limit_s
        self.loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[tuple[str, dict] | Future] = asyncio.Queue()
        self.is_over, self.reason = threading.Event(), ""
        self.future: Future | None = None

    def end(self, reason: str) -> None:
        """Has the work end at its next word, or not begin."""
        self.reason = reason
        self.is_over.set()
        if self.future is not None:
            self.future.cancel()

    def run(self) -> dict:
        """The job, in the thread of the model."""
        self._check()
        return self.job(self._say)

    def _say(self, name: str, data: dict) -> None:
        self._check()
        self.loop.call_soon_threadsafe(self.events.put_nowait, (name, data))

    def _check(self) -> None:
        if self.is_over.is_set():
            raise Refused(503, self.reason)
        if time.monotonic() > self.deadline:
            raise self._too_late()

    def _too_late(self) -> Refused:
        return Refused(504, f"no answer within {self.limit_s:g} seconds; try again, or a shorter query")

    async def news(self) -> AsyncIterator[tuple[str, dict]]:
        """Events as they come; the last one is "done" with the answer. Closing it ends the work.

        Raises:
            Refused: If time is up, the job refuses, or the server is ending.
        """
        try:
            while True:
                try:
                    event = await asyncio.wait_for(
                        self.events.get(), max(self.deadline - time.monotonic(), 0)
                    )
                except TimeoutError:
                    raise self._too_late() from None
                if isinstance(event, Future):
                    if event.cancelled():
                        raise Refused(503, self.reason)
                    yield "done", event.result()
                    return
                yield event
        finally:
            self.end("nobody waits for the answer any more")


class Desk:
    """Takes requests, at most `max_requests` at once, and answers them one after the other.

    Args:
        max_requests: being answered or waiting.
        timeout_s: of a request, waiting included.
    """

    def __init__(self, max_requests: int, timeout_s: float) -> None:
        self.max_requests, self.timeout_s = max_requests, timeout_s
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.works: set[Work] = set()
        self.is_closed = False

    def take(self, job: Job) -> Work:
        """Has a request wait for its turn; its place is free again when its work has ended.

        Raises:
            Refused: If all places are taken, or the server is ending.
        """
        if self.is_closed:
            raise Refused(503, "the server is ending")
        if len(self.works) >= self.max_requests:
            raise Refused(
                503, f"{len(self.works)} requests are being answered or wait; try again in a moment"
            )
        work = Work(job, self.timeout_s)

        def leave(done: Future) -> None:
            self.works.discard(work)
            work.events.put_nowait(done)

        def ended(done: Future) -> None:
            if not work.loop.is_closed():
                work.loop.call_soon_threadsafe(leave, done)

        self.works.add(work)
        work.future = self.worker.submit(work.run)
        work.future.add_done_callback(ended)
        return work

    def close(self) -> None:
        """Ends all work at its next word and takes no more."""
        self.is_closed = True
        for work in list(self.works):
            work.end("the server is ending")
        self.worker.shutdown(wait=False)
