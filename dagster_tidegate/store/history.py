"""Reads the audit log."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import campaigns, takeovers
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.events import EventKind

_NAMED = (TargetKind.SERVICE, TargetKind.CAMPAIGN, TargetKind.CAMPAIGN_RUN)


@dataclass(frozen=True)
class Event:
    """A recorded change.

    Attributes:
        id: Its id; later events have higher ids.
        at: When (UTC).
        kind: The kind of thing that changed: the value of an `events.EventKind`.
        address: Network address of the actor; None: this machine.
        before: The thing before the change, where the statuses do not say it all.
    """

    id: int
    at: datetime
    kind: str
    name: str
    from_status: str | None
    to_status: str
    reason: str | None
    actor: str
    address: str | None = None
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None

    @property
    def opened(self) -> bool:
        """Whether a breaker tripped; one that is not enforced does not."""
        was_closed = self.kind == EventKind.SERVICE and self.from_status == BreakerState.CLOSED
        return was_closed and self.to_status in (BreakerState.OPEN, BreakerState.HALF_OPEN)

    @property
    def closed(self) -> bool:
        """Whether a breaker closed."""
        return self.kind == EventKind.SERVICE and self.to_status == BreakerState.CLOSED


def read(
    conn: Connection,
    *,
    name: str | None = None,
    kinds: Collection[str] = (),
    actor: str | None = None,
    since: datetime | None = None,
    before: int | None = None,
    limit: int,
) -> Sequence[Event]:
    """Return the newest events, the oldest of them first.

    Args:
        name: Only those about this service, campaign or campaign run, its holds and takeovers, and
            the parts of the service or the runs of the campaign.
        kinds: Only those of these kinds.
        actor: Only those of this actor.
        since: Only those from this time on (UTC).
        before: Only those with a lower id.
    """
    c = t.events.c
    query = sa.select(t.events)
    if name is not None:
        # A hold's event is named as its target: "service openai".
        targets = [Target(kind, name).key for kind in _NAMED]
        taken = takeovers.names_about(conn, name, campaigns.adopted(conn))
        beginnings = [f"{name}/", *(f"{target}/" for target in targets)]
        about = sa.or_(
            c.name.in_([name, *targets]),
            sa.and_(c.kind == EventKind.TAKEOVER, c.name.in_(taken)),
            # Not LIKE, which ignores case on SQLite.
            *(sa.func.substr(c.name, 1, len(beginning)) == beginning for beginning in beginnings),
        )
        query = query.where(about)
    if kinds:
        query = query.where(c.kind.in_(kinds))
    if actor is not None:
        query = query.where(c.actor == actor)
    if since is not None:
        query = query.where(c.at >= since)
    if before is not None:
        query = query.where(c.id < before)
    return rows(conn, query.order_by(c.id.desc()).limit(limit))[::-1]


def newest(conn: Connection, kind: EventKind, name: str) -> Event | None:
    """Return the newest event of a kind that has exactly this name, or None if there is none."""
    c = t.events.c
    query = sa.select(t.events).where(c.kind == kind, c.name == name)
    return next(iter(rows(conn, query.order_by(c.id.desc()).limit(1))), None)


def between(conn: Connection, after: int, up_to: int, *, limit: int) -> Sequence[Event]:
    """Return the oldest events with an id above `after` and up to `up_to`."""
    c = t.events.c
    query = sa.select(t.events).where(c.id > after, c.id <= up_to).order_by(c.id).limit(limit)
    return rows(conn, query)


def rows(conn: Connection, query: sa.Select) -> list[Event]:
    """Return the events that a query on their table selects."""
    return [Event(**row) for row in conn.execute(query).mappings()]
