"""Takeovers: what the gate changed in Dagster, and the value it had before.

A change is three steps, so that a gate can die between any two: the store says what is to be
written (`take`, `intend`; committed), Dagster is written, the store says that it was (`written`).
No other gate gets in between, see `store.gate_lock`. Each step raises the version and works on one
version alone, so that what was planned before is not done after another gate has been there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from dagster_tidegate.holds import SystemActor
from dagster_tidegate.pools import needs
from dagster_tidegate.store import events
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.upsert import insert

# Values of a pool, besides numbers: no limit of its own, or one that follows the instance's.
UNSET = "unset"
DEFAULT = "default"
# Values of a schedule or sensor, as Dagster spells them.
RUNNING = "RUNNING"
STOPPED = "STOPPED"
DECLARED_IN_CODE = "DECLARED_IN_CODE"


class TakeoverKind(StrEnum):
    """What of Dagster's may be taken over."""

    POOL = "pool"
    SCHEDULE = "schedule"
    SENSOR = "sensor"


class Outcome(StrEnum):
    """What became of a takeover."""

    RESTORED = "restored"
    LEFT_TO_OPERATOR = "left_to_operator"
    GONE = "gone"  # the schedule or sensor is in nobody's code any more


@dataclass(frozen=True)
class Takeover:
    """A pool, schedule or sensor that the gate changed. Values are Dagster's; times are UTC.

    Attributes:
        id: Number of the row.
        kind: What it is.
        name: Name of the pool; Dagster's selector id of a schedule or sensor.
        label: What a person calls it.
        campaign: Whose schedule or sensor it is; None for a pool.
        location: The code location that took it.
        former: The value to give back.
        set_from: The value before the latest write.
        set_to: The value of the latest write.
        pending: Whether the latest write may not have reached Dagster.
        version: Raised by every change of the row.
        taken_at: Since when.
        running_since: When a schedule was last switched on before that, where known.
        ramp_step_at: When the ramp took its latest step, or None before the ramp.
        left_at: When a person's change was seen, or None. It is theirs since then.
    """

    id: int
    kind: TakeoverKind
    name: str
    label: str
    campaign: str | None
    location: str
    former: str
    set_from: str
    set_to: str
    pending: bool
    version: int
    taken_at: datetime
    running_since: datetime | None
    ramp_step_at: datetime | None
    left_at: datetime | None

    def __str__(self) -> str:
        return _recorded_as(self.kind, self.label)


def _recorded_as(kind: str, label: str) -> str:
    return f"{kind} {label}"


_COLUMNS = [column for column in t.takeovers.c if column.name not in ("given_back_at", "outcome")]


LIVE = sa.select(*_COLUMNS).where(t.takeovers.c.given_back_at.is_(None))
NEWEST_ID = sa.select(sa.func.max(t.takeovers.c.id).label("id"))


def from_row(values: Mapping[Any, Any]) -> Takeover:
    """Return the takeover of a row of `LIVE`."""
    return Takeover(**{**values, "kind": TakeoverKind(values["kind"])})


def newest_id(conn: Connection) -> int:
    """Return the id of the newest takeover of all times, 0 before the first.

    Read it before Dagster is looked at, and pass it to `take`.
    """
    return conn.scalar(NEWEST_ID) or 0


def live(conn: Connection) -> Sequence[Takeover]:
    """Return the takeovers that have not been given back, the oldest first."""
    return [from_row(row) for row in conn.execute(LIVE.order_by(t.takeovers.c.id)).mappings()]


def names_about(conn: Connection, name: str) -> Sequence[str]:
    """Return under which names the record has what was taken over of a service or campaign."""
    c = t.takeovers.c
    found = []
    for row in conn.execute(sa.select(c.kind, c.label, c.campaign).distinct()):
        needed = needs(row.label if row.kind == TakeoverKind.POOL else None, [name])
        if name in (row.campaign, needed.campaign, *needed.services):
            found.append(_recorded_as(row.kind, row.label))
    return found


def take(
    conn: Connection,
    now: datetime,
    *,
    kind: TakeoverKind,
    name: str,
    label: str,
    campaign: str | None,
    location: str,
    former: str,
    set_to: str,
    running_since: datetime | None = None,
    seen: int,
) -> Takeover | None:
    """Write down that something is about to be taken over, and what it was.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        kind: What it is.
        name: Its name.
        label: What a person calls it.
        campaign: Whose schedule or sensor it is.
        location: The code location that takes it.
        former: The value that Dagster has.
        set_to: The value that is to be written.
        running_since: When a schedule was last switched on, where known.
        seen: `newest_id` from before `former` was read.

    Returns:
        The takeover, or None where another gate took it since `seen`: then `former` may be a
        value that the other gate wrote.
    """
    raced = conn.scalar(
        sa.select(t.takeovers.c.id)
        .where(t.takeovers.c.kind == kind, t.takeovers.c.name == name, t.takeovers.c.id > seen)
        .limit(1)
    )
    if raced is not None:
        return None
    row = conn.execute(
        insert(conn, t.takeovers)
        .values(
            kind=kind,
            name=name,
            label=label,
            campaign=campaign,
            location=location,
            former=former,
            set_from=former,
            set_to=set_to,
            pending=True,
            version=1,
            taken_at=now,
            running_since=running_since,
        )
        .on_conflict_do_nothing()
        .returning(*_COLUMNS)
    ).one_or_none()
    if row is None:
        return None
    takeover = from_row(row._mapping)
    _event(conn, now, takeover, former, set_to, "taken over")
    return takeover


def intend(
    conn: Connection,
    now: datetime,
    takeover: Takeover,
    *,
    found: str,
    set_to: str,
    ramp_step_at: datetime | None = None,
) -> Takeover | None:
    """Write down which value Dagster is to have, and whether it is about to be written.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        takeover: The takeover as it was read.
        found: The value that Dagster has.
        set_to: The value that it is to have.
        ramp_step_at: When the ramp took its latest step, or None outside a ramp.

    Returns:
        The takeover as it is now, or None where another gate changed it first.
    """
    changed = _change(
        conn,
        takeover,
        set_from=found,
        set_to=set_to,
        pending=found != set_to,
        ramp_step_at=ramp_step_at,
    )
    if changed is not None and found != set_to:
        _event(conn, now, takeover, found, set_to, None)
    return changed


def written(conn: Connection, takeover: Takeover) -> Takeover | None:
    """Write down that Dagster has the value. Returns None where another gate was first."""
    return _change(conn, takeover, pending=False)


def leave(conn: Connection, now: datetime, takeover: Takeover, found: str) -> Takeover | None:
    """Write down that a person changed what was taken over: it is theirs from now on.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        takeover: The takeover as it was read.
        found: The value that the person gave it.

    Returns:
        The takeover as it is now, or None where another gate changed it first.
    """
    changed = _change(conn, takeover, pending=False, left_at=now)
    if changed is not None:
        _event(conn, now, takeover, takeover.set_to, found, "changed by a person: left as it is")
    return changed


def end(conn: Connection, now: datetime, takeover: Takeover, outcome: Outcome) -> bool:
    """Write down that something is Dagster's own again.

    Returns:
        Whether this call ended it; False where another gate was first.
    """
    changed = _change(conn, takeover, pending=False, given_back_at=now, outcome=outcome)
    if changed is not None:
        _event(conn, now, takeover, takeover.set_to, outcome, None)
    return changed is not None


def _change(conn: Connection, takeover: Takeover, **values: object) -> Takeover | None:
    row = conn.execute(
        t.takeovers.update()
        .where(
            t.takeovers.c.id == takeover.id,
            t.takeovers.c.version == takeover.version,
            t.takeovers.c.given_back_at.is_(None),
        )
        .values(version=takeover.version + 1, **values)
        .returning(*_COLUMNS)
    ).one_or_none()
    return None if row is None else from_row(row._mapping)


def _event(
    conn: Connection,
    now: datetime,
    takeover: Takeover,
    from_status: str,
    to_status: str,
    reason: str | None,
) -> None:
    events.write(
        conn,
        now,
        kind=EventKind.TAKEOVER,
        name=str(takeover),
        from_status=from_status,
        to_status=to_status,
        reason=reason,
        actor=SystemActor.GATE,
    )
