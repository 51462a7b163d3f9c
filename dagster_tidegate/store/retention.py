"""Deletes expired rows, in batches so small that nobody waits for them.

Each batch is a transaction of its own and deletes by primary key, so that no lock is held for long
and PostgreSQL can vacuum between batches.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta

import sqlalchemy as sa

from dagster_tidegate.statuses import UNFINISHED, RunStatus
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection, Store

BATCH = 2_000
BATCHES_AT_ONCE = 5
INTERVAL_S = 3600.0
MIN_SPENDING = timedelta(days=32)


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Retention periods; None keeps rows forever.

    Campaign runs and their attempts are always kept, as the history of what was done.

    Attributes:
        ledgers: The ledger of a campaign run, after the run has ended; if it is executed again
            then, all of its records are done again.
        events: The audit log.
        holds: Holds, after their release.
        takeovers: Takeovers, after the value was restored.
        missed_ticks: Ticks that a schedule missed, after they were launched, skipped or failed.
        alerts: Alerts, after their cause has ended.
        outcomes: Outcomes of calls to services that are no longer called.
        verdicts: How many calls to each service there were in a minute, by verdict.
        daily_verdicts: The same by day, for the reports of months.
        spending: What was spent of a budget in a period, by campaign.
        sessions: Browser sessions, after they have expired.
        idempotency_keys: Responses to requests with an `Idempotency-Key`.
    """

    ledgers: timedelta | None = timedelta(days=90)
    events: timedelta | None = timedelta(days=365)
    holds: timedelta | None = timedelta(days=365)
    takeovers: timedelta | None = timedelta(days=90)
    missed_ticks: timedelta | None = timedelta(days=90)
    alerts: timedelta | None = timedelta(days=90)
    outcomes: timedelta | None = timedelta(days=1)
    verdicts: timedelta | None = timedelta(days=1)
    daily_verdicts: timedelta | None = timedelta(days=365)
    spending: timedelta | None = timedelta(days=365)
    sessions: timedelta | None = timedelta(days=1)
    idempotency_keys: timedelta | None = timedelta(days=1)

    def __post_init__(self) -> None:
        for kind in KINDS:
            age = getattr(self, kind)
            if age is not None and age < timedelta(0):
                raise ValueError(
                    f"{kind} can't be kept for {age}: use 0 or more, or None to keep it forever"
                )
        if self.spending is not None and self.spending < MIN_SPENDING:
            raise ValueError(
                f"spending can't be kept for {self.spending}: a budget may count for a month, so "
                f"use {MIN_SPENDING.days} days or more, or None to keep it forever"
            )


KINDS = tuple(field.name for field in fields(Keep))
"""What is deleted; mostly names of tables."""


@dataclass(frozen=True)
class Pruned:
    """What `prune` did.

    Attributes:
        deleted: How many rows of each kind were deleted.
        more: Whether there may be more to delete.
    """

    deleted: Mapping[str, int]
    more: bool

    @property
    def total(self) -> int:
        """How many rows were deleted."""
        return sum(self.deleted.values())


def prune(store: Store, now: datetime, keep: Keep, *, batches: int) -> Pruned:
    """Delete rows that are older than their retention period.

    A campaign run is marked before its ledger is deleted, so that it does not continue with half a
    ledger: it starts afresh. Its attempts and progress stay until then. Records
    from before their campaign run was started afresh are deleted whatever their age.

    Args:
        batches: How many batches to delete at most; at least 1.
    """
    deleted: dict[str, int] = {}
    for kind in KINDS:
        age = getattr(keep, kind)
        before = None if age is None else now - age
        if kind == "ledgers":
            batch = _ledgers(before)
        elif before is None:
            continue
        else:
            batch = _rows(_KINDS[kind], before)
        deleted[kind] = 0
        while batches:
            with store.begin() as conn:
                count = batch(conn, store.now(conn))
            if count is None:
                break
            batches -= 1
            deleted[kind] += count
        else:
            return Pruned(deleted, more=True)
    return Pruned(deleted, more=False)


def count(conn: Connection, now: datetime, keep: Keep) -> Mapping[str, int]:
    """Return how many rows of each kind `prune` would delete."""
    rows_of: dict[str, int] = {}
    for kind in KINDS:
        age = getattr(keep, kind)
        before = None if age is None else now - age
        if kind == "ledgers":
            rows = sa.select(sa.func.count()).select_from(t.ledger.join(t.campaign_runs))
            run = t.campaign_runs.c
            is_old = run.has_old_records & (t.ledger.c.attempt < run.first_attempt)
            where = _expired(before) | is_old
        elif before is None:
            continue
        else:
            rows = sa.select(sa.func.count()).select_from(_KINDS[kind].table)
            where = _KINDS[kind].where(before)
        rows_of[kind] = conn.scalar(rows.where(where)) or 0
    return rows_of


class Retention:
    """Prunes a few batches at each call while there is something to prune, else once an hour."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._due = 0.0

    def prune_some(self, store: Store, now: datetime) -> int:
        """Delete a few batches if it is time, and return the number of deleted rows."""
        if time.monotonic() < self._due:
            return 0
        pruned = prune(store, now, self._keep, batches=BATCHES_AT_ONCE)
        self._due = 0.0 if pruned.more else time.monotonic() + INTERVAL_S
        return pruned.total


_Batch = Callable[[Connection, datetime], int | None]


@dataclass(frozen=True)
class _Kind:
    """A table, and the age of its rows.

    Attributes:
        ended: From when the age of a row counts; NULL: it is kept.
        in_order: Whether rows end in the order of their ids, so that the oldest ids are enough.
    """

    table: sa.Table
    ended: sa.Column
    in_order: bool = False

    def where(self, before: datetime) -> sa.ColumnElement[bool]:
        """Return which rows to delete. The newest stays: SQLite would assign its id again."""
        old = self.ended < before
        if "id" not in self.table.c:
            return old
        newest = self.table.alias()
        return old & (self.table.c.id < sa.select(sa.func.max(newest.c.id)).scalar_subquery())


_KINDS = {
    "events": _Kind(t.events, t.events.c.at, in_order=True),
    "holds": _Kind(t.holds, t.holds.c.released_at),
    "takeovers": _Kind(t.takeovers, t.takeovers.c.given_back_at),
    "missed_ticks": _Kind(t.missed_ticks, t.missed_ticks.c.settled_at),
    "alerts": _Kind(t.alerts, t.alerts.c.ended_at),
    "outcomes": _Kind(t.outcomes, t.outcomes.c.bucket),
    "verdicts": _Kind(t.verdicts, t.verdicts.c.minute),
    "daily_verdicts": _Kind(t.daily_verdicts, t.daily_verdicts.c.day),
    "spending": _Kind(t.spending, t.spending.c.period),
    "sessions": _Kind(t.sessions, t.sessions.c.expires_at),
    "idempotency_keys": _Kind(t.idempotency_keys, t.idempotency_keys.c.at),
}


def _rows(kind: _Kind, before: datetime) -> _Batch:
    key = list(kind.table.primary_key.columns)
    where = kind.where(before)
    if kind.in_order:
        oldest = sa.select(*key).order_by(*key).limit(BATCH).subquery()
        where &= kind.table.c.id.in_(sa.select(oldest.c.id))
    some = sa.select(*key).where(where).limit(BATCH).with_for_update(skip_locked=True)

    def batch(conn: Connection, _now: datetime) -> int | None:
        keys = [tuple(row) for row in conn.execute(some)]
        if not keys:
            return None
        return conn.execute(kind.table.delete().where(sa.tuple_(*key).in_(keys))).rowcount

    return batch


def _ledgers(before: datetime | None) -> _Batch:
    """Delete records that no longer count: of expired ledgers, and of runs that started afresh."""
    current: _OldRecords | None = None

    def batch(conn: Connection, now: datetime) -> int | None:
        nonlocal current
        if current is None:
            current = _next(conn, now, before)
            if current is None:
                return None
        c = t.ledger.c
        some = conn.execute(
            sa.select(c.op, c.key)
            .where(
                c.campaign_run == current.campaign_run,
                c.attempt < current.first_attempt,
                sa.tuple_(c.op, c.key) > sa.tuple_(*map(sa.literal, current.after)),
            )
            .order_by(c.op, c.key)
            .limit(BATCH)
        ).all()
        keys = [(row.op, row.key) for row in some]
        deleted = 0
        if keys:
            deleted = conn.execute(
                t.ledger.delete().where(
                    c.campaign_run == current.campaign_run,
                    # Not what an attempt has written since.
                    c.attempt < current.first_attempt,
                    sa.tuple_(c.op, c.key).in_(keys),
                )
            ).rowcount
        if len(keys) == BATCH:
            current = replace(current, after=keys[-1])
            return deleted
        run = t.campaign_runs.c
        conn.execute(  # that was the rest, unless it has been started afresh again
            t.campaign_runs.update()
            .where(run.id == current.campaign_run, run.first_attempt == current.first_attempt)
            .values(has_old_records=False)
        )
        current = None
        return deleted

    return batch


@dataclass(frozen=True)
class _OldRecords:
    """The records of a campaign run of attempts before `first_attempt`, after an op and key."""

    campaign_run: int
    first_attempt: int
    after: tuple[str, str] = ("", "")


def _expired(before: datetime | None) -> sa.ColumnElement[bool]:
    """Which campaign runs have a ledger to delete since they ended before a time."""
    run = t.campaign_runs.c
    if before is None:
        return sa.false()
    return (
        run.status.in_(set(RunStatus) - UNFINISHED)
        & (run.changed_at < before)
        & run.pruned_at.is_(None)
    )


def _next(conn: Connection, now: datetime, before: datetime | None) -> _OldRecords | None:
    """Return a campaign run that has old records. A ledger that expires becomes old as a whole."""
    run = t.campaign_runs.c
    has_ledger = sa.exists().where(t.ledger.c.campaign_run == run.id)
    row = conn.execute(
        sa.select(run.id, run.attempt, run.first_attempt, run.has_old_records)
        .where(run.has_old_records | (_expired(before) & has_ledger))
        .order_by(run.id)
        .limit(1)
        .with_for_update(of=t.campaign_runs, skip_locked=True)
    ).one_or_none()
    if row is None:
        return None
    if row.has_old_records:
        return _OldRecords(row.id, row.first_attempt)
    # From now on the run starts afresh, however much of the ledger is deleted.
    first = row.attempt + 1
    conn.execute(
        t.campaign_runs.update()
        .where(run.id == row.id)
        .values(first_attempt=first, has_old_records=True, pruned_at=now)
    )
    return _OldRecords(row.id, first)
