"""Alerts in the store: the outbox, and what has been sent."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.upsert import insert

READER = "alerts"
"""Name of the cursor of the alert senders."""
COUNTED_FOR = timedelta(hours=24)
"""How long `counts` includes alerts that need no further try."""


class AlertStatus(StrEnum):
    """Whether an alert has been sent."""

    PENDING = "pending"
    RETRYING = "retrying"
    SENT = "sent"
    GIVEN_UP = "given_up"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True)
class Alert:
    """An alert. Times are UTC.

    Attributes:
        kind: What it is about: `trip`, `gate_stale`, ...
        ended_at: When its cause ended; None while it lasts.
        sent_at: When all targets had accepted it.
        next_try_at: When it is tried next; None means never.
        delivered_to: The targets that have accepted it.
        withheld: How often its cause has occurred since without a message.
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
        """Whether it has been sent."""
        if self.sent_at is not None:
            return AlertStatus.SENT
        if self.next_try_at is not None:
            return AlertStatus.PENDING if self.error is None else AlertStatus.RETRYING
        return AlertStatus.GIVEN_UP if self.tries else AlertStatus.WITHDRAWN


@dataclass(frozen=True)
class Cursor:
    """The position of the alert senders in the events.

    Attributes:
        event: The last event that was read.
        at: When a sender last checked (UTC), accurate to half a minute.
    """

    event: int
    at: datetime


@dataclass(frozen=True)
class AlertCounts:
    """The state of the outbox. Times are UTC.

    Attributes:
        by_status: Number of alerts by status; those that need no further try count for
            `COUNTED_FOR`.
        live: Number of alerts whose cause lasts, by kind.
        oldest_pending_at: When the oldest unsent alert was raised, if there is one.
        looked_at: When a sender last checked, accurate to half a minute; None if none ever did.
    """

    by_status: Mapping[AlertStatus, int]
    live: Mapping[str, int]
    oldest_pending_at: datetime | None
    looked_at: datetime | None

    @property
    def failing(self) -> int:
        """How many alerts could not be sent so far."""
        return self.by_status[AlertStatus.RETRYING] + self.by_status[AlertStatus.GIVEN_UP]


def raise_alert(
    conn: Connection,
    now: datetime,
    *,
    kind: str,
    name: str,
    title: str,
    body: str,
    lasts: bool,
    withheld: int = 0,
) -> bool:
    """Add an alert to the outbox, unless one of the same kind and name is live.

    Args:
        lasts: Whether it is live until `end` is called.

    Returns:
        Whether it was added.
    """
    added = conn.execute(
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
    return added is not None


def end(conn: Connection, now: datetime, alert: int, *, withdraw: bool) -> None:
    """Record that the cause of an alert has ended.

    Args:
        withdraw: Drop its message, unless a sender has tried to send it already.
    """
    a = t.alerts.c
    conn.execute(t.alerts.update().where(a.id == alert, a.ended_at.is_(None)).values(ended_at=now))
    if withdraw:
        conn.execute(t.alerts.update().where(a.id == alert, a.tries == 0).values(next_try_at=None))


def withhold(conn: Connection, alert: int, times: int) -> None:
    """Set how often the cause of an alert has occurred since without a message."""
    conn.execute(t.alerts.update().where(t.alerts.c.id == alert).values(withheld=times))


def recent(conn: Connection, since: datetime, *, withheld_since: datetime) -> Sequence[Alert]:
    """Return the alerts that the rules need, the oldest first.

    These are the live ones, those raised since `since`, and those raised since `withheld_since`
    with something withheld.
    """
    a = t.alerts.c
    has_withheld = (a.withheld > 0) & (a.raised_at >= withheld_since)
    needed = a.ended_at.is_(None) | (a.raised_at >= since) | has_withheld
    return _read(conn, sa.select(t.alerts).where(needed).order_by(a.id))


def due(conn: Connection, now: datetime, *, limit: int) -> Sequence[Alert]:
    """Return the alerts to send now, the oldest first.

    Alerts with the same name are sent in order: one waits for an earlier one that is still being
    tried and that no target has accepted. A target that fails therefore delays no other.
    """
    a = t.alerts.c
    earlier = t.alerts.alias()
    blocked = sa.exists().where(
        earlier.c.name == a.name,
        earlier.c.id < a.id,
        earlier.c.next_try_at.is_not(None),
        earlier.c.delivered_to.is_(None),
    )
    query = sa.select(t.alerts).where(a.next_try_at <= now, ~blocked).order_by(a.id).limit(limit)
    return _read(conn, query)


def claim(conn: Connection, alert: Alert, until: datetime) -> bool:
    """Claim an alert to send it; False if another sender has claimed it.

    Args:
        until: When another sender may try, unless `finish` is called before (UTC).
    """
    a = t.alerts.c
    claimed = conn.execute(
        t.alerts.update()
        .where(a.id == alert.id, a.next_try_at == alert.next_try_at)
        .values(next_try_at=until, tries=a.tries + 1)
    )
    return claimed.rowcount == 1


def finish(
    conn: Connection,
    alert: Alert,
    until: datetime,
    *,
    delivered_to: Collection[str],
    sent_at: datetime | None,
    next_try_at: datetime | None,
    error: str | None,
) -> bool:
    """Record the result of a try; False if the claim has expired and another sender has begun.

    Args:
        until: The `until` of the claim.
        delivered_to: The targets that have accepted the alert, now or before.
        sent_at: When all targets had accepted it (UTC).
        next_try_at: When to try next (UTC); None means never.
    """
    a = t.alerts.c
    finished = conn.execute(
        t.alerts.update()
        .where(a.id == alert.id, a.next_try_at == until)
        .values(
            delivered_to=sorted(delivered_to) or None,
            sent_at=sent_at,
            next_try_at=next_try_at,
            error=error,
        )
    )
    return finished.rowcount == 1


def listed(conn: Connection, *, before: int | None = None, limit: int) -> Sequence[Alert]:
    """Return the newest alerts, the newest first; with `before`, only those with a lower id."""
    query = sa.select(t.alerts).order_by(t.alerts.c.id.desc()).limit(limit)
    return _read(conn, query if before is None else query.where(t.alerts.c.id < before))


def counts(conn: Connection, now: datetime) -> AlertCounts:
    """Return the state of the outbox."""
    a = t.alerts.c
    status = sa.case(  # the same as `Alert.status`
        (a.sent_at.is_not(None), AlertStatus.SENT.value),
        (a.next_try_at.is_not(None) & a.error.is_(None), AlertStatus.PENDING.value),
        (a.next_try_at.is_not(None), AlertStatus.RETRYING.value),
        (a.tries > 0, AlertStatus.GIVEN_UP.value),
        else_=AlertStatus.WITHDRAWN.value,
    ).label("status")
    rows = conn.execute(
        sa.select(
            status,
            sa.func.count().label("alerts"),
            sa.func.min(sa.case((a.next_try_at.is_not(None), a.raised_at))).label("oldest"),
        )
        .where(a.next_try_at.is_not(None) | (a.raised_at >= now - COUNTED_FOR))
        .group_by(status)
    ).all()
    live = conn.execute(
        sa.select(a.kind, sa.func.count().label("alerts"))
        .where(a.ended_at.is_(None))
        .group_by(a.kind)
    )
    by_status = dict.fromkeys(AlertStatus, 0) | {
        AlertStatus(row.status): row.alerts for row in rows
    }
    cursor = read_cursor(conn)
    return AlertCounts(
        by_status=by_status,
        live={row.kind: row.alerts for row in live},
        oldest_pending_at=min((row.oldest for row in rows if row.oldest), default=None),
        looked_at=None if cursor is None else cursor.at,
    )


def read_cursor(conn: Connection) -> Cursor | None:
    """Return the position of the alert senders; None if none has ever checked."""
    c = t.cursors.c
    row = conn.execute(sa.select(c.event, c.at).where(c.reader == READER)).one_or_none()
    return None if row is None else Cursor(row.event, row.at)


def move_cursor(conn: Connection, now: datetime, *, before: Cursor | None, event: int) -> bool:
    """Move the cursor to an event; False if another sender has moved it since.

    Args:
        before: The cursor as it was read.
        event: The last event that was read.
    """
    if before is None:
        # Not by rowcount, which PostgreSQL's driver does not give for an INSERT.
        created = conn.execute(
            insert(conn, t.cursors)
            .values(reader=READER, event=event, at=now)
            .on_conflict_do_nothing()
            .returning(t.cursors.c.reader)
        )
        return created.first() is not None
    c = t.cursors.c
    moved = t.cursors.update().where(c.reader == READER, c.event == before.event, c.at == before.at)
    return conn.execute(moved.values(event=event, at=now)).rowcount == 1


def _read(conn: Connection, query: sa.Select[Any]) -> Sequence[Alert]:
    return [Alert(**row) for row in conn.execute(query).mappings()]
