"""Maintenance windows of services: the time of each at which the gate places a hold next."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

import sqlalchemy as sa

from dagster_tidegate.holds import HoldSource, SystemActor, Target, TargetKind
from dagster_tidegate.store import holds
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.upsert import insert
from dagster_tidegate.text import length, utc

ANNOUNCED = timedelta(hours=24)
"""How long before it begins a maintenance window is announced."""

NO_START = timedelta(seconds=60)
"""How long before a window no run starts: it might not finish a record."""

BY_HAND = ""
"""The code location of windows that a person has added."""

_KEY = ("location", "service", "cron", "timezone", "duration_s")


@dataclass(frozen=True)
class PlannedWindow:
    """A maintenance window of a service.

    Attributes:
        location: The code location that declares it, or `BY_HAND`.
        starts_at: When it begins next (UTC). In the past until the gate has placed its hold.
        ends_at: When it ends then (UTC).
    """

    location: str
    service: str
    cron: str
    timezone: str
    duration_s: int
    reason: str
    starts_at: datetime
    ends_at: datetime

    def announcement(self, now: datetime) -> str:
        """Return what comes, for people: "mailer pauses in 20 min, until ..."."""
        begins = f"in {length(self.starts_at - now)}"
        return f"{self.service} pauses {begins}, until {utc(self.ends_at)} ({self.reason})"

    def is_soon(self, now: datetime) -> bool:
        """Return whether it begins so soon that lists announce it."""
        return self.starts_at <= now + ANNOUNCED

    def keeps_from_starting(self, now: datetime) -> bool:
        """Return whether it begins so soon that no run starts; a short one keeps them no longer."""
        early = min(NO_START, timedelta(seconds=self.duration_s))
        return self.starts_at - early <= now < self.ends_at

    @property
    def key(self) -> tuple[str | int, ...]:
        """What tells it from all others."""
        return tuple(getattr(self, name) for name in _KEY)


def read(conn: Connection, locations: Collection[str] | None = None) -> Sequence[PlannedWindow]:
    """Return the windows, of some or of all code locations; those that begin first come first."""
    w = t.windows.c
    query = sa.select(t.windows)
    if locations is not None:
        query = query.where(w.location.in_(locations))
    rows = conn.execute(query.order_by(w.starts_at, w.service, w.location, w.cron)).mappings()
    return [PlannedWindow(**row) for row in rows]


def save(conn: Connection, location: str, planned: Collection[PlannedWindow]) -> None:
    """Make these the windows of a code location. One that it has already keeps its next time."""
    stored = {window.key: window for window in read(conn, [location])}
    wanted = {window.key: window for window in planned}
    for key in stored.keys() - wanted.keys():
        conn.execute(t.windows.delete().where(_is(stored[key])))
    for key, window in wanted.items():
        if key not in stored:
            conn.execute(insert(conn, t.windows).values(asdict(window)).on_conflict_do_nothing())
        elif stored[key].reason != window.reason:
            conn.execute(t.windows.update().where(_is(window)).values(reason=window.reason))


def add(conn: Connection, window: PlannedWindow) -> None:
    """Add a window; of one that is there already, the reason and the next time are replaced."""
    values = asdict(window)
    conn.execute(
        insert(conn, t.windows)
        .values(values)
        .on_conflict_do_update(index_elements=_KEY, set_=values)
    )


def remove(conn: Connection, window: PlannedWindow) -> None:
    """Remove a window; its hold stays until it expires or is released."""
    conn.execute(t.windows.delete().where(_is(window)))


def begin(conn: Connection, now: datetime, window: PlannedWindow, following: PlannedWindow) -> bool:
    """Place the hold of a window that has begun, and move the window on to its next time.

    One time of a window places its hold once, whoever is first, so that a hold that somebody has
    released stays released until the next time. A live hold of another window of the service is
    made longer.

    Args:
        window: As read; its hold is not placed if it has ended meanwhile.
        following: The same window with its next time.

    Returns:
        Whether the hold was placed.
    """
    w = t.windows.c
    same = sa.and_(*(w[name] == getattr(window, name) for name in _KEY if name != "location"))
    moved = conn.execute(
        t.windows.update()
        .where(same, w.starts_at <= now)
        .values(starts_at=following.starts_at, ends_at=following.ends_at)
    ).rowcount
    if not moved or window.ends_at <= now:
        return False
    target = Target(TargetKind.SERVICE, window.service)
    ends_at, reason = window.ends_at, window.reason
    for hold in holds.live(conn, now, target):
        if hold.is_of_window and hold.expires_at is not None and hold.expires_at > ends_at:
            ends_at, reason = hold.expires_at, hold.reason
    holds.place(
        conn,
        now,
        target,
        source=HoldSource.OPERATOR,
        reason=reason,
        actor=SystemActor.WINDOW,
        expires_at=ends_at,
    )
    return True


def at(window: PlannedWindow, starts_at: datetime, ends_at: datetime) -> PlannedWindow:
    """Return the window at another of its times."""
    return replace(window, starts_at=starts_at, ends_at=ends_at)


def _is(window: PlannedWindow) -> sa.ColumnElement[bool]:
    w = t.windows.c
    return sa.and_(*(w[name] == getattr(window, name) for name in _KEY))
