"""The audit: who changed what, when and why; read back, and as it is written."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.concurrency import run_in_threadpool

from dagster_tidegate.control.models import Page
from dagster_tidegate.store import history
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.history import Event
from dagster_tidegate.web.api import cursor as cursors
from dagster_tidegate.web.api.authentication import Viewer
from dagster_tidegate.web.api.context import Here
from dagster_tidegate.web.api.models import Cursor, Limit, Moment, Name
from dagster_tidegate.web.api.problems import Code, responses
from dagster_tidegate.web.api.stream import MEDIA_TYPE, EventStream

router = APIRouter(prefix="/events", tags=["events"])
MAX_KINDS = 20


@router.get("")
def list_events(
    here: Here,
    _identity: Viewer,
    name: Annotated[
        Name | None,
        Query(description="Only those about this service, campaign or `campaign/partition`."),
    ] = None,
    kind: Annotated[
        list[EventKind] | None,
        Query(max_length=MAX_KINDS, description="Only those of these kinds."),
    ] = None,
    since: Annotated[Moment | None, Query(description="Only those from this time on.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[Event]:
    """List who changed what, when and why, the newest first."""
    with here.store.read() as conn:
        return page_of_events(
            conn, name=name, kinds=kind or (), since=since, limit=limit, cursor=cursor
        )


@router.get(
    "/stream",
    status_code=200,
    response_class=EventStream,
    responses={
        200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}},
        **responses(Code.TOO_MANY_STREAMS),
    },
)
async def stream_events(
    here: Here,
    _identity: Viewer,
    last_event_id: Annotated[
        int | None,
        Header(ge=0, lt=2**63, description="The stream goes on after this event; else from now."),
    ] = None,
) -> EventStream:
    """Send events as they are written, as server-sent events; none is left out.

    Each has its id, its kind as `event`, and as `data` what `GET /events` shows. The stream ends
    after a few minutes: browsers come back by themselves, with `Last-Event-ID`.
    """
    newest = await run_in_threadpool(here.feed.newest)
    return EventStream(here.feed, newest if last_event_id is None else last_event_id)


def page_of_events(
    conn: Connection,
    *,
    name: str | None = None,
    kinds: Sequence[str] = (),
    since: datetime | None = None,
    limit: int,
    cursor: str | None,
) -> Page[Event]:
    """Return a page of events, the newest first.

    Raises:
        Problem: `invalid`, if `cursor` is none of events.
    """
    before = cursors.decode(cursor, "events", int)
    found = history.read(conn, name=name, kinds=kinds, since=since, before=before, limit=limit + 1)[
        ::-1
    ]
    page, after = cursors.page(found, "events", limit, lambda event: event.id)
    return Page(items=page, next_cursor=after)
