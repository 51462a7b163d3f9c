"""Alerts in the store: what was raised, and whether people were told. It is the outbox."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from dagster_tidegate.store import tables as t
from dagster_tidegate.store.upsert import insert

READER = "alerts"
"""Name of the cursor of who raises alerts."""
COUNTED_FOR = timedelta(hours=24)
"""Alerts that were sent or given up are counted for so long."""


class AlertStatus(StrEnum):
    """Whether people were told of an alert."""

    PENDING = "pending"
    RETRYING = "retrying"
    SENT = "sent"
    GIVEN_UP = "given_up"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True)
class Alert:
    """Something that people are told of, once. Times are UTC.

    Attributes:
        id: Its number.
        kind: What happened: `trip`, `gate_stale`, ...
        name: What it is about.
        title: One line for people.
        body: All of it.
        raised_at: Since when.
        ended_at: When its cause ended; None while it lasts.
        sent_at: When every target had it.
        tries: How often sending it was tried.
        next_try_at: When it is tried next; None: no more.
        error: Why the latest try failed.
        delivered_to: The targets that have it.
        withheld: How often the same happened since, without being told.
    """

    id: int
    kind: str
    name: str
    title: str
    body: str
    raised_at: datetime
    ended_at: datetime | None = None
    sent_at: datetime | None = None
    tries: int = 0
    next_try_at: datetime | None = None
    error: str | None = None
    delivered_to: Sequence[str] | None = None
    withheld: int = 0

    @property
    def live(self) -> bool:
        """Whether its cause lasts."""
        return self.ended_at is None

    @property
    def status(self) -> AlertStatus:
        """Whether people were told."""
        if self.sent_at is not None:
            return AlertStatus.SENT
        if self.next_try_at is not None:
            return AlertStatus.PENDING if self.error is None else AlertStatus.RETRYING
        return AlertStatus.GIVEN_UP if self.tries else AlertStatus.WITHDRAWN


@dataclass(frozen=True)
class Cursor:
    """How far whoever raises alerts is.

    Attributes:
        event: The last event that alerts were raised of.
        at: When somebody last looked whether there is something to tell, to half a minute (UTC).
    """

    event: int
    at: datetime


@dataclass(frozen=True)
class Counts:
    """How the sending of alerts goes.

    Attributes:
        by_status: How many have each status; of those that are over, the ones that were raised
            within `COUNTED_FOR`.
        live: How many of each kind last.
        oldest_pending_at: Since when the oldest one waits that is not sent yet (UTC), or None.
        looked_at: When somebody last looked whether there is something to tell, to half a minute
            (UTC); None: never.
    """

    by_status: Mapping[AlertStatus, int]
    live: Mapping[str, int]
    oldest_pending_at: datetime | None
    looked_at: datetime | None

    @property
    def failing(self) -> int:
        """How many people were not told of, though it was tried."""
        return self.by_status[AlertStatus.RETRYING] + self.by_status[AlertStatus.GIVEN_UP]


def raise_alert(
    conn: sa.Connection,
    now: datetime,
    *,
    kind: str,
    name: str,
    title: str,
    body: str,
    lasts: bool,
    withheld: int = 0,
) -> bool:
    """Write down that people are to be told of something; of what lasts already, only once.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        kind: What happened.
        name: What it is about.
        title: One line for people.
        body: All of it.
        lasts: Whether its cause lasts, until `end` says that it has ended.
        withheld: How often the same happened again already.

    Returns:
        Whether it is new.
    """
    made = conn.execute(
        insert(conn, t.alerts)
        .values(
            kind=kind,
            name=name,
            title=title,
            body=body,
            raised_at=now,
            ended_at=None if lasts else now,
            next_try_at=now,
            withheld=withheld,
        )
        .on_conflict_do_nothing()
        .returning(t.alerts.c.id)
    ).first()
    return made is not None


def end(conn: sa.Connection, now: datetime, alert: int, *, withdraw: bool) -> None:
    """Write down that the cause of an alert has ended.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        alert: Id of the alert.
        withdraw: Tell nobody of it any more, if nobody has tried to.
    """
    a = t.alerts.c
    conn.execute(t.alerts.update().where(a.id == alert, a.ended_at.is_(None)).values(ended_at=now))
    if withdraw:
        conn.execute(t.alerts.update().where(a.id == alert, a.tries == 0).values(next_try_at=None))


def withhold(conn: sa.Connection, alert: int, times: int) -> None:
    """Set how often the same happened again without being told."""
    conn.execute(t.alerts.update().where(t.alerts.c.id == alert).values(withheld=times))


def recent(conn: sa.Connection, since: datetime, *, withheld_since: datetime) -> Sequence[Alert]:
    """Return the alerts that matter to what is told next, the oldest first.

    Args:
        conn: A connection of the store.
        since: Those that were raised since (UTC), and those that last.
        withheld_since: Those with something withheld that were raised since (UTC).
    """
    a = t.alerts.c
    withheld = (a.withheld > 0) & (a.raised_at >= withheld_since)
    wanted = a.ended_at.is_(None) | (a.raised_at >= since) | withheld
    return _read(conn, sa.select(t.alerts).where(wanted).order_by(a.id))


def due(conn: sa.Connection, now: datetime, *, limit: int) -> Sequence[Alert]:
    """Return the alerts that are to be sent now, the oldest first.

    Those about the same thing are sent in the order in which they were raised: an alert waits for
    an earlier one that is still tried and has reached no target. So no target waits for another.
    """
    a = t.alerts.c
    earlier = t.alerts.alias()
    waits = sa.exists().where(
        earlier.c.name == a.name,
        earlier.c.id < a.id,
        earlier.c.next_try_at.is_not(None),
        earlier.c.delivered_to.is_(None),
    )
    query = sa.select(t.alerts).where(a.next_try_at <= now, ~waits).order_by(a.id).limit(limit)
    return _read(conn, query)


def claim(conn: sa.Connection, alert: Alert, until: datetime) -> bool:
    """Take an alert to send it; False if another sender was faster.

    Args:
        conn: A connection of the store that writes.
        alert: The alert as it was read.
        until: When others may try, if nothing is heard of this try (UTC).
    """
    a = t.alerts.c
    return (
        conn.execute(
            t.alerts.update()
            .where(a.id == alert.id, a.next_try_at == alert.next_try_at)
            .values(next_try_at=until, tries=a.tries + 1)
        ).rowcount
        == 1
    )


def settle(
    conn: sa.Connection,
    alert: Alert,
    until: datetime,
    *,
    delivered_to: Collection[str],
    sent_at: datetime | None,
    next_try_at: datetime | None,
    error: str | None,
) -> bool:
    """Write down how a try ended; False if it took so long that another sender has begun.

    Args:
        conn: A connection of the store that writes.
        alert: The alert as it was read.
        until: What `claim` was told.
        delivered_to: The targets that have it.
        sent_at: When all of them had it (UTC), or None.
        next_try_at: When it is tried next (UTC), or None.
        error: Why the try failed.
    """
    a = t.alerts.c
    return (
        conn.execute(
            t.alerts.update()
            .where(a.id == alert.id, a.next_try_at == until)
            .values(
                delivered_to=sorted(delivered_to) or None,
                sent_at=sent_at,
                next_try_at=next_try_at,
                error=error,
            )
        ).rowcount
        == 1
    )


def listed(conn: sa.Connection, *, before: int | None = None, limit: int) -> Sequence[Alert]:
    """Return the newest alerts, the newest first.

    Args:
        conn: A connection of the store.
        before: Only those that are older than the alert with this id.
        limit: How many at most.
    """
    query = sa.select(t.alerts).order_by(t.alerts.c.id.desc()).limit(limit)
    return _read(conn, query if before is None else query.where(t.alerts.c.id < before))


def counts(conn: sa.Connection, now: datetime) -> Counts:
    """Return how the sending of alerts goes."""
    a = t.alerts.c
    status = sa.case(
        (a.sent_at.is_not(None), AlertStatus.SENT.value),
        (a.next_try_at.is_not(None) & a.error.is_(None), AlertStatus.PENDING.value),
        (a.next_try_at.is_not(None), AlertStatus.RETRYING.value),
        (a.tries > 0, AlertStatus.GIVEN_UP.value),
        else_=AlertStatus.WITHDRAWN.value,
    ).label("status")
    counted = a.next_try_at.is_not(None) | (a.raised_at >= now - COUNTED_FOR)
    rows = conn.execute(
        sa.select(
            status,
            sa.func.count().label("alerts"),
            sa.func.min(sa.case((a.next_try_at.is_not(None), a.raised_at))).label("oldest"),
        )
        .where(counted)
        .group_by(status)
    ).all()
    live = conn.execute(
        sa.select(a.kind, sa.func.count().label("alerts"))
        .where(a.ended_at.is_(None))
        .group_by(a.kind)
    )
    found = {AlertStatus(row.status): row.alerts for row in rows}
    cursor = read_cursor(conn)
    return Counts(
        by_status={each: found.get(each, 0) for each in AlertStatus},
        live={row.kind: row.alerts for row in live},
        oldest_pending_at=min((row.oldest for row in rows if row.oldest), default=None),
        looked_at=None if cursor is None else cursor.at,
    )


def read_cursor(conn: sa.Connection) -> Cursor | None:
    """Return how far whoever raises alerts is; None: nobody ever looked."""
    c = t.cursors.c
    row = conn.execute(sa.select(c.event, c.at).where(c.reader == READER)).one_or_none()
    return None if row is None else Cursor(row.event, row.at)


def move_cursor(conn: sa.Connection, now: datetime, *, seen: Cursor | None, event: int) -> bool:
    """Move the cursor to an event; False if somebody else has looked since.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        seen: The cursor as it was read; None: there was none.
        event: The last event that was read.
    """
    if seen is None:
        made = insert(conn, t.cursors).values(reader=READER, event=event, at=now)
        return conn.execute(made.on_conflict_do_nothing()).rowcount == 1
    c = t.cursors.c
    moved = t.cursors.update().where(c.reader == READER, c.event == seen.event, c.at == seen.at)
    return conn.execute(moved.values(event=event, at=now)).rowcount == 1


def _read(conn: sa.Connection, query: sa.Select[Any]) -> Sequence[Alert]:
    return [Alert(**row._mapping) for row in conn.execute(query)]
