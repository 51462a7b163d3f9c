"""Deletes what is over, in batches so small that nobody waits for them.

Each batch is a transaction of its own and finds its rows by their primary keys: no lock is kept,
and the server can clean up behind it at once.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta

import sqlalchemy as sa

from dagster_tidegate.statuses import UNFINISHED, RunStatus
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store

BATCH = 2_000
BATCHES_A_TURN = 5
LOOK_EVERY_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Keep:
    """How long is kept what is over; None: for ever.

    Campaign runs and their attempts are kept for ever: they are what was done.

    Attributes:
        ledgers: The ledger of a campaign run, after that has ended; it can't begin again then.
        events: Who changed what, after it happened.
        holds: A hold, after its release.
        takeovers: A takeover, after it was given back.
        missed_ticks: A tick that a schedule missed, after it was caught up or given up.
        alerts: An alert, after its cause has ended.
        outcomes: What was seen of a service that nobody calls any more.
        sessions: The session of a browser, after it has expired.
        idempotency_keys: The answer to a request that must not take effect twice.
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
                raise ValueError(f"{kind} can't be kept for {age}: say 0 or more, or None for ever")


KINDS = tuple(field.name for field in fields(Keep))
"""What is deleted, by the names of the tables."""


@dataclass(frozen=True)
class Pruned:
    """What a pruning did.

    Attributes:
        deleted: How many rows of each kind.
        more: Whether there may be more.
    """

    deleted: Mapping[str, int]
    more: bool

    @property
    def total(self) -> int:
        """How many rows of all kinds."""
        return sum(self.deleted.values())


def prune(store: Store, now: datetime, keep: Keep, *, batches: int) -> Pruned:
    """Delete what is over for longer than it is kept.

    A campaign run whose ledger goes is marked first, so that it does not begin again with half a
    ledger; `runs` refuses it from then on. Its attempts and progress stay.

    Args:
        store: The store.
        now: The database's time, UTC.
        keep: How long each kind is kept.
        batches: How many batches to delete at most; at least 1.

    Returns:
        What was deleted.
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


def count(conn: sa.Connection, now: datetime, keep: Keep) -> Mapping[str, int]:
    """Return how many rows of each kind `prune` would delete."""
    found: dict[str, int] = {}
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
        found[kind] = conn.scalar(rows.where(where)) or 0
    return found


class Retention:
    """Prunes a little at each turn while there is something to prune, and else looks now and then.

    Args:
        keep: How long each kind is kept.
    """

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._due = 0.0

    def turn(self, store: Store, now: datetime) -> int:
        """Delete a few batches if it is time, and return how many rows that were."""
        if time.monotonic() < self._due:
            return 0
        pruned = prune(store, now, self._keep, batches=BATCHES_A_TURN)
        self._due = 0.0 if pruned.more else time.monotonic() + LOOK_EVERY_S
        return pruned.total


_Batch = Callable[[sa.Connection, datetime], int | None]


@dataclass(frozen=True)
class _Kind:
    """A table, and which of its rows are over.

    Attributes:
        table: The table.
        over: When a row was over; NULL: it is not.
        in_order: Whether rows are over in the order of their ids: no others are looked at then.
    """

    table: sa.Table
    over: sa.Column
    in_order: bool = False

    def where(self, before: datetime) -> sa.ColumnElement[bool]:
        """Which rows go. The newest stays: SQLite would give its id once more."""
        old = self.over < before
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

    def batch(conn: sa.Connection, _now: datetime) -> int | None:
        found = conn.execute(some).all()
        if not found:
            return None
        wanted = sa.tuple_(*key).in_([tuple(row) for row in found])
        return conn.execute(kind.table.delete().where(wanted)).rowcount

    return batch


def _ledgers(before: datetime) -> _Batch:
    found: int | None = None  # the campaign run whose ledger is being deleted

    def batch(conn: sa.Connection, now: datetime) -> int | None:
        nonlocal found
        if found is None:
            found = _next(conn, before)
            if found is None:
                return None
            conn.execute(
                t.campaign_runs.update()
                .where(t.campaign_runs.c.id == found, t.campaign_runs.c.pruned_at.is_(None))
                .values(pruned_at=now)
            )
        deleted = conn.execute(_batch(found)).rowcount
        if deleted < BATCH:  # that was the rest of it
            found = None
        return deleted

    return batch


def _is_over(before: datetime) -> sa.ColumnElement[bool]:
    run = t.campaign_runs.c
    return run.status.in_(set(RunStatus) - UNFINISHED) & (run.changed_at < before)


def _next(conn: sa.Connection, before: datetime) -> int | None:
    """A campaign run that ended before a time and has a ledger; locked against a new attempt."""
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
