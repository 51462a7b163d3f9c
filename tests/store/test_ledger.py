"""The ledger: entries, the fence, progress and leases, on both databases."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta, timezone

import pytest
import sqlalchemy as sa

from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import ledger, loops, records, runs
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection, Store
from dagster_tidegate.store.ledger import AttemptOverError, Entry, Progress, Recorded
from dagster_tidegate.store.runs import AttemptRow, CampaignRun
from tests.support.clock import Clock
from tests.support.record_statuses import record_statuses

DONE, FAILED, STARTED = RecordStatus.DONE, RecordStatus.FAILED, RecordStatus.STARTED


def begin(conn: Connection, clock: Clock, dagster_run: str = "first") -> AttemptRow:
    run = runs.ensure(conn, clock(), "outreach", "leads-1")
    return runs.begin_attempt(conn, clock(), run, dagster_run, owner_is_over=True)


def owner(conn: Connection) -> CampaignRun:
    run = runs.find(conn, "outreach", "leads-1")
    assert run is not None
    return run


def end(conn: Connection, clock: Clock, to: RunStatus) -> None:
    assert runs.move(conn, clock(), owner(conn), to, actor="test")


def test_one_write_ends_a_record_and_starts_the_next(store: Store, clock: Clock) -> None:
    with store.begin() as conn:
        attempt = begin(conn, clock)
        assert ledger.write(conn, clock(), attempt, "send", [Entry("a", 0, STARTED)])
        both = [Entry("a", 0, DONE, {"sent": True}), Entry("b", 1, STARTED)]
        assert ledger.write(conn, clock(), attempt, "send", both)
        assert ledger.look_up(conn, owner(conn), "send", ["a", "b", "c"]) == {
            "a": Recorded(DONE, 1, 0),
            "b": Recorded(STARTED, 1, 1),
        }
        assert record_statuses(conn, attempt.campaign_run, "other") == {}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_newer_attempt_fences_the_writes_of_an_older(
    store: Store, clock: Clock, count: int
) -> None:
    started = [Entry(str(row), row, STARTED) for row in range(count)]
    with store.begin() as conn:
        older = begin(conn, clock)
        newer = begin(conn, clock, "second")
    for entries in (started, [Entry("a", 0, DONE)]):
        with pytest.raises(AttemptOverError), store.begin() as conn:
            ledger.write(conn, clock(), older, "send", entries)
    with pytest.raises(AttemptOverError), store.begin() as conn:
        ledger.abandon(conn, older, "send", ["a"])
    with pytest.raises(AttemptOverError), store.begin() as conn:
        ledger.write_progress(conn, clock(), older, "send", Progress(done=1))
    with store.begin() as conn:
        assert record_statuses(conn, older.campaign_run, "send") == {}
        assert ledger.write(conn, clock(), newer, "send", started)


@pytest.mark.parametrize("to", [RunStatus.PAUSED, RunStatus.COMPLETED, RunStatus.CANCELLED])
@pytest.mark.parametrize("extra", [0, 3])
def test_after_the_end_results_are_written_and_starts_are_not(
    store: Store, clock: Clock, to: RunStatus, extra: int
) -> None:
    with store.begin() as conn:
        attempt = begin(conn, clock)
        end(conn, clock, to)
        entries = [
            Entry("a", 0, DONE),
            Entry("b", 1, STARTED),
            *(Entry(str(row), row, FAILED) for row in range(2, 2 + extra)),
        ]
        assert not ledger.write(conn, clock(), attempt, "send", entries)
        statuses = record_statuses(conn, attempt.campaign_run, "send")
    assert statuses == {"a": DONE} | {str(row): FAILED for row in range(2, 2 + extra)}


def test_results_come_back_as_they_were_in_the_order_of_the_input(
    store: Store, clock: Clock
) -> None:
    results = [None, 0, 1.5, "ü ☃ '", {"a": [1, {"b": None}]}, [], True, "x" * 10_000]
    entries = [Entry(str(row), row, DONE, result) for row, result in enumerate(results)]
    with store.begin() as conn:
        attempt = begin(conn, clock)
        ledger.write(conn, clock(), attempt, "send", entries[::-1])
        ledger.write(conn, clock(), attempt, "send", [Entry("f", 99, FAILED, error="403")])
        assert ledger.results(conn, owner(conn), "send") == results
        assert ledger.counts(conn, owner(conn), "send") == {DONE: len(results), FAILED: 1}
        assert ledger.counts(conn, owner(conn), "send", failed_since=2) == {DONE: len(results)}


def test_many_entries_are_written_like_one(store: Store, clock: Clock) -> None:
    at = clock().astimezone(timezone(timedelta(hours=5)))
    waiting = RecordStatus.WAITING
    started = [Entry(key, row, STARTED) for row, key in enumerate("ab%:c")]
    entries = [
        Entry("a", 0, DONE, {"sent": None}, tries=2, service="apollo"),
        Entry("b", 1, FAILED, error="50 % (of) :it 'failed'", tries=10, suspect=True),
        Entry("%", 2, waiting, retry_at=at + timedelta(seconds=5)),
        Entry(":", 3, DONE, [["ü"], [1, 2]]),
        Entry("c", 4, STARTED),
    ]
    with store.begin() as conn:
        attempt = begin(conn, clock)
        for each in ([entry] for entry in (*started, *entries)):
            ledger.write(conn, at, attempt, "one", each)
        ledger.write(conn, at, attempt, "many", started)
        ledger.write(conn, at, attempt, "many", entries)
        ledger.write(conn, at, attempt, "at once", [*started, *entries])
        columns = [column for column in t.ledger.c if column is not t.ledger.c.op]
        one, many, at_once = (
            conn.execute(sa.select(*columns).where(t.ledger.c.op == op)).all()
            for op in ("one", "many", "at once")
        )
    assert len(many) == len(entries)
    assert set(map(str, one)) == set(map(str, many)) == set(map(str, at_once))


def test_what_was_done_before_a_fresh_start_does_not_count(store: Store, clock: Clock) -> None:
    old = [Entry("same", 0, DONE, "old"), Entry("gone", 1, DONE, "old"), Entry("grouped", 2, DONE)]
    with store.begin() as conn:
        first = begin(conn, clock)
        ledger.write(conn, clock(), first, "send", old)
        for entry in (old[0], old[2]):
            ledger.remember(conn, clock(), first, "send", entry, {"paid": 1})
        ledger.write_progress(conn, clock(), first, "send", Progress(done=3, exact=True))
        end(conn, clock, RunStatus.COMPLETED)
    with store.begin() as conn:
        again = runs.begin_attempt(
            conn, clock(), owner(conn), "again", owner_is_over=True, continues=False
        )
        run = owner(conn)
        assert ledger.counts(conn, run, "send") == {}
        assert ledger.results(conn, run, "send") == []
        assert ledger.look_up(conn, run, "send", ["same", "gone", "grouped"]) == {}
        assert ledger.progress(conn, run.id, "send") is None
        assert records.read(conn, clock(), run, records.Selection(), limit=9) == []
        # A start is written first; with a group, a step is what is written first.
        ledger.write(conn, clock(), again, "send", [Entry("same", 5, STARTED)])
        waiting = Entry("grouped", 6, RecordStatus.WAITING)
        ledger.remember(conn, clock(), again, "send", waiting, {"found": 2})
        assert ledger.look_up(conn, run, "send", ["same", "gone", "grouped"]) == {
            "same": Recorded(STARTED, 2, 5),
            "grouped": Recorded(RecordStatus.WAITING, 2, 6, steps={"found": 2}),
        }


def test_thousands_of_keys_are_looked_up_at_once(store: Store, clock: Clock) -> None:
    keys = [f"lead-{row}" for row in range(3_000)]
    with store.begin() as conn:
        attempt = begin(conn, clock)
        done = [Entry(key, row, DONE) for row, key in enumerate(keys)]
        ledger.write(conn, clock(), attempt, "send", done)
        recorded = ledger.look_up(conn, owner(conn), "send", [*keys, "'; --", "new"])
        assert list(recorded)
        assert set(recorded) == set(keys)
        assert ledger.look_up(conn, owner(conn), "send", []) == {}


def test_abandoned_records_are_not_in_doubt(store: Store, clock: Clock) -> None:
    with store.begin() as conn:
        attempt = begin(conn, clock)
        entries = [Entry("a", 0, STARTED), Entry("b", 1, STARTED), Entry("c", 2, DONE)]
        ledger.write(conn, clock(), attempt, "send", entries)
        ledger.abandon(conn, attempt, "send", ["a", "c"])
        assert record_statuses(conn, attempt.campaign_run, "send") == {"b": STARTED, "c": DONE}


def test_progress_is_read_as_it_was_written(store: Store, clock: Clock) -> None:
    first = Progress(1, 0, None, None, 1, "a", 1, exact=False)
    last = Progress(9, 1, 10, 2.5, 10, "ü", 1, exact=True)
    with store.begin() as conn:
        attempt = begin(conn, clock)
        assert ledger.progress(conn, attempt.campaign_run, "send") is None
        for progress in (first, last):
            ledger.write_progress(conn, clock(), attempt, "send", progress)
            assert ledger.progress(conn, attempt.campaign_run, "send") == progress
        assert ledger.begun(conn, ["send"]) == set()
        end(conn, clock, RunStatus.PAUSED)
        assert ledger.begun(conn, ["send", "other"]) == {(attempt.campaign_run, "send")}


def test_one_process_has_the_lease_of_a_loop(store: Store, clock: Clock) -> None:
    def claim(conn: Connection, attempt: AttemptRow, worker: str) -> bool:
        until = clock() + timedelta(seconds=10)
        return loops.claim(conn, clock(), attempt, "send", worker, until)

    with store.begin() as conn:
        first = begin(conn, clock)
        assert claim(conn, first, "a")
        assert claim(conn, first, "a")  # renewed
        assert not claim(conn, first, "b")
        [row] = runs.attempts(conn, first.campaign_run)
        assert row.lease_until == clock() + timedelta(seconds=10)
        clock.advance(11)
        assert claim(conn, first, "b")  # expired
        assert not claim(conn, first, "a")
        second = begin(conn, clock, "second")
        assert claim(conn, second, "c")
        assert not claim(conn, first, "b")
        loops.leave(conn, first, "send", "b")  # not its own any more
        assert not claim(conn, second, "d")
        loops.leave(conn, second, "send", "c")
        assert claim(conn, second, "d")


def test_of_processes_at_once_one_gets_the_lease(store: Store, clock: Clock) -> None:
    with store.begin() as conn:
        attempt = begin(conn, clock)

    def claim(worker: str) -> bool:
        with store.begin() as conn:
            return loops.claim(conn, clock(), attempt, "send", worker, clock() + timedelta(1))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(claim, "abcd")) == 1
