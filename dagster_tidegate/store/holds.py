"""Holds in the store: placing, releasing and reading them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dagster_tidegate.holds import Hold, HoldSource, SystemActor, Target, TargetKind
from dagster_tidegate.store import events, push
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.upsert import insert

# A hold that is released while it is placed makes another try necessary; so many are enough.
MAX_TRIES = 10
MAX_ENDED = 1000


class NotYourHoldError(Exception):
    """Somebody tried to release a hold that another placed, without force."""


def place(
    conn: Connection,
    now: datetime,
    target: Target,
    *,
    source: HoldSource,
    reason: str,
    actor: str,
    expires_at: datetime | None = None,
) -> Hold:
    """Place a hold, or change the live one that its owner has placed before.

    A hold has one owner and one end: what was said last holds. The same again is harmless.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        target: What to hold.
        source: The breaker or an operator.
        reason: Why, for people.
        actor: Who; with target and source it makes the owner of the hold.
        expires_at: When the hold ends by itself (UTC), or None.

    Returns:
        The hold.

    Raises:
        ValueError: If the reason is empty or `expires_at` is not after `now`.
    """
    if not reason.strip():
        raise ValueError(f"a hold on {target} needs a reason")
    if expires_at is not None and expires_at <= now:
        raise ValueError(f"a hold on {target} can't expire at {expires_at}: it is {now}")
    expire(conn, now, target)
    owner = {
        "target_kind": target.kind,
        "target_name": target.name,
        "source": source,
        "actor": actor,
    }
    owned = [t.holds.c[column] == value for column, value in owner.items()]
    owned.append(t.holds.c.released_at.is_(None))
    said = {"reason": reason, "expires_at": expires_at}
    for _ in range(MAX_TRIES):
        # Two who place it at once: the live index lets one in, and the other finds its hold,
        # unless that is released just then.
        row = conn.execute(
            insert(conn, t.holds)
            .values(**owner, **said, placed_at=now)
            .on_conflict_do_nothing()
            .returning(t.holds)
        ).one_or_none()
        if row is not None:
            from_status, to_status, before = None, "placed", None
            break
        found = conn.execute(sa.select(t.holds).where(*owned).with_for_update()).one_or_none()
        if found is None:
            continue
        if (found.reason, found.expires_at) == (reason, expires_at):
            return _hold(found)
        change = t.holds.update().where(t.holds.c.id == found.id).values(said)
        row = conn.execute(change.returning(t.holds)).one()
        from_status, to_status, before = "placed", "changed", _as_recorded(_hold(found))
        break
    else:
        raise RuntimeError(
            f"the hold of {actor} on {target} was placed and released by others {MAX_TRIES} "
            "times while it was being placed; place it again"
        )
    events.write(
        conn,
        now,
        kind=EventKind.HOLD,
        name=target.key,
        from_status=from_status,
        to_status=to_status,
        reason=reason,
        actor=actor,
        before=before,
        after=_as_recorded(_hold(row)),
    )
    push.notify(conn)
    return _hold(row)


def release(
    conn: Connection,
    now: datetime,
    target: Target,
    *,
    source: HoldSource,
    actor: str,
) -> list[Hold]:
    """Release the live holds of `source` on `target`. Releasing what is not held is harmless.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        target: What to let go.
        source: Who releases: the breaker, or an operator.
        actor: The name of who releases, for the record.

    Returns:
        The holds that were released, as they are now.

    Raises:
        NotYourHoldError: If only holds of the other source are on the target.
    """
    expire(conn, now, target)
    live_here = live_on(conn, now, target)
    mine = [hold for hold in live_here if hold.source == source]
    if live_here and not mine:
        others = ", ".join(f"{hold.actor} ({hold.reason})" for hold in live_here)
        raise NotYourHoldError(f"{target} is held by {others}; use force to release it anyway")
    return end(conn, now, mine, actor=actor)


def end(
    conn: Connection,
    now: datetime,
    held: Sequence[Hold],
    *,
    actor: str,
    by_force: bool = False,
) -> list[Hold]:
    """Release live holds, and record who did and whether they were another's.

    Returns:
        Those that were released, as they are now; not what somebody else released just before.
    """
    ended = []
    for hold in held:
        row = conn.execute(
            t.holds.update()
            .where(t.holds.c.id == hold.id, t.holds.c.released_at.is_(None))
            .values(released_at=now, released_by=actor)
            .returning(t.holds)
        ).one_or_none()
        if row is None:
            continue
        ended.append(_hold(row))
        events.write(
            conn,
            now,
            kind=EventKind.HOLD,
            name=hold.target.key,
            from_status="placed",
            to_status="released_by_force" if by_force else "released",
            reason=hold.reason,
            actor=actor,
            before=_as_recorded(hold),
        )
    if ended:
        push.notify(conn)
    return ended


def expire(conn: Connection, now: datetime, target: Target | None = None) -> int:
    """Write down that holds whose time is over are released.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        target: Only those on this target; None: all.

    Returns:
        How many that are.
    """
    where = () if target is None else _on(target)
    over = conn.execute(
        t.holds.update()
        .where(t.holds.c.released_at.is_(None), t.holds.c.expires_at <= now, *where)
        .values(released_at=t.holds.c.expires_at, released_by=SystemActor.EXPIRY)
        .returning(t.holds)
    ).all()
    for row in over:
        events.write(
            conn,
            now,
            kind=EventKind.HOLD,
            name=_hold(row).target.key,
            from_status="placed",
            to_status="expired",
            reason=row.reason,
            actor=SystemActor.EXPIRY,
            before=_as_recorded(_hold(row)),
        )
    if over:
        push.notify(conn)
    return len(over)


def from_row(values: Mapping[Any, Any]) -> Hold:
    """Return the hold of a row of the table."""
    rest = dict(values)
    target = Target(TargetKind(rest.pop("target_kind")), rest.pop("target_name"))
    return Hold(target=target, source=HoldSource(rest.pop("source")), **rest)


def age(hold: Hold) -> tuple[datetime, int]:
    """Sort holds by this: the oldest first."""
    return hold.placed_at, hold.id


def get(conn: Connection, hold: int) -> Hold | None:
    """Return a hold by its id, live or not; None where there is none."""
    row = conn.execute(sa.select(t.holds).where(t.holds.c.id == hold)).one_or_none()
    return None if row is None else _hold(row)


def live(conn: Connection, now: datetime) -> Sequence[Hold]:
    """Return the live holds, the oldest first."""
    return _live(conn, now)


def ended_since(conn: Connection, now: datetime, since: datetime) -> Sequence[Hold]:
    """Return the holds that were released or expired since, the latest last; 1000 at most.

    A hold that has expired counts even before the gate has recorded it.
    """
    ended_at = sa.func.coalesce(t.holds.c.released_at, t.holds.c.expires_at)
    rows = conn.execute(
        sa.select(t.holds)
        .where(ended_at >= since, ended_at <= now)
        .order_by(ended_at.desc())
        .limit(MAX_ENDED)
    )
    return [
        hold
        if hold.released_at
        else replace(hold, released_at=hold.expires_at, released_by=SystemActor.EXPIRY)
        for hold in reversed([_hold(row) for row in rows])
    ]


def live_on(conn: Connection, now: datetime, target: Target) -> Sequence[Hold]:
    """Return the live holds on a target itself, the oldest first."""
    return _live(conn, now, *_on(target))


def _live(conn: Connection, now: datetime, *where: sa.ColumnElement[bool]) -> Sequence[Hold]:
    h = t.holds.c
    unreleased = sa.select(t.holds).where(h.released_at.is_(None), *where)
    rows = conn.execute(unreleased.order_by(h.placed_at, h.id))
    return [hold for row in rows if (hold := _hold(row)).live(now)]


def _on(target: Target) -> tuple[sa.ColumnElement[bool], ...]:
    return t.holds.c.target_kind == target.kind, t.holds.c.target_name == target.name


def _as_recorded(hold: Hold) -> dict[str, Any]:
    """What the record of a change keeps of a hold, so that it says whose it was."""
    return {
        "hold": hold.id,
        "source": hold.source.value,
        "actor": hold.actor,
        "reason": hold.reason,
        "expires_at": None if hold.expires_at is None else hold.expires_at.isoformat(),
    }


def _hold(row: sa.Row) -> Hold:
    return from_row(row._mapping)
