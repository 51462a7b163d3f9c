"""Deletes expired rows, in batches so small that nobody waits for them.

Each batch is a transaction of its own and deletes by primary key, so that no lock is held for long
and PostgreSQL can vacuum between batches.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta

import sqlalchemy as sa

from dagster_tidegate.statuses import UNFINISHED, RunStatus
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection, Store

BATCH = 2_000
BATCHES_AT_ONCE = 5
INTERVAL_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Retention periods; None keeps rows forever.

    Campaign runs and their attempts are always kept, as the history of what was done.

    Attributes:
        ledgers: The ledger of a campaign run, after the run has ended; it can't start again then.
        events: The audit log.
        holds: Holds, after their release.
        takeovers: Takeovers, after the value was restored.
        missed_ticks: Ticks that a schedule missed, after they were launched, skipped or failed.
        alerts: Alerts, after their cause has ended.
        outcomes: Outcomes of calls to services that nobody calls any more.
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
    sessions: timedelta | None = timedelta(days=1)
    idempotency_keys: timedelta | None = timedelta(days=1)

    def __post_init__(self) -> None:
        for kind in KINDS:
            age = getattr(self, kind)
            if age is not None and age < timedelta(0):
                raise ValueError(
                    f"{kind} can't be kept for {age}: use 0 or more, or None to keep it forever"
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

    A campaign run is marked before its ledger is deleted, so that it can't start again with half a
    ledger: `runs` refuses it from then on. Its attempts and progress stay.

    Args:
        batches: How many batches to delete at most; at least 1.
    """
    deleted: dict[str, int] = {}
    for kind in KINDS:
        age = getattr(keep, kind)
        if age is None:
            continue
        batch = _ledgers(now - age) if kind == "ledgers" else _rows(_KINDS[kind], now - age)
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
        if age is None:
            continue
        if kind == "ledgers":
            rows = sa.select(sa.func.count()).select_from(t.ledger.join(t.campaign_runs))
            where = _is_over(now - age)
        else:
            rows = sa.select(sa.func.count()).select_from(_KINDS[kind].table)
            where = _KINDS[kind].where(now - age)
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


def _ledgers(before: datetime) -> _Batch:
    current: int | None = None  # the campaign run whose ledger is being deleted

    def batch(conn: Connection, now: datetime) -> int | None:
        nonlocal current
        if current is None:
            current = _next(conn, before)
            if current is None:
                return None
            conn.execute(
                t.campaign_runs.update()
                .where(t.campaign_runs.c.id == current, t.campaign_runs.c.pruned_at.is_(None))
                .values(pruned_at=now)
            )
        deleted = conn.execute(_batch(current)).rowcount
        if deleted < BATCH:  # that was the rest of it
            current = None
        return deleted

    return batch


def _is_over(before: datetime) -> sa.ColumnElement[bool]:
    run = t.campaign_runs.c
    return run.status.in_(set(RunStatus) - UNFINISHED) & (run.changed_at < before)


def _next(conn: Connection, before: datetime) -> int | None:
    """Return a campaign run that ended before a time and has a ledger, locked against a start."""
    run = t.campaign_runs.c
    return conn.scalar(
        sa.select(run.id)
        .where(_is_over(before), sa.exists().where(t.ledger.c.campaign_run == run.id))
        .order_by(run.id)
        .limit(1)
        .with_for_update(of=t.campaign_runs, skip_locked=True)
    )


def _batch(campaign_run: int) -> sa.Delete:
    key = sa.tuple_(t.ledger.c.op, t.ledger.c.key)
    some = (
        sa.select(t.ledger.c.op, t.ledger.c.key)
        .where(t.ledger.c.campaign_run == campaign_run)
        .limit(BATCH)
    )
    return t.ledger.delete().where(t.ledger.c.campaign_run == campaign_run, key.in_(some))
