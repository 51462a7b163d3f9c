"""Deletes old ledgers, in batches so small that nobody waits for them."""

import time
from datetime import datetime, timedelta

import sqlalchemy as sa

from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store

BATCH = 2_000
BATCHES_A_TURN = 5
LOOK_EVERY_S = 3600.0
_ENDED = (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED)


def prune(store: Store, before: datetime, *, batches: int) -> tuple[int, bool]:
    """Delete ledger entries of campaign runs that ended long ago.

    Each batch is a transaction of its own. A campaign run is first marked, so that it does not
    begin again with half a ledger; `runs` refuses it from then on. Its attempts, progress and
    events stay.

    Args:
        store: The store.
        before: Those that ended before this time, UTC.
        batches: How many batches to delete at most.

    Returns:
        How many entries were deleted, and whether there may be more.
    """
    deleted, found = 0, None
    for _ in range(batches):
        with store.begin() as conn:
            if found is None:
                found = _next(conn, before)
                if found is None:
                    return deleted, False
                conn.execute(
                    t.campaign_runs.update()
                    .where(t.campaign_runs.c.id == found, t.campaign_runs.c.pruned_at.is_(None))
                    .values(pruned_at=store.now(conn))
                )
            of_this = conn.execute(_batch(found)).rowcount
        deleted += of_this
        if of_this < BATCH:  # that was the rest of it
            found = None
    return deleted, True


class Retention:
    """Prunes a little at each turn while there is something to prune, and else looks now and then.

    Args:
        keep: How long a ledger is kept after its campaign run has ended; None: for ever.
    """

    def __init__(self, keep: timedelta | None) -> None:
        self._keep = keep
        self._due = 0.0

    def turn(self, store: Store, now: datetime) -> int:
        """Delete a few batches if it is time, and return how many entries that were."""
        if self._keep is None or time.monotonic() < self._due:
            return 0
        deleted, more = prune(store, now - self._keep, batches=BATCHES_A_TURN)
        self._due = 0.0 if more else time.monotonic() + LOOK_EVERY_S
        return deleted


def _next(conn: sa.Connection, before: datetime) -> int | None:
    """A campaign run that ended before a time and has a ledger; locked against a new attempt."""
    run = t.campaign_runs.c
    return conn.scalar(
        sa.select(run.id)
        .where(
            run.status.in_(_ENDED),
            run.changed_at < before,
            sa.exists().where(t.ledger.c.campaign_run == run.id),
        )
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
