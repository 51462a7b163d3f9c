"""The audit log: who changed what, when and why."""

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
from dagster_tidegate.web.api.authentication import Viewer
from dagster_tidegate.web.api.context import Context
from dagster_tidegate.web.api.models import Moment, Name
from dagster_tidegate.web.api.paging import PageRequest, Paging
from dagster_tidegate.web.api.problems import Code, responses
from dagster_tidegate.web.api.stream import MEDIA_TYPE, EventStream

router = APIRouter(prefix="/events", tags=["events"])
MAX_KINDS = 20


@router.get("")
def list_events(
    context: Context,
    _identity: Viewer,
    paging: Paging,
    name: Annotated[
        Name | None,
        Query(description="Only those about this service, campaign or `campaign/partition`."),
    ] = None,
    kind: Annotated[
        list[EventKind] | None,
        Query(max_length=MAX_KINDS, description="Only those of these kinds."),
    ] = None,
    since: Annotated[Moment | None, Query(description="Only those since this time.")] = None,
) -> Page[Event]:
    """List the events of the audit log, newest first."""
    with context.store.read() as conn:
        return page_of_events(conn, paging, name=name, kinds=kind or (), since=since)


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
    context: Context,
    _identity: Viewer,
    last_event_id: Annotated[
        int | None,
        Header(ge=0, lt=2**63, description="Continue after this event. Default: `after`."),
    ] = None,
    after: Annotated[
        int | None,
        Query(ge=0, lt=2**63, description="Begin after this event. Default: from now."),
    ] = None,
) -> EventStream:
    """Stream the events as server-sent events, without gaps.

    Each has its id, its kind as `event`, and the same `data` as in `GET /events`. A stream ends
    after a few minutes; browsers then reconnect with `Last-Event-ID`.
    """
    begin = after if last_event_id is None else last_event_id
    if begin is None:
        begin = await run_in_threadpool(context.feed.newest)
    return EventStream(context.feed, begin)


def page_of_events(
    conn: Connection,
    paging: PageRequest,
    *,
    name: str | None = None,
    kinds: Sequence[str] = (),
    since: datetime | None = None,
) -> Page[Event]:
    """Return a page of events, newest first."""
    oldest_first = history.read(
        conn, name=name, kinds=kinds, since=since, before=paging.before, limit=paging.limit + 1
    )
    return paging.page(oldest_first[::-1], lambda event: event.id, lambda event: event)
