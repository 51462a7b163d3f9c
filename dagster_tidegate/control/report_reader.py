"""Reads what reports are made of from the store."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from dagster_tidegate.control import report as r
from dagster_tidegate.control.report import Outage, Surroundings
from dagster_tidegate.control.report_models import (
    MonthSummary,
    OutageReport,
    ServiceReport,
    ServiceSummary,
    Summary,
)
from dagster_tidegate.store import breakers, campaigns, outages, service_stats, takeovers
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.service_stats import Calls

Numbers = TypeVar("Numbers", bound=ServiceSummary)
MAX_OUTAGES = 1000
"""How many outages of a service are listed."""


def summary(conn: Connection, since: datetime, until: datetime) -> Summary:
    """Return the outages of all services in a period."""
    own = of_period(conn, since, until)
    services = by_service(conn, own, since, until, breakers.read(conn))
    return Summary(since=since, until=until, services=services)


def of_service(conn: Connection, service: str, since: datetime, until: datetime) -> ServiceReport:
    """Return the outages of a service in a period."""
    own = of_period(conn, since, until, service)
    [numbers] = by_service(conn, own, since, until, [service])
    return ServiceReport(
        since=since,
        until=until,
        summary=numbers,
        months=by_month(conn, own, service, since, until),
        outages=[r.listed(each, until) for each in reversed(own)][:MAX_OUTAGES],
    )


def by_service(
    conn: Connection,
    own: Sequence[Outage],
    since: datetime,
    until: datetime,
    services: Collection[str],
) -> Sequence[ServiceSummary]:
    """Return the outages of a period, and the verdicts on its calls, by service."""
    calls = service_stats.of_period(conn, since, until)
    return [_with(each, calls) for each in r.summaries(own, since, until, services)]


def by_month(
    conn: Connection, own: Sequence[Outage], service: str, since: datetime, until: datetime
) -> Sequence[MonthSummary]:
    """Return the outages of a service, and the verdicts on its calls, by month."""
    return [
        _with(each, service_stats.of_period(conn, *r.month_of(each.month), service))
        for each in r.by_month(own, service, since, until)
    ]


def _with(summary: Numbers, calls: Mapping[str, Calls]) -> Numbers:
    verdicts = calls.get(summary.service, Calls()).verdicts
    return summary.model_copy(update={"verdicts": verdicts})


def of_period(
    conn: Connection, since: datetime, until: datetime, service: str | None = None
) -> Sequence[Outage]:
    """Return the outages that lasted at some time in a period, each as a whole; oldest first.

    Args:
        service: Only those of this service; None: of all.
    """
    own = r.outages(outages.transitions(conn, since, until, service))
    return [each for outage in own for each in _whole(conn, outage)]


def _whole(conn: Connection, outage: Outage) -> Sequence[Outage]:
    """An outage with what came after the period; the newest one of a service may go on."""
    if outage.end is not None:
        return [outage]
    return r.outages(outages.transitions_of(conn, outage.events[0].id)) or [outage]


def of_outage(conn: Connection, now: datetime, event: int) -> OutageReport | None:
    """Return the report of the outage that a change of a breaker belongs to.

    Args:
        event: The id of any of its events, also of the one that ended it; None if there is none.
    """
    outage = next(iter(r.outages(outages.transitions_of(conn, event))), None)
    return None if outage is None else _report(conn, outage, now)


def _report(conn: Connection, outage: Outage, now: datetime) -> OutageReport:
    dependents = _dependents(conn, outage.service)
    first = outage.events[0].id
    events = outages.around(conn, first, None if outage.end is None else outage.end.id)
    paused = r.pauses(events, outage.service, dependents)
    runs = {event.name for event in paused}
    concerned = dependents | {name.partition("/")[0] for name in runs}
    names = {
        *takeovers.names_about(conn, outage.service, campaigns.adopted(conn)),
        *takeovers.names_of(conn, concerned),
    }
    taken = {event.name for event in events if event.kind == EventKind.TAKEOVER} & names
    until = outage.closed_at or now
    around = Surroundings(
        events=events,
        resumed=outages.resumed(conn, first, runs),
        given_back=outages.given_back(conn, first, taken),
        takeovers=taken,
        campaigns=dependents,
        missed=outages.missed(conn, concerned, outage.opened_at, until),
        records=outages.records(conn, runs, outage.opened_at, until),
    )
    return r.report(outage, around, now)


def _dependents(conn: Connection, service: str) -> set[str]:
    known: Collection[str] = breakers.read(conn)
    return {spec.name for spec in campaigns.read(conn) if service in spec.services(known)}
