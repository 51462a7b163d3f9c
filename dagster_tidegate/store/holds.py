"""Holds: placing, releasing, expiring and reading them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dagster_tidegate.holds import Hold, HoldSource, SystemActor, Target, TargetKind, in_effect
from dagster_tidegate.store import events, push
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.upsert import insert
from dagster_tidegate.text import utc

MAX_TRIES = 10
MAX_ENDED = 1000
UNRELEASED = sa.select(t.holds).where(t.holds.c.released_at.is_(None))


class NotYourHoldError(Exception):
    """The holds on a target are of another source, and can only be released by force."""


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
    """Place a hold, or update the reason and expiry of the live one that its owner has placed.

    Target, source and actor are the owner of a hold; each owner has at most one live hold. Placing
    the same hold again is harmless.

    Args:
        expires_at: When the hold expires (UTC), or None.

    Raises:
        ValueError: If the reason is empty or `expires_at` is not after `now`.
    """
    if not reason.strip():
        raise ValueError(f"a hold on {target} needs a reason")
    if expires_at is not None and expires_at <= now:
        raise ValueError(f"a hold on {target} can't expire at {utc(expires_at)}: it is {utc(now)}")
    values = {"reason": reason, "expires_at": expires_at}
    # Of two who place it at once, the unique index of unreleased holds lets one insert it. The
    # other reads that hold, and tries again if it has expired or was released just then.
    for _ in range(MAX_TRIES):
        row = conn.execute(
            insert(conn, t.holds)
            .values(
                target_kind=target.kind,
                target_name=target.name,
                source=source,
                actor=actor,
                placed_at=now,
                **values,
            )
            .on_conflict_do_nothing()
            .returning(t.holds)
        ).one_or_none()
        if row is not None:
            placed = _hold(row)
            _event(conn, now, placed, None, "placed", actor=actor, after=_as_recorded(placed))
            break
        if expire(conn, now, target):
            continue
        h = t.holds.c
        owned = (*_on(target), h.source == source, h.actor == actor, h.released_at.is_(None))
        row = conn.execute(sa.select(t.holds).where(*owned).with_for_update()).one_or_none()
        if row is None:
            continue
        before = _hold(row)
        if (before.reason, before.expires_at) == (reason, expires_at):
            return before
        update = t.holds.update().where(h.id == before.id).values(values).returning(t.holds)
        placed = _hold(conn.execute(update).one())
        _event(
            conn,
            now,
            placed,
            "placed",
            "changed",
            actor=actor,
            before=_as_recorded(before),
            after=_as_recorded(placed),
        )
        break
    else:
        raise RuntimeError(
            f"the hold of {actor} on {target} was placed and released by others {MAX_TRIES} "
            "times while it was being placed; place it again"
        )
    push.notify(conn)
    return placed


def release(
    conn: Connection, now: datetime, target: Target, *, source: HoldSource, actor: str
) -> list[Hold]:
    """Release the live holds of `source` on `target`, and return them as they are now.

    Releasing a target that is not held is harmless.

    Raises:
        NotYourHoldError: If only holds of the other source are on the target.
    """
    expire(conn, now, target)
    live_holds = live(conn, now, target)
    own = [hold for hold in live_holds if hold.source == source]
    if live_holds and not own:
        others = ", ".join(f"{hold.actor} ({hold.reason})" for hold in live_holds)
        raise NotYourHoldError(f"{target} is held by {others}; use force to release it anyway")
    return end(conn, now, own, actor=actor)


def end(
    conn: Connection,
    now: datetime,
    held: Sequence[Hold],
    *,
    actor: str,
    by_force: bool = False,
) -> list[Hold]:
    """Release live holds, and record who did it and whether by force.

    Returns:
        The released holds as they are now, without those that somebody else released first.
    """
    ended = []
    for hold in held:
        row = conn.execute(
            t.holds.update()
            .where(t.holds.c.id == hold.id, t.holds.c.released_at.is_(None))
            .values(released_at=now, released_by=actor)
            .returning(t.holds)
        ).one_or_none()
        if row is not None:
            ended.append(_hold(row))
            to_status = "released_by_force" if by_force else "released"
            _event(conn, now, hold, "placed", to_status, actor=actor, before=_as_recorded(hold))
    if ended:
        push.notify(conn)
    return ended


def expire(conn: Connection, now: datetime, target: Target | None = None) -> int:
    """Record the release of holds that have expired, on a target or on all, and return how many."""
    where = () if target is None else _on(target)
    expired = conn.execute(
        t.holds.update()
        .where(t.holds.c.released_at.is_(None), t.holds.c.expires_at <= now, *where)
        .values(released_at=t.holds.c.expires_at, released_by=SystemActor.EXPIRY)
        .returning(t.holds)
    ).all()
    for row in expired:
        hold = _hold(row)
        recorded = _as_recorded(hold)
        _event(conn, now, hold, "placed", "expired", actor=SystemActor.EXPIRY, before=recorded)
    if expired:
        push.notify(conn)
    return len(expired)


def from_row(values: Mapping[Any, Any]) -> Hold:
    """Return the hold of a row of the table."""
    rest = dict(values)
    target = Target(TargetKind(rest.pop("target_kind")), rest.pop("target_name"))
    return Hold(target=target, source=HoldSource(rest.pop("source")), **rest)


def get(conn: Connection, hold: int) -> Hold | None:
    """Return a hold by its id, live or not; None if there is none."""
    row = conn.execute(sa.select(t.holds).where(t.holds.c.id == hold)).one_or_none()
    return None if row is None else _hold(row)


def live(conn: Connection, now: datetime, target: Target | None = None) -> Sequence[Hold]:
    """Return the live holds, or those on a target itself, the oldest first."""
    rows = conn.execute(UNRELEASED if target is None else UNRELEASED.where(*_on(target)))
    return in_effect(map(_hold, rows), now)


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


def _on(target: Target) -> tuple[sa.ColumnElement[bool], ...]:
    return t.holds.c.target_kind == target.kind, t.holds.c.target_name == target.name


def _event(
    conn: Connection,
    now: datetime,
    hold: Hold,
    from_status: str | None,
    to_status: str,
    *,
    actor: str,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    events.write(
        conn,
        now,
        kind=EventKind.HOLD,
        name=hold.target.key,
        from_status=from_status,
        to_status=to_status,
        reason=hold.reason,
        actor=actor,
        before=before,
        after=after,
    )


def _as_recorded(hold: Hold) -> dict[str, Any]:
    """Return what an event keeps of a hold."""
    return {
        "hold": hold.id,
        "source": hold.source.value,
        "actor": hold.actor,
        "reason": hold.reason,
        "expires_at": None if hold.expires_at is None else hold.expires_at.isoformat(),
    }


def _hold(row: sa.Row) -> Hold:
    return from_row(row._asdict())
