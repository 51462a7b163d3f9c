"""Outages, and what happened in them."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query

from dagster_tidegate.control import report_reader
from dagster_tidegate.control.report import period
from dagster_tidegate.control.report_models import OutageReport, ServiceReport, Summary
from dagster_tidegate.web.api import lookup
from dagster_tidegate.web.api.authentication import Viewer
from dagster_tidegate.web.api.context import Context
from dagster_tidegate.web.api.models import Moment, ServiceName
from dagster_tidegate.web.api.problems import Code, Problem, responses

router = APIRouter(prefix="/reports", tags=["reports"])
Since = Annotated[
    Moment | None, Query(description="Beginning of the period. Default: 30 days before its end.")
]
Until = Annotated[Moment | None, Query(description="End of the period. Default: now.")]
OutageId = Annotated[
    int,
    Path(ge=1, lt=2**63, description="The id of any change of the breaker in the outage."),
]


@router.get("")
def report_outages(
    context: Context, _identity: Viewer, since: Since = None, until: Until = None
) -> Summary:
    """Report the outages of a period by service: how many, how long, mean time to recovery."""
    with context.store.read() as conn:
        start, end = _period(context.store.now(conn), since, until)
        return report_reader.summary(conn, start, end)


@router.get("/services/{service:path}", responses=responses(Code.SERVICE_NOT_FOUND))
def report_outages_of_service(
    context: Context,
    _identity: Viewer,
    service: ServiceName,
    since: Since = None,
    until: Until = None,
) -> ServiceReport:
    """Report the outages of a service in a period, newest first."""
    with context.store.read() as conn:
        now = context.store.now(conn)
        lookup.service(conn, now, service)
        return report_reader.of_service(conn, service, *_period(now, since, until))


@router.get("/outages/{outage}", responses=responses(Code.OUTAGE_NOT_FOUND))
def report_outage(context: Context, _identity: Viewer, outage: OutageId) -> OutageReport:
    """Report an outage: why, what was paused and for how long, who did what, records and calls.

    It is made from the audit log, so that it changes until the last paused run has ended.
    """
    with context.store.read() as conn:
        report = report_reader.of_outage(conn, context.store.now(conn), outage)
    if report is None:
        raise Problem(
            Code.OUTAGE_NOT_FOUND, f"there is no outage {outage}: see the outages of the service"
        )
    return report


def _period(
    now: datetime, since: datetime | None, until: datetime | None
) -> tuple[datetime, datetime]:
    try:
        return period(now, since, until)
    except ValueError as error:
        raise Problem(Code.INVALID, str(error)) from error
