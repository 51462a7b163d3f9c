"""Server-sent events: the audit log as it is written, from where a client left off."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence

from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from dagster_tidegate.store import event_reader, history
from dagster_tidegate.store.database import DATABASE_ERRORS, UNREACHABLE, Store
from dagster_tidegate.store.event_reader import EventReader
from dagster_tidegate.store.history import Event
from dagster_tidegate.web.api.problems import Code, Problem, later

MEDIA_TYPE = "text/event-stream"
MAX_STREAMS = 100
POLL_INTERVAL_S = 0.5
HEARTBEAT_S = 15.0
MAX_S = 300.0
"""A stream ends after this time; its client reconnects and authenticates again."""
RECONNECT_MS = 1000
PAGE = 200
_EVENT = TypeAdapter(Event)

log = logging.getLogger(__name__)


class Feed:
    """Polls for new events, once for all streams of a process and only while there are any."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reader = EventReader()
        self._reading = threading.Lock()
        self._streams = 0
        self._complete = 0
        self._moved = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    def newest(self) -> int:
        """Return the id of the newest event."""
        with self._store.read() as conn:
            return event_reader.newest(conn)

    def final(self) -> int:
        """Return the id up to which all events are committed."""
        with self._reading, self._store.read() as conn:
            return self._reader.final(conn)

    def enter(self) -> bool:
        """Count a stream; False if there are too many."""
        if self._streams >= MAX_STREAMS:
            return False
        self._streams += 1
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._poll())
        return True

    def leave(self) -> None:
        """Count a stream that ended."""
        self._streams -= 1

    def read(self, after: int, up_to: int) -> Sequence[Event]:
        """Return events between two ids, at most `PAGE`."""
        with self._store.read() as conn:
            return history.between(conn, after, up_to, limit=PAGE)

    async def complete(self, after: int) -> int:
        """Wait for events after an id; return the id up to which all events are committed."""
        while self._complete <= after:
            await self._moved.wait()
        return self._complete

    async def _poll(self) -> None:
        warned = False
        while self._streams:
            try:
                complete = await run_in_threadpool(self.final)
                warned = False
            except DATABASE_ERRORS as error:  # also of a server that is shutting down
                if not warned:
                    log.warning("event streams are waiting for the store: %s", error)
                warned, complete = True, self._complete
            if complete > self._complete:
                self._complete = complete
                moved, self._moved = self._moved, asyncio.Event()
                moved.set()
            await asyncio.sleep(POLL_INTERVAL_S)


class EventStream(Response):
    """Sends events as they are written."""

    media_type = MEDIA_TYPE

    def __init__(self, feed: Feed, after: int) -> None:
        super().__init__()
        self._feed = feed
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the client disconnects, or for `MAX_S`."""
        if not self._feed.enter():
            detail = f"this server has {MAX_STREAMS} event streams already: try again later"
            refusal = Problem(Code.TOO_MANY_STREAMS, detail, headers=later())
            await refusal.response()(scope, receive, send)
            return
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        answer = StreamingResponse(self._text(), media_type=MEDIA_TYPE, headers=headers)
        try:
            await answer(scope, receive, send)
        finally:
            self._feed.leave()

    async def _text(self) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        until = loop.time() + MAX_S
        sent = self._after
        yield f"retry: {RECONNECT_MS}\n\n"
        while (left := until - loop.time()) > 0:
            try:
                complete = await asyncio.wait_for(self._feed.complete(sent), min(left, HEARTBEAT_S))
            except TimeoutError:
                yield ":\n\n"  # so that proxies, and this side, notice a lost connection
                continue
            while sent < complete:
                try:
                    events = await run_in_threadpool(self._feed.read, sent, complete)
                except UNREACHABLE as error:
                    log.warning("an event stream ends: %s", error)
                    return  # its client reconnects and continues
                for event in events:
                    yield _as_text(event)
                sent = events[-1].id if len(events) == PAGE else complete


def _as_text(event: Event) -> str:
    """Return an event in the format of a stream."""
    data = _EVENT.dump_json(event).decode()
    return f"id: {event.id}\nevent: {event.kind}\ndata: {data}\n\n"
