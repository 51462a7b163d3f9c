"""What the store knows about outages of services. `control.report` makes a report of it.

Nothing is kept for it: a report is derived from the audit log, and so lasts as long as that.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from dagster_tidegate.statuses import BreakerState, RecordStatus, RunStatus
from dagster_tidegate.store import history, runs
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.breakers import WOULD_OPEN
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.history import Event
from dagster_tidegate.store.missed_ticks import MissedTick, TickOutcome
from dagster_tidegate.store.takeovers import TakeoverOutcome

MAX_TRANSITIONS = 20_000
MAX_EVENTS = 5_000
"""How many events of an outage are read at most."""
MAX_RUNS = 500
"""How many campaign runs of an outage are looked at in detail."""
_CHUNK = 200
_STATES = [state.value for state in BreakerState]
_AROUND = (
    EventKind.HOLD,
    EventKind.CAMPAIGN_RUN,
    EventKind.TAKEOVER,
    EventKind.START,
    EventKind.CANCEL,
    EventKind.RECORDS,
    EventKind.SERVICE,
)


@dataclass(frozen=True)
class RunRecords:
    """The records of a campaign run now.

    Attributes:
        done: How many are done, in all ops.
        total: How many there are, in the ops that know it.
        unknown: Whether an op does not know its total.
        done_by_op: How many are done in each op.
        skipped: How many a person skipped; read only for a run that has completed without a result
            for each record.
        cut_off: When attempts ended without a pause or a result of their own (UTC).
    """

    status: RunStatus
    done: int
    failed: int
    total: int
    unknown: bool
    done_by_op: Mapping[str, int]
    skipped: int = 0
    cut_off: Sequence[datetime] = ()


def transitions(
    conn: Connection, since: datetime, until: datetime, service: str | None = None
) -> Sequence[Event]:
    """Return the changes of state of breakers in a period, the oldest first.

    An outage that began before the period is returned from its beginning on. The newest
    `MAX_TRANSITIONS` of the period are returned.

    Args:
        service: Only those of this service; None: of all.
    """
    e, of_state = t.events.c, _changes(service)
    earlier: list[Event] = []
    for latest in open_at(conn, since, service).values():
        earlier += (each for each in transitions_of(conn, latest.id) if each.id <= latest.id)
    inside = sa.select(t.events).where(of_state, e.at >= since, e.at <= until)
    newest = history.rows(conn, inside.order_by(e.id.desc()).limit(MAX_TRANSITIONS))
    return sorted([*earlier, *newest], key=lambda event: event.id)


def open_at(conn: Connection, at: datetime, service: str | None = None) -> Mapping[str, Event]:
    """Return the latest change of each breaker that was not closed at a time, by service.

    Args:
        service: Only that of this service; None: of all.
    """
    e, of_state = t.events.c, _changes(service)
    latest = sa.select(sa.func.max(e.id)).where(of_state, e.at < at).group_by(e.name)
    query = sa.select(t.events).where(e.id.in_(latest), e.to_status != BreakerState.CLOSED)
    return {event.name: event for event in history.rows(conn, query.order_by(e.id))}


def transitions_of(conn: Connection, event: int) -> Sequence[Event]:
    """Return all changes of a breaker in the outage that one of them belongs to; oldest first.

    Args:
        event: The id of the event of any of them. Empty if it is not one.
    """
    e = t.events.c
    service = conn.scalar(sa.select(e.name).where(_changes(), e.id == event))
    if service is None:
        return []
    of_state = _changes(service)
    opening, closing = e.from_status == BreakerState.CLOSED, e.to_status == BreakerState.CLOSED
    first = conn.scalar(sa.select(sa.func.max(e.id)).where(of_state, e.id <= event, opening))
    former = conn.scalar(sa.select(sa.func.max(e.id)).where(of_state, e.id < event, closing))
    last = conn.scalar(sa.select(sa.func.min(e.id)).where(of_state, e.id >= event, closing))
    query = sa.select(t.events).where(of_state, e.id >= (first or 0), e.id > (former or 0))
    if last is not None:
        query = query.where(e.id <= last)
    return history.rows(conn, query.order_by(e.id).limit(MAX_EVENTS))


def transitions_after(conn: Connection, after: int, up_to: int, *, limit: int) -> Sequence[Event]:
    """Return the oldest changes of breakers with an id above `after` and up to `up_to`.

    Those that are not enforced are among them.
    """
    e = t.events.c
    query = sa.select(t.events).where(
        e.kind == EventKind.SERVICE,
        e.to_status.in_([*_STATES, WOULD_OPEN]),
        e.id > after,
        e.id <= up_to,
    )
    return history.rows(conn, query.order_by(e.id).limit(limit))


def around(conn: Connection, first: int, last: int | None) -> Sequence[Event]:
    """Return the events from one to another, of the kinds that a report mentions; oldest first.

    The oldest `MAX_EVENTS` of them.

    Args:
        last: None: up to the newest.
    """
    e = t.events.c
    query = sa.select(t.events).where(e.id >= first, e.kind.in_(_AROUND), e.to_status != WOULD_OPEN)
    if last is not None:
        query = query.where(e.id <= last)
    return history.rows(conn, query.order_by(e.id).limit(MAX_EVENTS))


def resumed(conn: Connection, first: int, names: Collection[str]) -> Mapping[str, Sequence[Event]]:
    """Return when campaign runs stopped being paused after an event, by name."""
    stopped = t.events.c.from_status == RunStatus.PAUSED
    return _by_name(conn, first, names, EventKind.CAMPAIGN_RUN, stopped)


def given_back(
    conn: Connection, first: int, names: Collection[str]
) -> Mapping[str, Sequence[Event]]:
    """Return when takeovers ended after an event, by the name that events give them."""
    ended = t.events.c.to_status.in_([outcome.value for outcome in TakeoverOutcome])
    return _by_name(conn, first, names, EventKind.TAKEOVER, ended)


def missed(
    conn: Connection, campaigns: Collection[str], since: datetime, until: datetime
) -> Sequence[MissedTick]:
    """Return the schedule ticks that campaigns missed in a period, the oldest first."""
    c = t.missed_ticks.c
    ticks: list[MissedTick] = []
    for chunk in _chunks(campaigns):
        rows = conn.execute(
            sa.select(c.campaign, c.schedule, c.tick_at, c.outcome, c.reason)
            .where(c.campaign.in_(chunk), c.tick_at >= since, c.tick_at <= until)
            .order_by(c.tick_at, c.campaign, c.schedule)
            .limit(MAX_EVENTS)
        ).mappings()
        for row in rows:
            outcome = None if row["outcome"] is None else TickOutcome(row["outcome"])
            ticks.append(MissedTick(**{**row, "outcome": outcome}))
    return ticks


def records(
    conn: Connection, names: Collection[str], since: datetime, until: datetime
) -> Mapping[str, RunRecords]:
    """Return the records of campaign runs now, by name of the campaign run.

    Args:
        names: The first `MAX_RUNS` of them are read.
        since: From when on attempts that were cut off count (UTC).
    """
    pairs = [(campaign, part) for campaign, _, part in (n.partition("/") for n in names)]
    runs_by_id = {}
    for chunk in _chunks(pairs[:MAX_RUNS]):
        runs_by_id |= {run.id: run for run in runs.named(conn, chunk).values() if run.name in names}
    counts: dict[int, RunRecords] = {}
    p, a, ledger = t.progress.c, t.attempts.c, t.ledger.c
    for chunk in _chunks(runs_by_id):
        cut_off: dict[int, list[datetime]] = {}
        ended = conn.execute(
            sa.select(a.campaign_run, a.ended_at).where(
                a.campaign_run.in_(chunk),
                a.outcome == RunStatus.FAILED,
                a.ended_at >= since,
                a.ended_at <= until,
            )
        )
        for row in ended:
            cut_off.setdefault(row.campaign_run, []).append(row.ended_at)
        ops: dict[int, list[sa.RowMapping]] = {}
        for row in conn.execute(
            sa.select(p.campaign_run, p.op, p.done, p.failed, p.total).where(
                p.campaign_run.in_(chunk)
            )
        ).mappings():
            ops.setdefault(row["campaign_run"], []).append(row)
        for run_id, rows in ops.items():
            run = runs_by_id[run_id]
            done, failed = sum(row["done"] for row in rows), sum(row["failed"] for row in rows)
            total = sum(row["total"] or 0 for row in rows)
            skipped = 0
            if run.status is RunStatus.COMPLETED and done + failed < total:
                skipped = conn.scalar(
                    sa.select(sa.func.count()).where(
                        ledger.campaign_run == run.id,
                        ledger.attempt >= run.first_attempt,
                        ledger.status == RecordStatus.SKIPPED,
                    )
                )
            counts[run.id] = RunRecords(
                run.status,
                done,
                failed,
                total,
                any(row["total"] is None for row in rows),
                {row["op"]: row["done"] for row in rows},
                skipped or 0,
                cut_off.get(run.id, ()),
            )
    return {runs_by_id[id_].name: each for id_, each in counts.items()}


def paused_runs(conn: Connection, campaigns: Collection[str]) -> int:
    """Return how many runs of campaigns are paused now."""
    c = t.campaign_runs.c
    return sum(
        conn.scalar(
            sa.select(sa.func.count()).where(c.status == RunStatus.PAUSED, c.campaign.in_(chunk))
        )
        or 0
        for chunk in _chunks(campaigns)
    )


def _changes(service: str | None = None) -> sa.ColumnElement[bool]:
    """Which events are changes of state, of the breaker of a service or of any."""
    e = t.events.c
    of_state = (e.kind == EventKind.SERVICE) & e.to_status.in_(_STATES)
    return of_state if service is None else of_state & (e.name == service)


def _by_name(
    conn: Connection,
    first: int,
    names: Collection[str],
    kind: EventKind,
    condition: sa.ColumnElement[bool],
) -> Mapping[str, Sequence[Event]]:
    """The events of a kind that came after another, the oldest first, by name."""
    e = t.events.c
    events: dict[str, list[Event]] = {}
    for chunk in _chunks(names):
        query = sa.select(t.events).where(e.kind == kind, e.name.in_(chunk), e.id > first)
        for event in history.rows(conn, query.where(condition).order_by(e.id)):
            events.setdefault(event.name, []).append(event)
    return events


def _chunks(values: Collection) -> Iterator[list]:
    listed = list(values)
    for first in range(0, len(listed), _CHUNK):
        yield listed[first : first + _CHUNK]
