"""Old ledgers are deleted in batches, and their campaign runs do not begin again."""

from datetime import timedelta

import pytest

from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import ledger, retention, runs
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.ledger import Entry
from dagster_tidegate.store.retention import Retention
from dagster_tidegate.store.runs import Attempt, AttemptRefusedError, CampaignRun
from tests.conftest import Clock

DAY_S = 24 * 3600


def ended(store: Store, partition: str, status: RunStatus, entries: int = 5) -> CampaignRun:
    """A campaign run with a ledger that has ended now."""
    with store.begin() as conn:
        now = store.now(conn)
        run = runs.ensure(conn, now, "outreach", partition)
        attempt = begin(store, run, partition)(conn)
        ledger.write(
            conn,
            now,
            attempt,
            "send",
            [Entry(str(n), n, RecordStatus.DONE) for n in range(entries)],
        )
        found = runs.get(conn, run.id)
        assert found is not None
        if status is not RunStatus.PROCESSING:
            runs.move(conn, now, found, status, actor="test")
    return run


def begin(store: Store, run: CampaignRun, dagster_run: str):
    def step(conn) -> Attempt:
        return runs.begin_attempt(conn, store.now(conn), run, dagster_run, owner_is_over=True)

    return step


def left(store: Store, run: CampaignRun) -> int:
    with store.read() as conn:
        return len(ledger.statuses(conn, run.id, "send"))


def test_only_ledgers_of_what_ended_long_ago_are_deleted(store: Store, clock: Clock) -> None:
    old = ended(store, "old", RunStatus.COMPLETED)
    paused = ended(store, "paused", RunStatus.PAUSED)
    working = ended(store, "working", RunStatus.PROCESSING)
    clock.advance(100 * DAY_S)
    new = ended(store, "new", RunStatus.COMPLETED)
    before = clock() - timedelta(days=90)
    assert retention.prune(store, before, batches=10) == (5, False)
    assert [left(store, run) for run in (old, paused, working, new)] == [0, 5, 5, 5]
    assert retention.prune(store, before, batches=10) == (0, False)


def test_it_goes_on_where_it_stopped(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    old = ended(store, "old", RunStatus.FAILED)
    clock.advance(100 * DAY_S)
    assert retention.prune(store, clock(), batches=1) == (2, True)
    with store.begin() as conn, pytest.raises(AttemptRefusedError, match="ledger was deleted"):
        begin(store, old, "again")(conn)
    assert retention.prune(store, clock(), batches=10) == (3, False)
    assert left(store, old) == 0


def test_a_sensor_that_keeps_for_ever_deletes_nothing(store: Store, clock: Clock) -> None:
    ended(store, "old", RunStatus.COMPLETED)
    clock.advance(1000 * DAY_S)
    assert Retention(None).turn(store, clock()) == 0
    assert Retention(timedelta(days=90)).turn(store, clock()) == 5
