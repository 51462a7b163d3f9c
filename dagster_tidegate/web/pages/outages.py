"""The pages of outages: those of a period by service, and the report of one."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dagster_tidegate.control import report, report_reader
from dagster_tidegate.control.report_models import (
    MonthSummary,
    OutageOut,
    OutageReport,
    ServiceSummary,
)
from dagster_tidegate.control.report_picture import Lane, drawing
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.store.database import Connection
from dagster_tidegate.text import length, words
from dagster_tidegate.web.pages.rendering import TONES
from dagster_tidegate.web.pages.timeline import Axis, Bar, Row, ticks

PAGE = 25
MONTHS = 12
"""How many months the list of months offers, and a service shows."""
_YEAR = timedelta(days=365)
_STEPS = (
    *(timedelta(seconds=each) for each in (1, 5, 10, 30)),
    *(timedelta(minutes=each) for each in (1, 2, 5, 10, 30)),
    *(timedelta(hours=each) for each in (1, 3, 6, 12)),
    *(timedelta(days=each) for each in (1, 2, 7, 30)),
)
MAX_TICKS = 8


@dataclass(frozen=True)
class Outages:
    """The outages of a period.

    Attributes:
        summaries: By service, those with the most minutes first; services without one are left out.
        quiet: How many services had none.
        months: Of the chosen service, by month of the last year; empty if none is chosen.
        rows: A page of them, the newest first.
        next_before: The id before which the next page starts; None on the last one.
    """

    since: datetime
    until: datetime
    summaries: Sequence[ServiceSummary]
    quiet: int
    months: Sequence[MonthSummary]
    rows: Sequence[OutageOut]
    next_before: int | None


@dataclass(frozen=True)
class OutagePage:
    """The report of an outage.

    Attributes:
        settled: Whether it will not change: it is over, and so are all pauses.
        lanes: The breaker and the campaigns on a time axis.
        ticks: Where the labels of the axis are, in percent.
    """

    report: OutageReport
    settled: bool
    lanes: Sequence[Row]
    ticks: Sequence[tuple[float, str]]


def outages_page(
    conn: Connection,
    situation: Situation,
    *,
    since: datetime,
    until: datetime,
    service: str = "",
    before: int | None = None,
) -> Outages:
    """Return a page of the outages of a period."""
    now = situation.now
    own = report_reader.of_period(conn, since, until, service or None)
    services = [service] if service else situation.services
    numbers = report_reader.by_service(conn, own, since, until, services)
    with_some = [each for each in numbers if each.outages]
    listed = [
        report.listed(outage, now)
        for outage in reversed(own)
        if before is None or outage.events[0].id < before
    ]
    months: Sequence[MonthSummary] = ()
    if service:
        of_year = report_reader.of_period(conn, now - _YEAR, now, service)
        by_month = report_reader.by_month(conn, of_year, service, now - _YEAR, now)
        months = [each for each in by_month[:MONTHS] if each.outages]
    return Outages(
        since=since,
        until=until,
        summaries=sorted(with_some, key=lambda each: (-each.minutes, each.service)),
        quiet=len(numbers) - len(with_some),
        months=months,
        rows=listed[:PAGE],
        next_before=listed[PAGE - 1].id if len(listed) > PAGE else None,
    )


def latest_months(now: datetime) -> Sequence[str]:
    """Return the latest calendar months, the newest first, as `2026-03`."""
    months, at = [], now
    for _ in range(MONTHS):
        month = f"{at:%Y-%m}"
        months.append(month)
        at = report.month_of(month)[0] - timedelta(days=1)
    return months


def outage_page(made: OutageReport) -> OutagePage:
    """Return the page of a report."""
    drawn = drawing(made)
    axis = Axis(drawn.start, drawn.end)
    span = drawn.end - drawn.start
    step = next((each for each in _STEPS if span / each <= MAX_TICKS), span / MAX_TICKS)
    form = "%H:%M:%S" if step < timedelta(minutes=1) else "%H:%M"
    form = "%d %b" if step >= timedelta(days=1) else form
    of_service = {"name": made.service, "kind": "service"}
    lanes = [
        Row(
            made.service,
            f"/services/{made.service}",
            _bars(axis, drawn.service, "/history", of_service),
        ),
        *(
            Row(each.name, path := f"/campaigns/{each.name}", _bars(axis, each, path, {}))
            for each in drawn.campaigns
        ),
    ]
    return OutagePage(
        report=made,
        settled=made.closed_at is not None
        and all(run.resumed_at is not None for run in made.runs)
        and not made.records.left,
        lanes=lanes,
        ticks=ticks(axis, step, form),
    )


def _bars(axis: Axis, lane: Lane, path: str, query: dict[str, str]) -> list[Bar]:
    bars = []
    for span in lane.spans:
        lasted = length(span.end - span.begin)
        why = f" ({span.reason})" if span.reason else ""
        tone = "held" if span.state is None else TONES[span.state]
        state = "paused" if span.state is None else words(span.state)
        text = f"{lane.name} {state} from {span.begin:%H:%M:%S}, {lasted}{why}"
        bars.append(axis.bar(span.begin, span.end, tone, text, path, query))
    return bars
