"""Breakers in the store: what workers saw, the changes of state, and leases on trial calls."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import cache
from random import random
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from dagster_tidegate.breaker import state_machine as machine
from dagster_tidegate.breaker.backend import Trial, TrialAnswer, free_slot
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.snapshot import FleetSnapshot
from dagster_tidegate.breaker.state_machine import BreakerStatus, WindowStats
from dagster_tidegate.breaker.verdicts import Outcome
from dagster_tidegate.breaker.window import CLOCK_TOLERANCE_S, WindowDelta, bucket_s
from dagster_tidegate.holds import Hold, HoldSource, SystemActor, Target, TargetKind
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import compatibility, events, holds, push
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.upsert import insert, insert_on

PRUNED_AT_ONCE = 1000


def ensure(conn: sa.Connection, now: datetime, names: Iterable[str]) -> None:
    """Give each service that is new a closed breaker."""
    for name in names:
        new = insert(conn, t.services).values(name=name, changed_at=now)
        conn.execute(new.on_conflict_do_nothing())


def read(conn: sa.Connection) -> dict[str, BreakerStatus]:
    """Return all breakers, by the name of the service."""
    rows = conn.execute(sa.select(t.services).order_by(t.services.c.name))
    return {row.name: _circuit(row) for row in rows}


def read_all(conn: sa.Connection, now: datetime | None = None) -> FleetSnapshot:
    """Read all breakers and all live holds.

    It is one statement: two could straddle a trip, and show a hold without its open breaker.

    Args:
        conn: A connection of the store.
        now: The time (UTC), or None for that of the PostgreSQL server.
    """
    before = time.monotonic()
    rows = conn.execute(_READ if now is not None else _READ_WITH_CLOCK).all()
    # The server looked at its clock between the question and the answer.
    ticks = (before + time.monotonic()) / 2
    at = now or (rows[0].clock.astimezone(UTC) if rows else datetime.now(UTC))
    every_hold = [_hold(row) for row in rows if row.hold_id is not None]
    return FleetSnapshot(
        services={row.name: _circuit(row) for row in rows if row.name is not None},
        holds=tuple(hold for hold in every_hold if hold.live(at)),
        read_at=at,
        read_ticks=ticks,
        oldest_revision=rows[0].oldest_revision if rows else None,
    )


def read_one(conn: sa.Connection, name: str, *, lock: bool = False) -> BreakerStatus:
    """Return the breaker of one service.

    Args:
        conn: A connection of the store.
        name: Name of the service.
        lock: Nobody else changes it until the transaction ends.

    Raises:
        LookupError: If the store has no such service.
    """
    query = sa.select(t.services).where(t.services.c.name == name)
    if lock:
        query = query.with_for_update(key_share=True)
    row = conn.execute(query).one_or_none()
    if row is None:
        raise LookupError(f"the store knows no service {name!r}")
    return _circuit(row)


def add(conn: sa.Connection, seen: Iterable[WindowDelta]) -> None:
    """Add what a worker saw to its own row of the present bucket."""
    rows = [{name: getattr(each, name) for name in _SEEN} for each in seen]
    if rows:
        conn.execute(_add(conn.dialect.name), rows if len(rows) > 1 else rows[0])


def read_back(
    conn: sa.Connection, policy: ServicePolicy, now: datetime, worker: str
) -> tuple[BreakerStatus, WindowStats] | None:
    """Return the breaker of a service and what the fleet saw of it in the window.

    Args:
        conn: A connection of the store.
        policy: The service's policy.
        now: The time, UTC.
        worker: Who asks, having told everything.

    Returns:
        None if the store has no such service. What `circuits.tally` says of the same rows.
    """
    width = bucket_s(policy)
    row = conn.execute(
        _READ_BACK,
        {
            "name": policy.name,
            "asking": worker,
            "since": now - timedelta(seconds=policy.window_s + width),
            "until": now + timedelta(seconds=CLOCK_TOLERANCE_S),
            "recent": now - timedelta(seconds=2 * width),
        },
    ).one_or_none()
    if row is None:
        return None
    return _circuit(row), WindowStats(
        ok=row.ok or 0,
        slow=row.slow or 0,
        failed=row.failed or 0,
        failed_in_row=row.in_row or 0,
        row_since=row.in_row_since,
        row_workers=row.row_workers,
        silent_ok_per_s=(row.silent or 0) / (2 * width),
        workers=row.workers,
        failing_workers=row.failing_workers,
        last_ok_at=row.last_ok_at,
        retry_at=row.retry_at,
    )


def change(
    conn: sa.Connection,
    now: datetime,
    before: BreakerStatus,
    after: BreakerStatus,
    *,
    actor: str = SystemActor.BREAKER,
) -> bool:
    """Put a breaker into its next state, with the hold, the event and the push that belong to it.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        before: The breaker as it was read.
        after: What `circuit` made of it.
        actor: Who does it: a worker, or an operator.

    Returns:
        False if somebody else changed it since; then nothing is written.
    """
    s = t.services.c
    values = asdict(after)
    del values["name"]
    won = conn.execute(
        t.services.update()
        .where(
            s.name == before.name,
            s.generation == before.generation,
            s.trial_successes == before.trial_successes,
        )
        .values(**values)
    ).rowcount
    if won != 1:
        return False
    push.notify(conn)
    if after.generation == before.generation:
        return True
    events.write(
        conn,
        now,
        kind=EventKind.SERVICE,
        name=after.name,
        from_status=before.state,
        to_status=after.state,
        reason=after.reason or before.reason,
        actor=actor,
    )
    if after.state == BreakerState.CLOSED:
        _end_hold(conn, now, after.name, actor=SystemActor.BREAKER)
    else:
        reason = after.reason or str(after.state)
        target = Target(TargetKind.SERVICE, after.name)
        holds.place(
            conn, now, target, source=HoldSource.BREAKER, reason=reason, actor=SystemActor.BREAKER
        )
    return True


def keep_closed(
    conn: sa.Connection,
    now: datetime,
    name: str,
    *,
    actor: str,
    until: datetime | None = None,
    reason: str | None = None,
) -> BreakerStatus:
    """Close a breaker by hand and keep it from tripping; calls go on, whatever they come to.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        name: Name of the service.
        actor: The operator.
        until: When that ends by itself (UTC), or None.
        reason: Why, for the audit log.

    Returns:
        The breaker.

    Raises:
        LookupError: If the store has no such service.
        ValueError: If `until` is not after `now`.
    """
    if until is not None and until <= now:
        raise ValueError(f"{name} can't be kept closed until {until}: it is {now}")
    close(conn, now, name, actor=actor)
    return _keep(conn, now, name, by=actor, until=until, actor=actor, reason=reason)


def let_trip(conn: sa.Connection, now: datetime, name: str, *, actor: str) -> BreakerStatus:
    """End what `keep_closed` began: the breaker may trip again."""
    return _keep(conn, now, name, by=None, until=None, actor=actor)


def close(conn: sa.Connection, now: datetime, name: str, *, actor: str) -> list[Hold]:
    """Close a breaker by hand, and release its own hold by force. A closed one stays as it is.

    Returns:
        Its holds that were released, as they are now.

    Raises:
        LookupError: If the store has no such service.
    """
    before = read_one(conn, name, lock=True)
    after = machine.closed(before, now)
    ended = _end_hold(conn, now, name, actor=actor)
    if after is not before:
        change(conn, now, before, after, actor=actor)
    return ended


def _end_hold(conn: sa.Connection, now: datetime, name: str, *, actor: str) -> list[Hold]:
    here = holds.live_on(conn, now, Target(TargetKind.SERVICE, name))
    its_own = [hold for hold in here if hold.source is HoldSource.BREAKER]
    return holds.end(conn, now, its_own, actor=actor, by_force=actor != SystemActor.BREAKER)


def take_trial(
    conn: sa.Connection, now: datetime, policy: ServicePolicy, worker: str
) -> TrialAnswer:
    """Take a lease on a trial call; a breaker that is due becomes half open first.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        policy: The service's policy.
        worker: Who asks.
    """
    # The lock makes asking for a slot one step.
    before = after = read_one(conn, policy.name, lock=True)
    if before.due(now):
        after = machine.half_opened(before, now)
        change(conn, now, before, after, actor=worker)
    if after.state != BreakerState.HALF_OPEN:
        return TrialAnswer(before, after, None, after.open_until)
    trials = t.trials.c
    conn.execute(
        t.trials.delete().where(
            trials.service == policy.name,
            (trials.expires_at <= now) | (trials.generation != after.generation),
        )
    )
    held = conn.execute(
        sa.select(trials.slot, trials.expires_at).where(trials.service == policy.name)
    ).all()
    slot = free_slot([row.slot for row in held], policy.trial_calls)
    if slot is None:
        return TrialAnswer(before, after, None, min(row.expires_at for row in held))
    trial = Trial(
        service=policy.name,
        generation=after.generation,
        slot=slot,
        token=uuid4().hex,
        worker=worker,
        expires_at=now + timedelta(seconds=policy.trial_lease_s),
    )
    conn.execute(t.trials.insert().values(**asdict(trial)))
    return TrialAnswer(before, after, trial, None)


def end_trial(
    conn: sa.Connection,
    now: datetime,
    policy: ServicePolicy,
    trial: Trial,
    outcome: Outcome,
    *,
    retry_at: datetime | None = None,
) -> tuple[BreakerStatus, BreakerStatus]:
    """Give a lease back with the result of the trial call.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        policy: The service's policy.
        trial: The lease; the result counts only if it is still held.
        outcome: The result.
        retry_at: The service asked not to be called before (UTC).

    Returns:
        The breaker before and after.
    """
    before = read_one(conn, policy.name, lock=True)
    trials = t.trials.c
    held = conn.execute(
        t.trials.delete().where(trials.service == policy.name, trials.token == trial.token)
    ).rowcount
    if not held or before.generation != trial.generation:
        return before, before
    after = machine.after_trial(before, policy, outcome, now, random(), retry_at)
    if after is before:
        push.notify(conn)  # the slot is free
    else:
        change(conn, now, before, after, actor=trial.worker)
    return before, after


def prune(conn: sa.Connection, now: datetime, policies: Iterable[ServicePolicy]) -> int:
    """Delete outcomes of some services that no window reaches any more. Returns how many."""
    o = t.outcomes.c
    reach: dict[timedelta, list[str]] = {}
    for policy in policies:
        longest = timedelta(seconds=2 * policy.window_s + bucket_s(policy))
        reach.setdefault(longest, []).append(policy.name)
    if not reach:
        return 0
    old = sa.or_(
        *(o.service.in_(names) & (o.bucket <= now - longest) for longest, names in reach.items())
    )
    # Several prune at once: each takes what no other has in hand.
    key = (o.service, o.bucket, o.worker, o.generation)
    some = sa.select(*key).where(old).limit(PRUNED_AT_ONCE).with_for_update(skip_locked=True)
    rows = conn.execute(some).all()
    if not rows:
        return 0
    wanted = sa.tuple_(*key).in_([tuple(row) for row in rows])
    return conn.execute(t.outcomes.delete().where(wanted)).rowcount


class SqlBackend:
    """Breakers in the store that the fleet shares; see `circuits.BreakerBackend`.

    Args:
        store: The store.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        # What is read back is read after the commit: of two failures told at once, neither would
        # see the other from within its transaction, and both might miss the trip.
        self._evidence = store.evidence()

    def now(self) -> datetime:
        """Return the database's time, UTC."""
        with self.store.read() as conn:
            return self.store.now(conn)

    def read(self, names: Iterable[str]) -> FleetSnapshot:
        """See `BreakerBackend.read`."""
        wanted = set(names)
        snapshot = self._read()
        if missing := sorted(wanted - set(snapshot.services)):
            with self.store.begin() as conn:
                ensure(conn, self.store.now(conn), missing)
            snapshot = self._read()
        return snapshot

    def _read(self) -> FleetSnapshot:
        with self._evidence.connect() as conn:
            here = self.store.clock is not None or self.store.is_sqlite
            return read_all(conn, self.store.now(conn) if here else None)

    def record(self, policy: ServicePolicy, seen: WindowDelta) -> tuple[BreakerStatus, WindowStats]:
        """See `BreakerBackend.record`."""
        with self._evidence.begin() as conn:
            add(conn, [seen])
            found = read_back(conn, policy, seen.at, seen.worker)
            if found is None:
                ensure(conn, seen.at, [policy.name])
                found = read_back(conn, policy, seen.at, seen.worker)
        assert found is not None
        return found

    def flush(self, seen: Sequence[tuple[ServicePolicy, WindowDelta]]) -> None:
        """See `BreakerBackend.flush`."""
        with (self._evidence if len(seen) == 1 else self.store.engine).begin() as conn:
            add(conn, [each for _, each in seen])

    def prune(self, policies: Iterable[ServicePolicy]) -> int:
        """Delete outcomes that no window reaches any more. Returns how many."""
        with self.store.begin() as conn:
            return prune(conn, self.store.now(conn), policies)

    def change(self, before: BreakerStatus, after: BreakerStatus, actor: str) -> bool:
        """See `BreakerBackend.change`."""
        with self.store.begin() as conn:
            return change(conn, self.store.now(conn), before, after, actor=actor)

    def take_trial(self, policy: ServicePolicy, worker: str) -> TrialAnswer:
        """See `BreakerBackend.take_trial`."""
        with self.store.begin() as conn:
            return take_trial(conn, self.store.now(conn), policy, worker)

    def end_trial(
        self,
        policy: ServicePolicy,
        trial: Trial,
        outcome: Outcome,
        retry_at: datetime | None = None,
    ) -> tuple[BreakerStatus, BreakerStatus]:
        """See `BreakerBackend.end_trial`."""
        with self.store.begin() as conn:
            now = self.store.now(conn)
            return end_trial(conn, now, policy, trial, outcome, retry_at=retry_at)


def _kept(by: str | None, until: datetime | None) -> dict[str, Any] | None:
    """What the record of a change keeps of who keeps a breaker closed."""
    if by is None:
        return None
    return {
        "kept_closed_by": by,
        "kept_closed_until": None if until is None else until.isoformat(),
    }


def _keep(
    conn: sa.Connection,
    now: datetime,
    name: str,
    *,
    by: str | None,
    until: datetime | None,
    actor: str,
    reason: str | None = None,
) -> BreakerStatus:
    before = read_one(conn, name)
    conn.execute(
        t.services.update()
        .where(t.services.c.name == name)
        .values(kept_closed_by=by, kept_closed_until=until)
    )
    events.write(
        conn,
        now,
        kind=EventKind.SERVICE,
        name=name,
        to_status="may_trip" if by is None else "kept_closed",
        reason=reason,
        actor=actor,
        before=_kept(before.kept_closed_by, before.kept_closed_until),
        after=_kept(by, until),
    )
    push.notify(conn)
    return read_one(conn, name)


@cache
def _add(dialect: str) -> Any:
    new = insert_on(dialect, t.outcomes)
    told = new.excluded
    kept = t.outcomes.c
    return new.on_conflict_do_update(
        index_elements=["service", "bucket", "worker", "generation"],
        set_={
            "ok": kept.ok + told.ok,
            "slow": kept.slow + told.slow,
            "failed": kept.failed + told.failed,
            "failed_in_row": told.failed_in_row,
            "row_since": told.row_since,
            **{
                name: sa.case(
                    (kept[name] > told[name], kept[name]),
                    else_=sa.func.coalesce(told[name], kept[name]),
                )
                for name in ("last_ok_at", "last_failed_at", "retry_at")
            },
        },
    )


_SEEN = tuple(name for name in WindowDelta.__dataclass_fields__ if name != "at")
_CIRCUIT = tuple(BreakerStatus.__dataclass_fields__)


def _circuit(row: sa.Row) -> BreakerStatus:
    values: dict[str, Any] = {field: getattr(row, field) for field in _CIRCUIT}
    values["state"] = BreakerState(row.state)
    return BreakerStatus(**values)


def _hold(row: sa.Row) -> Hold:
    return holds.from_row({c.name: getattr(row, f"hold_{c.name}") for c in t.holds.c})


def _read(*more: sa.ColumnElement) -> sa.CompoundSelect:
    def nulls(columns: Iterable[sa.Column], prefix: str = "") -> list[sa.Label]:
        return [sa.type_coerce(sa.null(), c.type).label(prefix + c.name) for c in columns]

    live = [c.label(f"hold_{c.name}") for c in t.holds.c]
    more = (*more, compatibility.OLDEST.label("oldest_revision"))
    return sa.union_all(
        sa.select(*t.services.c, *nulls(t.holds.c, "hold_"), *more),
        sa.select(*nulls(t.services.c), *live, *more).where(t.holds.c.released_at.is_(None)),
    ).order_by("name", "hold_placed_at", "hold_id")


_READ = _read()
_READ_WITH_CLOCK = _read(sa.func.clock_timestamp(type_=sa.DateTime(timezone=True)).label("clock"))


def _read_back() -> sa.Select:
    o = t.outcomes.c
    since = sa.bindparam("since", type_=t.UTCDateTime)
    until = sa.bindparam("until", type_=t.UTCDateTime)
    recent = sa.bindparam("recent", type_=t.UTCDateTime)
    name = sa.bindparam("name", type_=sa.String)
    generation = sa.select(t.services.c.generation).where(t.services.c.name == name)
    told = (
        sa.select(t.outcomes)
        .where(
            o.service == name,
            o.generation == generation.scalar_subquery(),
            o.bucket > since,
            o.bucket <= until,
        )
        .cte("told")
    )
    last_ok = (
        sa.select(sa.func.max(told.c.last_ok_at).label("at"))
        .where(told.c.last_ok_at <= until)
        .cte("last_ok")
    )
    floor = sa.func.coalesce(last_ok.c.at, since)
    unbroken = told.c.row_since >= floor
    broken = told.c.last_failed_at > floor
    rows = (
        sa.select(
            told.c.worker,
            told.c.ok,
            told.c.slow,
            told.c.failed,
            told.c.retry_at,
            told.c.bucket,
            sa.case((unbroken, told.c.failed_in_row), (broken, 1), else_=0).label("in_row"),
            sa.case((unbroken, told.c.row_since), (broken, told.c.last_failed_at)).label(
                "in_row_since"
            ),
        )
        .join_from(told, last_ok, sa.true())
        .cte("counted")
    )
    failing = sa.select(rows.c.worker).where(rows.c.in_row > 0)
    heard = rows.c.worker.in_(failing) | (rows.c.worker == sa.bindparam("asking", type_=sa.String))
    silent = sa.case((~heard & (rows.c.bucket > recent), rows.c.ok), else_=0)
    total = (
        sa.select(
            sa.func.sum(rows.c.ok).label("ok"),
            sa.func.sum(rows.c.slow).label("slow"),
            sa.func.sum(rows.c.failed).label("failed"),
            sa.func.sum(rows.c.in_row).label("in_row"),
            sa.func.min(rows.c.in_row_since, type_=t.UTCDateTime()).label("in_row_since"),
            sa.func.count(sa.case((rows.c.in_row > 0, rows.c.worker)).distinct()).label(
                "row_workers"
            ),
            sa.func.sum(silent).label("silent"),
            sa.func.count(rows.c.worker.distinct()).label("workers"),
            sa.func.count(
                sa.case((rows.c.failed + rows.c.slow > 0, rows.c.worker)).distinct()
            ).label("failing_workers"),
            sa.func.max(rows.c.retry_at).label("retry_at"),
        )
    ).cte("total")
    return (
        sa.select(t.services, total, last_ok.c.at.label("last_ok_at"))
        .join_from(t.services, total, sa.true())
        .join(last_ok, sa.true())
        .where(t.services.c.name == name)
    )


_READ_BACK = _read_back()
