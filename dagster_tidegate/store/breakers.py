"""Breakers in the store: counted calls, changes of state, and leases on trial calls."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from functools import cache
from random import random
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from dagster_tidegate.breaker import state_machine as machine
from dagster_tidegate.breaker.backend import Listener, Trial, TrialAnswer, free_slot
from dagster_tidegate.breaker.budget import Allowance, SpendRequest
from dagster_tidegate.breaker.concurrency import SlotGrant, SlotRequest
from dagster_tidegate.breaker.limits import CallRequest, Grant
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.snapshot import FleetSnapshot
from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind
from dagster_tidegate.breaker.waker import Waker
from dagster_tidegate.breaker.window import (
    CLOCK_TOLERANCE_S,
    COUNTS,
    Counts,
    WindowDelta,
    WindowStats,
    bucket_s,
    reach,
    window_stats,
)
from dagster_tidegate.holds import Hold, HoldSource, SystemActor, Target, TargetKind, in_effect
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import budgets, compatibility, events, holds, limits, push
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import UNREACHABLE, Connection, Store
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.snapshot_query import SnapshotQuery
from dagster_tidegate.store.upsert import insert, insert_on

PRUNED_AT_ONCE = 1000
WOULD_OPEN = "would_open"
"""Status in the audit log of a breaker that stays closed as its policy is not enforced."""


def ensure(conn: Connection, now: datetime, names: Iterable[str]) -> None:
    """Create a closed breaker for each service that has none."""
    for name in names:
        new = insert(conn, t.services).values(name=name, changed_at=now)
        conn.execute(new.on_conflict_do_nothing())


def from_row(values: Mapping[Any, Any]) -> BreakerStatus:
    """Return the breaker of a row of the table."""
    cause = values["cause"]
    return BreakerStatus(
        **{
            **values,
            "state": BreakerState(values["state"]),
            "cause": None if cause is None else VerdictKind(cause),
        }
    )


def read(conn: Connection) -> dict[str, BreakerStatus]:
    """Return all breakers, by name of the service."""
    rows = conn.execute(sa.select(t.services).order_by(t.services.c.name)).mappings()
    return {status.name: status for status in map(from_row, rows)}


def read_one(conn: Connection, name: str, *, lock: bool = False) -> BreakerStatus:
    """Return the breaker of one service; `lock` locks it until the transaction ends.

    Raises:
        LookupError: If the store has no such service.
    """
    row = conn.execute(_LOCKED if lock else _ONE, {"service": name}).mappings().one_or_none()
    if row is None:
        raise LookupError(f"the store knows no service {name!r}")
    return from_row(row)


def add(conn: Connection, deltas: Iterable[WindowDelta]) -> None:
    """Add a worker's counts to its own rows."""
    rows = [{name: getattr(delta, name) for name in _DELTA} for delta in deltas]
    if rows:
        conn.execute(_add(conn.dialect.name), rows if len(rows) > 1 else rows[0])


def read_window(
    conn: Connection, policy: ServicePolicy, now: datetime, worker: str
) -> tuple[BreakerStatus, WindowStats]:
    """Return the breaker of a service, and the fleet's calls within its window.

    Args:
        worker: The worker that asks; it has just added all its counts.

    Raises:
        LookupError: If the store has no such service.
    """
    status = read_one(conn, policy.name)
    since, until = reach(policy, now)
    bounds = {"since": since, "until": until}
    rows = conn.execute(_WINDOW, {"service": policy.name, "generation": status.generation} | bounds)
    return status, window_stats([Counts(*row) for row in rows], policy, now, worker)


def change(
    conn: Connection,
    now: datetime,
    before: BreakerStatus,
    after: BreakerStatus,
    *,
    actor: str = SystemActor.BREAKER,
    reason: str | None = None,
) -> bool:
    """Replace a breaker, together with its hold, and write an event and a push.

    Args:
        after: What `state_machine` made of it.
        reason: Why, for the event; None: why it opened.

    Returns:
        False if somebody else changed it in between; then nothing is written.
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
            # Somebody may have decided meanwhile to keep it closed, which is no new generation.
            s.kept_closed_by.is_not_distinct_from(before.kept_closed_by),
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
        to_status=after.state
        if after.would_open_at in (None, before.would_open_at)
        else WOULD_OPEN,
        reason=reason or after.reason or before.reason,
        actor=actor,
        after=_opened_for(conn, now, before, after),
    )
    if after.state == BreakerState.CLOSED:
        _end_hold(conn, now, after.name, actor=SystemActor.BREAKER)
    else:
        holds.place(
            conn,
            now,
            Target(TargetKind.SERVICE, after.name),
            source=HoldSource.BREAKER,
            reason=after.reason or str(after.state),
            actor=SystemActor.BREAKER,
        )
    return True


def _opened_for(
    conn: Connection, now: datetime, before: BreakerStatus, after: BreakerStatus
) -> dict[str, Any] | None:
    """Return what an event records about why a breaker opened, besides the reason.

    The counts of calls are those of the closed breaker; they are deleted soon.
    """
    if after.state != BreakerState.OPEN:
        return None
    until = after.open_until
    details = {
        "cause": after.cause,
        "answer": after.answer,
        "open_until": None if until is None else until.isoformat(),
    }
    if before.state != BreakerState.CLOSED:
        return details
    o = t.outcomes.c
    counts = conn.execute(
        sa.select(
            sa.func.coalesce(sa.func.sum(o.ok + o.failed), 0).label("calls"),
            sa.func.coalesce(sa.func.sum(o.failed), 0).label("failed"),
            sa.func.coalesce(sa.func.sum(o.slow), 0).label("slow"),
            sa.func.min(o.bucket).label("since"),
            P95_S.label("p95_s"),
        ).where(o.service == before.name, o.generation == before.generation)
    ).one()
    seconds = 0.0 if counts.since is None else max(0.0, (now - counts.since).total_seconds())
    return details | {
        "calls": int(counts.calls),
        "failed": int(counts.failed),
        "slow": int(counts.slow),
        "counted_s": round(seconds, 1),
        "p95_s": None if counts.p95_s is None else round(counts.p95_s, 3),
    }


def keep_closed(
    conn: Connection,
    now: datetime,
    name: str,
    *,
    actor: str,
    until: datetime | None = None,
    reason: str | None = None,
) -> BreakerStatus:
    """Close a breaker by hand and keep it from tripping; calls continue even if they fail.

    Args:
        until: When that expires (UTC), or None.

    Raises:
        LookupError: If the store has no such service.
        ValueError: If `until` is not after `now`.
    """
    if until is not None and until <= now:
        raise ValueError(f"{name} can't be kept closed until {until}: it is {now}")
    close(conn, now, name, actor=actor)
    return _keep(conn, now, name, by=actor, until=until, actor=actor, reason=reason)


def let_trip(conn: Connection, now: datetime, name: str, *, actor: str) -> BreakerStatus:
    """Let a breaker trip again after `keep_closed`."""
    return _keep(conn, now, name, by=None, until=None, actor=actor)


def half_open(
    conn: Connection, now: datetime, name: str, *, actor: str, reason: str
) -> BreakerStatus:
    """Half open a breaker by hand, due or not, so that a trial call is made.

    Raises:
        LookupError: If the store has no such service.
    """
    before = read_one(conn, name, lock=True)
    after = machine.half_opened(before, now)
    if after is not before:
        change(conn, now, before, after, actor=actor, reason=reason)
    return after


def close(conn: Connection, now: datetime, name: str, *, actor: str) -> list[Hold]:
    """Close a breaker by hand, and release its own hold by force. A closed one stays as it is.

    Returns:
        The released holds.

    Raises:
        LookupError: If the store has no such service.
    """
    before = read_one(conn, name, lock=True)
    after = machine.closed(before, now)
    ended = _end_hold(conn, now, name, actor=actor)
    if after is not before:
        change(conn, now, before, after, actor=actor)
    return ended


def _end_hold(conn: Connection, now: datetime, name: str, *, actor: str) -> list[Hold]:
    live = holds.live(conn, now, Target(TargetKind.SERVICE, name))
    own = [hold for hold in live if hold.source is HoldSource.BREAKER]
    return holds.end(conn, now, own, actor=actor, by_force=actor != SystemActor.BREAKER)


class SqlBackend:
    """Breakers in the store that the fleet shares; see `breaker.backend.BreakerBackend`."""

    shared = True

    def __init__(self, store: Store) -> None:
        self.store = store
        # A failure is read back after its commit: within their transactions, two simultaneous
        # failures could not see each other, and both might miss the trip.
        self._evidence = store.evidence()

    @property
    def clock(self) -> Callable[[], datetime] | None:
        """Replaces the database's clock in tests."""
        return self.store.clock

    def now(self) -> datetime:
        """Return the database's time, UTC."""
        with self.store.read() as conn:
            return self.store.now(conn)

    def read(self, names: Iterable[str]) -> FleetSnapshot:
        """See `BreakerBackend.read`."""
        snapshot = self._read()
        if missing := sorted(set(names) - set(snapshot.services)):
            with self.store.begin() as conn:
                ensure(conn, self.store.now(conn), missing)
            snapshot = self._read()
        return snapshot

    def _read(self) -> FleetSnapshot:
        before = time.monotonic()
        # Every worker reads this at each change: one statement, and no transaction around it. It is
        # a single moment, so that nobody reads an open breaker without its hold.
        with self._evidence.connect() as conn:
            now, rows = _FLEET.read(self.store, conn)
            monotonic = time.monotonic()
        if self.store.has_clock:  # which it reads between question and answer
            monotonic = (before + monotonic) / 2
        breakers = sorted(map(from_row, rows["services"]), key=lambda each: each.name)
        return FleetSnapshot(
            services={breaker.name: breaker for breaker in breakers},
            holds=tuple(in_effect(map(holds.from_row, rows["holds"]), now)),
            read_at=now,
            read_monotonic=monotonic,
            outdated=compatibility.refusal(rows["compatibility"][0]["oldest"]),
        )

    def record(
        self, policy: ServicePolicy, delta: WindowDelta
    ) -> tuple[BreakerStatus, WindowStats]:
        """See `BreakerBackend.record`."""
        with self._evidence.begin() as conn:
            add(conn, [delta])
            try:
                return read_window(conn, policy, delta.at, delta.worker)
            except LookupError:
                ensure(conn, delta.at, [policy.name])
                return read_window(conn, policy, delta.at, delta.worker)

    def flush(self, deltas: Sequence[tuple[ServicePolicy, WindowDelta]]) -> None:
        """See `BreakerBackend.flush`."""
        with (self._evidence if len(deltas) == 1 else self.store.engine).begin() as conn:
            add(conn, [delta for _, delta in deltas])

    def prune(self, policies: Iterable[ServicePolicy]) -> int:
        """See `BreakerBackend.prune`. A service keeps two windows of its counts.

        Those that are deleted are added to its verdicts by minute.
        """
        with self.store.begin() as conn:
            now = self.store.now(conn)
            o = t.outcomes.c
            ages: dict[timedelta, list[str]] = {}
            for policy in policies:
                max_age = timedelta(seconds=2 * policy.window_s + bucket_s(policy))
                ages.setdefault(max_age, []).append(policy.name)
            if not ages:
                return 0
            old = sa.or_(
                *(
                    o.service.in_(names) & (o.bucket <= now - max_age)
                    for max_age, names in ages.items()
                )
            )
            # Failures in a row count until a call succeeds, however long that takes.
            present = sa.exists().where(
                t.services.c.name == o.service, t.services.c.generation == o.generation
            )
            until = now + timedelta(seconds=CLOCK_TOLERANCE_S)
            old = old & ~(present & _outlives_window(until))
            # Several processes prune at the same time: each skips rows that another has locked.
            key = (o.service, o.bucket, o.worker, o.generation)
            some = (
                sa.select(*key, *(o[name] for name in COUNTS))
                .where(old)
                .limit(PRUNED_AT_ONCE)
                .with_for_update(skip_locked=True)
            )
            rows = conn.execute(some).all()
            if not rows:
                return 0
            for table, start in ((t.verdicts, _MINUTE), (t.daily_verdicts, _DAY)):
                conn.execute(_add_verdicts(conn.dialect.name, table), _added_up(rows, table, start))
            wanted = sa.tuple_(*key).in_([tuple(row)[: len(key)] for row in rows])
            return conn.execute(t.outcomes.delete().where(wanted)).rowcount

    def change(self, before: BreakerStatus, after: BreakerStatus, actor: str) -> bool:
        """See `BreakerBackend.change`."""
        with self.store.begin() as conn:
            return change(conn, self.store.now(conn), before, after, actor=actor)

    def take_trial(self, policy: ServicePolicy, worker: str) -> TrialAnswer:
        """See `BreakerBackend.take_trial`."""
        with self.store.begin() as conn:
            now = self.store.now(conn)
            # The lock makes taking a slot atomic.
            before = after = read_one(conn, policy.name, lock=True)
            if before.due(now):
                after = machine.half_opened(before, now)
                change(conn, now, before, after, actor=worker)
            if not after.is_half_open:
                return TrialAnswer(before, after, None, after.open_until)
            trials = t.trials.c
            conn.execute(
                t.trials.delete().where(
                    trials.service == policy.name,
                    (trials.expires_at <= now) | (trials.generation != after.generation),
                )
            )
            leased = conn.execute(
                sa.select(trials.slot, trials.expires_at).where(trials.service == policy.name)
            ).all()
            slot = free_slot([row.slot for row in leased], policy.trial_calls)
            if slot is None:
                return TrialAnswer(before, after, None, min(row.expires_at for row in leased))
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
        self,
        policy: ServicePolicy,
        trial: Trial,
        verdict: Verdict,
    ) -> tuple[BreakerStatus, BreakerStatus]:
        """See `BreakerBackend.end_trial`. The result counts only if the lease is still held."""
        with self.store.begin() as conn:
            now = self.store.now(conn)
            before = read_one(conn, policy.name, lock=True)
            trials = t.trials.c
            returned = conn.execute(
                t.trials.delete().where(trials.service == policy.name, trials.token == trial.token)
            ).rowcount
            if not returned or before.generation != trial.generation:
                return before, before
            after = machine.after_trial(before, policy, verdict, now, random())
            if after is before:
                push.notify(conn)  # the slot is free
            else:
                change(conn, now, before, after, actor=trial.worker)
            return before, after

    def lease(self, policy: ServicePolicy, worker: str, request: CallRequest) -> Grant:
        """See `BreakerBackend.lease`."""
        with self.store.begin() as conn:
            return limits.lease(conn, self.store, policy, worker, request)

    def lease_slots(self, policy: ServicePolicy, worker: str, request: SlotRequest) -> SlotGrant:
        """See `BreakerBackend.lease_slots`."""
        with self.store.begin() as conn:
            return limits.lease_slots(conn, self.store, policy, worker, request)

    def spend(self, policy: ServicePolicy, worker: str, request: SpendRequest) -> Allowance:
        """See `BreakerBackend.spend`."""
        with self.store.begin() as conn:
            return budgets.spend(conn, self.store, policy, worker, request)

    def listen(self, waker: Waker) -> Listener:
        """See `BreakerBackend.listen`."""
        return push.listen(self.store.engine, waker)

    def is_unreachable(self, error: Exception) -> bool:
        """See `BreakerBackend.is_unreachable`. A missing table means a store without schema."""
        missing = "no such table" in str(error) or "no such column" in str(error)
        return isinstance(error, UNREACHABLE) and not missing

    def after_fork(self) -> None:
        """See `BreakerBackend.after_fork`."""
        self.store.engine.dispose(close=False)


def _kept(by: str | None, until: datetime | None) -> dict[str, Any] | None:
    """Return what an event records about who keeps a breaker closed."""
    if by is None:
        return None
    return {
        "kept_closed_by": by,
        "kept_closed_until": None if until is None else until.isoformat(),
    }


def _keep(
    conn: Connection,
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
    delta, kept = new.excluded, t.outcomes.c
    added = {name: kept[name] + delta[name] for name in COUNTS}
    replaced = {
        name: delta[name] for name in ("failed_in_row", "row_since", "row_records", "p95_s")
    }
    later = {
        name: sa.case(
            (kept[name] > delta[name], kept[name]), else_=sa.func.coalesce(delta[name], kept[name])
        )
        for name in ("last_ok_at", "last_failed_at", "retry_at")
    }
    add = new.on_conflict_do_update(
        index_elements=["service", "bucket", "worker", "generation"],
        set_=added | replaced | later,
    )
    if dialect == "postgresql":
        # Its transaction does not wait for the disk, see `Store.evidence`.
        return add.returning(sa.func.set_config("synchronous_commit", "off", True))
    return add


@cache
def _add_verdicts(dialect: str, table: sa.Table) -> Any:
    new = insert_on(dialect, table)
    return new.on_conflict_do_update(
        index_elements=list(table.primary_key.columns),
        set_={name: table.c[name] + new.excluded[name] for name in COUNTS},
    )


_MINUTE = {"second": 0, "microsecond": 0}
_DAY = {"hour": 0, "minute": 0, **_MINUTE}


def _added_up(
    rows: Iterable[sa.Row], table: sa.Table, start: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Add up outcomes by the key of a table; in the order in which everybody locks them.

    Args:
        start: What is 0 in a time at which a span of the table begins.
    """
    begin = list(table.primary_key.columns)[1].name
    sums: dict[tuple[str, datetime], dict[str, Any]] = {}
    for row in rows:
        at = row.bucket.replace(**start)
        into = sums.setdefault((row.service, at), {"service": row.service, begin: at})
        for name in COUNTS:
            into[name] = into.get(name, 0) + getattr(row, name)
    return [sums[key] for key in sorted(sums)]


def _outlives_window(until: Any) -> sa.ColumnElement[bool]:
    """See `window.outlives_window`; what a worker reports for later than `until` is not known."""
    o, other = t.outcomes.c, t.outcomes.alias("other")
    last_ok_at = (
        sa.select(sa.func.max(other.c.last_ok_at))
        .where(
            other.c.service == o.service,
            other.c.generation == o.generation,
            other.c.bucket <= until,
            other.c.last_ok_at <= until,
        )
        .correlate(t.outcomes)
        .scalar_subquery()
    )
    later = last_ok_at.is_(None) | (o.last_failed_at > last_ok_at)
    # Never NULL, or a worker without a success would keep its rows for good.
    return ((o.failed_in_row > 0) & later) | sa.func.coalesce(
        o.last_ok_at == last_ok_at, sa.false()
    )


_ONE = sa.select(t.services).where(t.services.c.name == sa.bindparam("service"))
_LOCKED = _ONE.with_for_update(key_share=True)


_FLEET = SnapshotQuery(
    services=sa.select(t.services),
    holds=holds.UNRELEASED,
    compatibility=sa.select(compatibility.OLDEST.label("oldest")),
)
_WINDOW = sa.select(*(t.outcomes.c[name] for name in Counts._fields)).where(
    t.outcomes.c.service == sa.bindparam("service"),
    t.outcomes.c.generation == sa.bindparam("generation"),
    (t.outcomes.c.bucket > sa.bindparam("since")) | _outlives_window(sa.bindparam("until")),
    t.outcomes.c.bucket <= sa.bindparam("until"),
)
_CALLS = t.outcomes.c.ok + t.outcomes.c.failed
P95_S = sa.func.sum(t.outcomes.c.p95_s * _CALLS) / sa.func.nullif(
    sa.func.sum(sa.case((t.outcomes.c.p95_s.is_not(None), _CALLS))), 0
)
"""The 95th percentile of the duration of calls: those of the workers, weighted by their calls."""
_DELTA = tuple(name for name in WindowDelta.__dataclass_fields__ if name != "at")
