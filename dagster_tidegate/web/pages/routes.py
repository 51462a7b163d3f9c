"""The routes of Tidegate's own pages. They read; `changes` has those that change something."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import RedirectResponse, Response

from dagster_tidegate.control import report_reader
from dagster_tidegate.control.report import month_of, period
from dagster_tidegate.control.report_models import OutageReport
from dagster_tidegate.control.report_text import outage_text
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.settings import PAGES
from dagster_tidegate.statuses import CampaignStatus, RunStatus
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.records import RecordState
from dagster_tidegate.web.api import lookup
from dagster_tidegate.web.api.authentication import Viewer
from dagster_tidegate.web.api.context import Context
from dagster_tidegate.web.api.models import CampaignName, ServiceName
from dagster_tidegate.web.api.problems import Code, Problem
from dagster_tidegate.web.api.routes.services import policies
from dagster_tidegate.web.pages import (
    audit,
    campaigns,
    changes,
    now,
    outages,
    records,
    runbooks,
    services,
    timeline,
)
from dagster_tidegate.web.pages.assets import static
from dagster_tidegate.web.pages.rendering import (
    FRAGMENTS,
    MEDIA_TYPES,
    PageRoute,
    page,
    url,
    visitor,
)
from dagster_tidegate.web.path_router import STATIC

MAX_AGE_S = 365 * 24 * 3600
router = APIRouter(prefix=PAGES, include_in_schema=False, route_class=PageRoute)

Text = Annotated[str, Query(max_length=512)]
Before = Annotated[int | None, Query(ge=0, lt=2**63)]
Id = Annotated[int, Path(ge=1, lt=2**63)]


@dataclass(frozen=True)
class Reader:
    """Reads what a page shows, and renders it; a dependency of its route."""

    request: Request
    context: Context
    identity: Viewer

    @contextmanager
    def reading(
        self, only: Callable[[Connection], Collection[str] | None] | None = None
    ) -> Iterator[tuple[Connection, Situation]]:
        """Read the situation; `only` returns the names of the campaigns that matter."""
        # Before anything else: what is written while the page is read is not missed by it.
        is_whole = FRAGMENTS not in self.request.headers
        self.request.state.last_event = self.context.feed.final() if is_whole else None
        with self.context.reading(only) as (conn, situation):
            yield conn, situation

    def page(
        self, conn: Connection, situation: Situation, template: str, view: Any, **values: Any
    ) -> Response:
        """Return the page."""
        return page(
            self.request,
            template,
            visitor=visitor(self.context, self.identity),
            now=situation.now,
            banners=now.banners(conn, situation),
            last_event=self.request.state.last_event,
            view=view,
            **values,
        )


Reading = Annotated[Reader, Depends()]


@router.get("")
def show_now(reader: Reading) -> Response:
    """The start page."""
    with reader.reading() as (conn, situation):
        return reader.page(conn, situation, "now.html", now.now_page(conn, situation))


@router.get("/")
def go_to_now(request: Request) -> Response:
    """The start page, by the address that people type."""
    return RedirectResponse(url(request.scope.get("root_path", ""), ""))


@router.get("/services/{service:path}")
def show_service(reader: Reading, service: ServiceName) -> Response:
    """Everything about a service."""
    with reader.reading() as (conn, situation):
        lookup.service_in(situation, service)
        known = policies(reader.context, service)
        view = services.service_page(conn, situation, service, known)
        return reader.page(conn, situation, "service.html", view)


@router.get("/campaigns")
def list_campaigns(
    reader: Reading, q: Text = "", status: Text = "", service: Text = "", after: Text = ""
) -> Response:
    """The campaigns by name, searched and paged."""
    chosen = _choice(CampaignStatus, status)

    def only(conn: Connection) -> Collection[str] | None:
        return campaigns.names(conn, text=q, after=after, status=status, service=service)

    with reader.reading(only) as (conn, situation):
        view = campaigns.campaigns_page(
            conn, situation, text=q, after=after, status=chosen, service=service
        )
        return reader.page(
            conn,
            situation,
            "campaigns.html",
            view,
            query={"q": q, "status": status, "service": service, "after": after},
            statuses=list(CampaignStatus),
            services=sorted(situation.services),
        )


@router.get("/campaigns/{campaign}")
def show_campaign(
    reader: Reading, campaign: CampaignName, q: Text = "", status: Text = "", before: Before = None
) -> Response:
    """A campaign and its runs."""
    chosen = _choice(RunStatus, status)
    with reader.reading(lambda _: [campaign]) as (conn, situation):
        if campaign not in situation.campaigns:
            lookup.campaign(conn, situation.now, campaign)
        view = campaigns.campaign_page(
            conn, situation, situation.campaigns[campaign], text=q, status=chosen, before=before
        )
        return reader.page(
            conn,
            situation,
            "campaign.html",
            view,
            query={"q": q, "status": status, "before": before},
            statuses=list(RunStatus),
        )


@router.get("/run/{name:path}")
def find_run(request: Request, context: Context, _identity: Viewer, name: str) -> Response:
    """The page of a campaign run by its name, as holds and events have it."""
    campaign, _, partition = name.partition("/")
    with context.store.read() as conn:
        run = lookup.run(conn, context.store.now(conn), campaign, partition)
    return RedirectResponse(url(request.scope.get("root_path", ""), f"/runs/{run.id}"), 303)


@router.get("/runs/{run}")
def show_run(reader: Reading, run: Id) -> Response:
    """A campaign run."""
    with reader.reading(lambda conn: [lookup.run_by_id(conn, run).campaign]) as (conn, situation):
        view = campaigns.run_page(conn, situation, lookup.run_by_id(conn, run))
        return reader.page(conn, situation, "run.html", view)


@router.get("/runs/{run}/records")
def list_records_of_run(
    reader: Reading,
    run: Id,
    state: Text = "",
    q: Text = "",
    said: Annotated[str, Query(max_length=2048)] = "",
    key: Text = "",
    op: Text = "",
    after: Text = "",
) -> Response:
    """The records of a campaign run, searched and paged."""
    chosen = _choice(RecordState, state)
    with reader.reading(lambda conn: [lookup.run_by_id(conn, run).campaign]) as (conn, situation):
        view = records.records_of_run(
            conn,
            situation,
            lookup.run_by_id(conn, run),
            states=() if chosen is None else (chosen,),
            text=q,
            said=said,
            keys=(key,) if key else (),
            after=(op, after) if after else None,
        )
        return reader.page(
            conn,
            situation,
            "run_records.html",
            view,
            query={"state": state, "q": q, "said": said, "key": key, "after": after},
        )


@router.get("/records")
def list_records(reader: Reading, q: Text = "", before: Before = None) -> Response:
    """Campaign runs with records that failed or are in doubt."""
    with reader.reading() as (conn, situation):
        view = records.records_page(conn, situation, text=q, before=before)
        query = {"q": q, "before": before}
        return reader.page(conn, situation, "records.html", view, query=query)


@router.get("/timeline")
def show_timeline(reader: Reading, span: Text = "hour", end: Text = "") -> Response:
    """Breakers, holds, campaigns and runs on one time axis."""
    if span not in timeline.SPANS:
        raise Problem(Code.INVALID, f"span: use {', '.join(timeline.SPANS)}")
    with reader.reading() as (conn, situation):
        view = timeline.timeline(conn, situation, span=span, end=_moment(end))
        values = {"spans": tuple(timeline.SPANS), "said": timeline.described(view)}
        return reader.page(conn, situation, "timeline.html", view, **values)


@router.get("/outages")
def list_outages(
    reader: Reading, service: Text = "", month: Text = "", before: Before = None
) -> Response:
    """The outages of a month, by service."""
    with reader.reading(lambda _: ()) as (conn, situation):
        try:
            chosen = month_of(month) if month else (None, None)
            since, until = period(situation.now, *chosen)
        except ValueError as error:
            raise Problem(Code.INVALID, f"month: {error}") from error
        view = outages.outages_page(
            conn, situation, since=since, until=until, service=service, before=before
        )
        return reader.page(
            conn,
            situation,
            "outages.html",
            view,
            query={"service": service, "month": month, "before": before},
            services=sorted({*situation.services, *([service] if service else [])}),
            months=sorted(
                {*outages.latest_months(situation.now), *([month] if month else [])}, reverse=True
            ),
        )


@router.get("/outages/{outage}.md")
def get_outage_as_markdown(context: Context, _identity: Viewer, outage: Id) -> Response:
    """The report of an outage as Markdown, as `tidegate report --outage` prints it."""
    with context.store.read() as conn:
        text = outage_text(_report(conn, context.store.now(conn), outage))
    return Response(text, media_type="text/markdown")


@router.get("/outages/{outage}")
def show_outage(reader: Reading, outage: Id) -> Response:
    """The report of an outage; its id is that of any change of the breaker in it."""
    with reader.reading(lambda _: ()) as (conn, situation):
        view = outages.outage_page(_report(conn, situation.now, outage))
        return reader.page(conn, situation, "outage.html", view)


def _report(conn: Connection, at: datetime, outage: int) -> OutageReport:
    report = report_reader.of_outage(conn, at, outage)
    if report is None:
        raise Problem(
            Code.OUTAGE_NOT_FOUND,
            f"there is no outage {outage}: the event is no change of a breaker, or has expired",
        )
    return report


@router.get("/history")
def show_history(
    reader: Reading,
    name: Text = "",
    kind: Text = "",
    actor: Text = "",
    since: Text = "",
    before: Before = None,
) -> Response:
    """The audit log, searched and paged."""
    if since not in dict(audit.SINCE):
        raise Problem(Code.INVALID, "since: choose one of the list")
    chosen = _choice(EventKind, kind)
    with reader.reading(lambda _: ()) as (conn, situation):
        view = audit.history_page(
            conn,
            situation.now,
            name=name.strip(),
            kind=chosen or "",
            actor=actor.strip(),
            within_s=int(since) if since else None,
            before=before,
        )
        return reader.page(
            conn,
            situation,
            "history.html",
            view,
            query={"name": name, "kind": kind, "actor": actor, "since": since, "before": before},
            kinds=sorted(EventKind),
            sinces=audit.SINCE,
        )


@router.get("/runbooks")
def show_runbooks(request: Request, context: Context, identity: Viewer) -> Response:
    """The runbooks."""
    return page(
        request,
        "runbooks.html",
        visitor=visitor(context, identity),
        now=datetime.now(UTC),
        banners=(),
        view=runbooks.runbooks_page(),
    )


@router.get("/static/{name}")
async def get_static(name: str) -> Response:
    """A style sheet, script or picture. Its address changes with its content."""
    if name not in STATIC:
        raise Problem(Code.NOT_FOUND, f"there is no {name}")
    headers = {"Cache-Control": f"private, max-age={MAX_AGE_S}, immutable"}
    media_type = MEDIA_TYPES[name.rpartition(".")[2]]
    return Response(static(name)[0], headers=headers, media_type=media_type)


router.include_router(changes.router)


@router.get("/{path:path}")
async def no_page(path: str) -> Response:
    """Any other path."""
    raise Problem(Code.NOT_FOUND, f"there is no page {path[:100]!r}")


def _choice(kind: Any, value: str) -> Any:
    """Return the member of an enum; None for an empty string."""
    if not value:
        return None
    try:
        return kind(value)
    except ValueError as error:
        names = ", ".join(kind)
        raise Problem(Code.INVALID, f"{value[:40]!r} is not one of {names}") from error


def _moment(value: str) -> datetime | None:
    if not value:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise Problem(Code.INVALID, "end: use a time such as 2026-03-01T18:00:00Z") from error
    if moment.tzinfo is None or not 1970 < moment.year < 9000:
        raise Problem(Code.INVALID, "end: use a time with its time zone")
    return moment
