"""Takeovers: what the gate changed in Dagster, and the value it had before.

A change has three steps, so that a gate may die between any two: the store records what will be
written (`take`, `intend`; committed), Dagster is written, the store records that it was
(`written`). `store.gate_lock` keeps other gates out meanwhile. Each step applies to one version of
the row and increments it, so that a plan made before another gate's change is not applied.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from dagster_tidegate.holds import SystemActor
from dagster_tidegate.pools import Adopted, needs
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
    """What the gate can take over in Dagster."""

    POOL = "pool"
    SCHEDULE = "schedule"
    SENSOR = "sensor"


class TakeoverOutcome(StrEnum):
    """How a takeover ended."""

    RESTORED = "restored"
    LEFT_TO_OPERATOR = "left_to_operator"
    GONE = "gone"  # no code location defines the schedule or sensor


@dataclass(frozen=True)
class Take:
    """What a gate is about to take over. Values are Dagster's; times are UTC.

    Attributes:
        name: Name of the pool; Dagster's selector id of a schedule or sensor.
        label: Its name for people.
        campaign: The campaign of a schedule or sensor; None for a pool.
        location: The code location that takes it.
        former: The value to restore.
        set_to: The value of the latest write.
        running_since: When a schedule was last switched on before that, if known.
    """

    kind: TakeoverKind
    name: str
    label: str
    campaign: str | None
    location: str
    former: str
    set_to: str
    running_since: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Takeover(Take):
    """A pool, schedule or sensor that the gate changed.

    Attributes:
        set_from: The value before the latest write.
        pending: Whether the latest write may not have reached Dagster.
        version: Incremented by every change of the row.
        ramp_step_at: When the ramp took its latest step, or None before the ramp.
        left_at: When a person's change was noticed, or None. The gate leaves it alone from then on.
    """

    id: int
    set_from: str
    pending: bool
    version: int
    taken_at: datetime
    ramp_step_at: datetime | None
    left_at: datetime | None

    def __str__(self) -> str:
        return _recorded_as(self.kind, self.label)


def _recorded_as(kind: str, label: str) -> str:
    return f"{kind} {label}"


_COLUMNS = [column for column in t.takeovers.c if column.name not in ("given_back_at", "outcome")]

_NAMED = sa.select(t.takeovers.c.kind, t.takeovers.c.label, t.takeovers.c.campaign).distinct()
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


def names_about(conn: Connection, name: str, adopted: Adopted) -> Sequence[str]:
    """Return the names under which events record the takeovers of a service or campaign.

    Args:
        adopted: What pools stand for whose names don't say it, in any campaign.
    """
    names = []
    for row in conn.execute(_NAMED):
        needed = needs(row.label if row.kind == TakeoverKind.POOL else None, [name], adopted)
        if name in (row.campaign, needed.campaign, *needed.services):
            names.append(_recorded_as(row.kind, row.label))
    return names


def names_of(conn: Connection, campaigns: Collection[str]) -> Sequence[str]:
    """Return the names under which events record the schedules and sensors of campaigns."""
    rows = conn.execute(_NAMED)
    return [_recorded_as(row.kind, row.label) for row in rows if row.campaign in campaigns]


def take(
    conn: Connection, now: datetime, takes: Collection[Take], *, newest: int
) -> list[Takeover]:
    """Record what is about to be taken over.

    Args:
        newest: `newest_id` from before the values in Dagster were read.

    Returns:
        The takeovers, in the order of `takes`. One that another gate has taken since `newest` is
        missing: its value in Dagster may be one that the other gate wrote.
    """
    if not takes:
        return []
    c = t.takeovers.c
    raced = {
        (row.kind, row.name) for row in conn.execute(sa.select(c.kind, c.name).where(c.id > newest))
    }
    rows = [
        vars(take) | {"set_from": take.former, "pending": True, "version": 1, "taken_at": now}
        for take in takes
        if (take.kind, take.name) not in raced
    ]
    if not rows:
        return []
    statement = insert(conn, t.takeovers).on_conflict_do_nothing().returning(*_COLUMNS)
    taken = {
        (each.kind, each.name): each
        for each in map(from_row, conn.execute(statement, rows).mappings())
    }
    own = [taken[key] for take in takes if (key := (take.kind, take.name)) in taken]
    if own:
        events.write_all(
            conn,
            now,
            [(str(each), each.former, each.set_to) for each in own],
            kind=EventKind.TAKEOVER,
            reason="taken over",
            actor=SystemActor.GATE,
        )
    return own


def intend(
    conn: Connection,
    now: datetime,
    takeover: Takeover,
    *,
    value: str,
    set_to: str,
    ramp_step_at: datetime | None = None,
) -> Takeover | None:
    """Record the value to write to Dagster; the takeover is pending if Dagster has another.

    Args:
        value: The value in Dagster.
        set_to: The value to write.
        ramp_step_at: When the ramp took its latest step, or None outside a ramp.

    Returns:
        The takeover after the change, or None if another gate changed it first.
    """
    changed = _change(
        conn,
        takeover,
        set_from=value,
        set_to=set_to,
        pending=value != set_to,
        ramp_step_at=ramp_step_at,
    )
    if changed is not None and value != set_to:
        _event(conn, now, takeover, value, set_to, None)
    return changed


def written(conn: Connection, takeovers: Collection[Takeover]) -> None:
    """Record that Dagster has the values, except where another gate changed the takeover first."""
    c = t.takeovers.c
    versions = [(takeover.id, takeover.version) for takeover in takeovers]
    conn.execute(
        t.takeovers.update()
        .where(sa.tuple_(c.id, c.version).in_(versions), c.given_back_at.is_(None))
        .values(pending=False, version=c.version + 1)
    )


def leave(conn: Connection, now: datetime, takeover: Takeover, value: str) -> Takeover | None:
    """Record that a person changed the value to `value`: the gate leaves it alone from now on.

    Returns:
        The takeover after the change, or None if another gate changed it first.
    """
    changed = _change(conn, takeover, pending=False, left_at=now)
    if changed is not None:
        _event(conn, now, takeover, takeover.set_to, value, "changed by a person: left as it is")
    return changed


def end(conn: Connection, now: datetime, takeover: Takeover, outcome: TakeoverOutcome) -> bool:
    """End a takeover; False if another gate changed it first."""
    changed = _change(conn, takeover, pending=False, given_back_at=now, outcome=outcome)
    if changed is not None:
        _event(conn, now, takeover, takeover.set_to, outcome, None)
    return changed is not None


def disown(conn: Connection, now: datetime, location: str) -> None:
    """Leave the pools of a code location that was removed to every gate.

    Its schedules and sensors are gone from Dagster with it.
    """
    for takeover in live(conn):
        if takeover.location == location:
            if takeover.kind is TakeoverKind.POOL:
                _change(conn, takeover, location="")
            else:
                end(conn, now, takeover, TakeoverOutcome.GONE)


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
    return None if row is None else from_row(row._asdict())


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
