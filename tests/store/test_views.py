"""What people and the gate read: statistics, details, problems, and the gate's one statement."""

from datetime import datetime, timedelta

import pytest

from dagster_tidegate.breaker.window import WindowDelta
from dagster_tidegate.holds import EVERYTHING, HoldSource, Target, TargetKind
from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import (
    breakers,
    campaign_stats,
    gate_view,
    heartbeats,
    holds,
    ledger,
    loops,
    missed_ticks,
    run_details,
    run_problems,
    runs,
    service_stats,
    takeovers,
)
from dagster_tidegate.store.campaign_stats import OpProgress, RecordStats, UnfinishedRuns
from dagster_tidegate.store.database import Connection, Store
from dagster_tidegate.store.ledger import Entry, Progress
from dagster_tidegate.store.missed_ticks import MissedTick
from dagster_tidegate.store.runs import AttemptRow, CampaignRun
from dagster_tidegate.store.takeovers import Take, TakeoverKind
from tests.support.clock import Clock

DONE, FAILED, STARTED = RecordStatus.DONE, RecordStatus.FAILED, RecordStatus.STARTED


def begin(
    conn: Connection, clock: Clock, partition: str, dagster_run: str | None = None
) -> AttemptRow:
    run = runs.ensure(conn, clock(), "letters", partition)
    name = dagster_run or f"run-of-{partition}"
    return runs.begin_attempt(conn, clock(), run, name, owner_is_over=True)


def move(conn: Connection, clock: Clock, partition: str, to: RunStatus) -> CampaignRun:
    run = runs.find(conn, "letters", partition)
    assert run is not None
    assert runs.move(conn, clock(), run, to, reason=f"it is {to}", actor="test")
    moved = runs.find(conn, "letters", partition)
    assert moved is not None
    return moved


def hold(conn: Connection, clock: Clock, target: Target, **values) -> None:
    holds.place(
        conn, clock(), target, source=HoldSource.OPERATOR, reason="test", actor="ana", **values
    )


def test_the_statistics_of_a_campaign(store: Store, clock: Clock) -> None:
    start = clock()
    with store.begin() as conn:
        nothing = campaign_stats.read(conn, clock(), "letters")
        assert nothing.records == RecordStats(0, 0, 0)
        assert nothing.first_run_at is None
        assert set(nothing.runs.values()) == {0}
        one, two = begin(conn, clock, "a"), begin(conn, clock, "b")
        ledger.write_progress(conn, clock(), one, "send", Progress(6, 2, 10, 2.5, 8))
        ledger.write_progress(conn, clock(), two, "send", Progress(1, 0, 5, 1.5, 1))
        ledger.write_progress(conn, clock(), two, "log", Progress(7, 0, None, 4.0, 7))
        clock.advance(5)
        move(conn, clock, "b", RunStatus.PAUSED)
        stats = campaign_stats.read(conn, clock(), "letters")
        assert stats.runs[RunStatus.PAUSED] == stats.runs[RunStatus.PROCESSING] == 1
        assert stats.attempts == {"running": 1, "paused": 1}
        assert stats.records == RecordStats(14, 2, 15)
        assert stats.records_per_second == 2.5
        assert (stats.first_run_at, stats.last_change_at) == (start, clock())
        assert sorted(campaign_stats.unfinished(conn), key=lambda each: each.status) == [
            UnfinishedRuns("letters", RunStatus.PAUSED, 1, 4),
            UnfinishedRuns("letters", RunStatus.PROCESSING, 1, 2),
        ]
        assert campaign_stats.paused_since(conn) == {"letters": clock()}
        assert sorted(campaign_stats.op_progress(conn, clock()), key=lambda each: each.op) == [
            OpProgress("letters", "log", 7, 0, 0, 0.0),
            OpProgress("letters", "send", 7, 2, 15, 2.5),
        ]
        move(conn, clock, "b", RunStatus.PENDING)  # resumed, and in Dagster's queue
        assert OpProgress("letters", "log", 7, 0, 0, 0.0) in campaign_stats.op_progress(
            conn, clock()
        )
        clock.advance(ledger.RATE_LASTS.total_seconds())
        assert campaign_stats.read(conn, clock(), "letters").records_per_second == 0.0


def test_the_calls_to_services(store: Store, clock: Clock) -> None:
    first, later = clock(), clock() + timedelta(seconds=10)

    def delta(worker: str, bucket: datetime, **counted) -> WindowDelta:
        return WindowDelta("mail", 0, worker, bucket, bucket, **counted)

    with store.begin() as conn:
        breakers.ensure(conn, clock(), ["mail", "maps"])
        breakers.add(conn, [delta("a", first, ok=3, slow=1, last_ok_at=first)])
        breakers.add(conn, [delta("a", first, ok=2, failed=1, last_failed_at=first)])
        breakers.add(conn, [delta("b", later, failed=4, last_failed_at=later)])
        assert service_stats.calls_by_bucket(conn) == {
            ("mail", first): {"ok": 5, "slow": 1, "failed": 1},
            ("mail", later): {"ok": 0, "slow": 0, "failed": 4},
        }
        [stats] = service_stats.read(conn, clock()).values()
        assert (stats.ok, stats.slow, stats.failed, stats.workers) == (5, 1, 5, 2)
        assert (stats.since, stats.last_ok_at, stats.last_failed_at) == (first, first, later)
        assert service_stats.failures_since(conn, first) == {"mail": later}
        assert service_stats.failures_since(conn, later) == {}
        assert service_stats.trials(conn, clock()) == {}


def test_a_campaign_run_in_detail(store: Store, clock: Clock) -> None:
    with store.begin() as conn:
        former = begin(conn, clock, "a", "former")
        entries = [Entry("a", 0, DONE, "x"), Entry("b", 1, STARTED), Entry("c", 2, STARTED)]
        ledger.write(conn, clock(), former, "send", entries)
        current = begin(conn, clock, "a", "current")
        failed = [Entry(str(row), row, FAILED, error="403") for row in range(10, 13)]
        ledger.write(conn, clock.advance(1), current, "send", [*failed, Entry("d", 3, STARTED)])
        ledger.write_progress(conn, clock(), current, "send", Progress(1, 3, None, 0.5, 13, "12"))
        run = runs.get(conn, current.campaign_run)
        assert run is not None

        details = run_details.details(conn, clock(), run, limit=2)
        assert [record.key for record in details.in_doubt] == ["b", "c"]
        assert (details.in_doubt_count, details.in_hand_count, details.failed_count) == (2, 1, 3)
        assert [(r.op, r.key, r.attempt, r.error) for r in details.failed] == [
            ("send", "10", 2, "403"),
            ("send", "11", 2, "403"),
        ]
        [progress] = details.progress
        assert (progress.op, progress.updated_at, progress.rate) == ("send", clock(), 0.5)
        [listed] = run_details.with_progress(
            conn, clock(), runs.newest(conn, campaign="letters", limit=5)
        )
        assert (listed.run, listed.progress) == (run, details.progress)
        # A process whose lease has expired has nothing in flight.
        until = clock() + timedelta(seconds=5)
        assert loops.claim(conn, clock(), current, "send", "worker", until)
        clock.advance(6)
        details = run_details.details(conn, clock(), run, limit=9)
        assert (details.in_doubt_count, details.in_hand_count) == (3, 0)


def test_campaign_runs_that_need_a_person(store: Store, clock: Clock) -> None:
    start = clock()
    with store.begin() as conn:
        cut_off = begin(conn, clock, "cut off")
        ledger.write(conn, clock(), cut_off, "send", [Entry("a", 0, STARTED)])
        loops.claim(conn, clock(), cut_off, "send", "worker", clock() + timedelta(seconds=9))
        begin(conn, clock, "failed")
        move(conn, clock, "failed", RunStatus.PAUSED)
        begin(conn, clock, "failed", "again")
        move(conn, clock, "failed", RunStatus.FAILED)
        for partition in ("held", "waits"):
            begin(conn, clock, partition)
            move(conn, clock, partition, RunStatus.PAUSED)
        hold(conn, clock, Target(TargetKind.CAMPAIGN_RUN, "letters/held"))
        clock.advance(60)
        ended = run_problems.ended_attempts(conn, clock(), before=start)
        assert {each.name for each in ended} == {
            "letters/failed",
            "letters/held",
            "letters/waits",
        }
        ended = run_problems.ended_attempts(conn, clock(), before=clock())
        [lapsed] = [each for each in ended if each.campaign_run == cut_off.campaign_run]
        assert lapsed.ended_at == start + timedelta(seconds=9)
        assert run_problems.records_in_doubt(conn, cut_off.campaign_run) == 1
        assert run_problems.failed_after_pause(conn, clock()) == {"letters/failed": "it is failed"}
        waiting = run_problems.paused_without_hold(conn, clock(), before=clock())
        assert list(waiting) == ["letters"]
        assert (waiting["letters"].count, waiting["letters"].since) == (1, start)
        assert run_problems.paused_without_hold(conn, clock(), before=start) == {}


def test_ended_holds_include_those_whose_expiry_was_not_recorded(
    store: Store, clock: Clock
) -> None:
    start = clock()
    with store.begin() as conn:
        hold(conn, clock, EVERYTHING, expires_at=clock() + timedelta(seconds=5))
        hold(conn, clock, Target(TargetKind.SERVICE, "mail"))
        clock.advance(10)
        holds.release(
            conn,
            clock(),
            Target(TargetKind.SERVICE, "mail"),
            source=HoldSource.OPERATOR,
            actor="bo",
        )
        ended = holds.ended_since(conn, clock(), start)
        assert [(each.released_at, each.released_by) for each in ended] == [
            (start + timedelta(seconds=5), "expiry"),
            (clock(), "bo"),
        ]
        assert len(holds.ended_since(conn, clock(), clock())) == 1


@pytest.mark.parametrize("filled", [False, True])
def test_the_gate_reads_in_one_statement_what_the_modules_read(
    store: Store, clock: Clock, filled: bool
) -> None:
    if filled:
        fill(store, clock)
    with store.read() as conn:
        now = store.now(conn)
        view = gate_view.read(store, conn, "here", resuming=True)
        tightening = gate_view.read(store, conn, "here", resuming=False)
        beats = {(beat.location, beat.part): beat.cursor for beat in heartbeats.read(conn)}
        assert view.now == now
        assert view.holds == tightening.holds == list(holds.live(conn, now))
        assert view.takeovers == tightening.takeovers == takeovers.live(conn)
        assert view.newest_takeover == takeovers.newest_id(conn) == (2 if filled else 0)
        assert view.breakers == tightening.breakers == breakers.read(conn)
        assert view.cursor == tightening.cursor == beats.get(("here", heartbeats.PAUSE))
        assert view.paused == runs.with_status(conn, RunStatus.PAUSED)
        assert view.active == ({"letters": 1} if filled else {})
        waiting = len(runs.with_status(conn, RunStatus.PAUSED, RunStatus.PENDING))
        assert view.waiting == ({"letters": waiting} if filled else {})
        assert view.missed == missed_ticks.waiting(conn)
        assert (len(tightening.paused), len(tightening.active), len(tightening.missed)) == (0,) * 3
        if filled:
            assert [run.partition for run in view.paused] == ["urgent", "first", "second"]
            assert len(view.holds) == 2
            assert len(view.missed) == 2


def fill(store: Store, clock: Clock) -> None:
    with store.begin() as conn:
        breakers.ensure(conn, clock(), ["mail", "maps"])
        hold(conn, clock, EVERYTHING, expires_at=clock() + timedelta(seconds=1))
        for name in ("maps", "mail"):
            hold(conn, clock, Target(TargetKind.SERVICE, name))
        takes = [
            Take(TakeoverKind.POOL, name, name, None, "here", former="unset", set_to="0")
            for name in ("mail", "maps")
        ]
        [given_back, _] = takeovers.take(conn, clock(), takes, newest=0)
        assert takeovers.end(conn, clock(), given_back, takeovers.TakeoverOutcome.RESTORED)
        for location in ("here", "there"):
            for part in heartbeats.PARTS:
                cursor = clock() if part == heartbeats.PAUSE else None
                heartbeats.beat(
                    conn, clock(), location=location, part=part, summary="ok", cursor=cursor
                )
            clock.advance(1)
        runs.create(conn, clock(), "letters", "urgent", priority=9, actor="ana")
        for partition in ("first", "second", "urgent"):
            begin(conn, clock, partition)
            clock.advance(1)
            move(conn, clock, partition, RunStatus.PAUSED)
        begin(conn, clock, "working")
        runs.ensure(conn, clock(), "letters", "queued")
        ticks = [MissedTick("letters", "hourly", clock() - timedelta(hours=n)) for n in range(2)]
        missed_ticks.record(conn, clock(), ticks)


@pytest.mark.database_time
def test_the_gate_reads_the_clock_of_the_database(store: Store) -> None:
    with store.read() as conn:
        before = store.now(conn)
        view = gate_view.read(store, conn, "here", resuming=True)
        assert before <= view.now <= store.now(conn)
