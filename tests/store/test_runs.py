"""Campaign runs and attempts: allowed moves, who owns one, and the fence around the ledger."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from dagster_tidegate.statuses import RUN_MOVES, RecordStatus, RunStatus
from dagster_tidegate.store import ledger, runs
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.ledger import AttemptOverError, Entry
from dagster_tidegate.store.runs import (
    AttemptPausedError,
    AttemptRefusedError,
    AttemptRow,
    CampaignRun,
)
from tests.support.record_statuses import record_statuses


def begin(
    store: Store, dagster_run: str, *, owner_is_over: bool = False
) -> tuple[CampaignRun, AttemptRow]:
    with store.begin() as conn:
        now = store.now(conn)
        run = runs.ensure(conn, now, "outreach", "leads-1")
        attempt = runs.begin_attempt(conn, now, run, dagster_run, owner_is_over=owner_is_over)
    return current(store), attempt


def current(store: Store) -> CampaignRun:
    with store.read() as conn:
        run = runs.find(conn, "outreach", "leads-1")
    assert run is not None
    return run


def move(store: Store, run: CampaignRun, to: RunStatus) -> bool:
    with store.begin() as conn:
        return runs.move(conn, store.now(conn), run, to, reason="test", actor="ana")


def write(store: Store, attempt: AttemptRow, *entries: Entry) -> None:
    with store.begin() as conn:
        ledger.write(conn, store.now(conn), attempt, "send", entries)


def test_a_campaign_run_is_made_once(store: Store) -> None:
    with store.begin() as conn:
        first = runs.ensure(conn, store.now(conn), "outreach", "leads-1")
        second = runs.ensure(conn, store.now(conn), "outreach", "leads-1", priority=9)
    assert first == second
    assert first.status is RunStatus.PENDING


@pytest.mark.parametrize("start", RunStatus)
@pytest.mark.parametrize("to", RunStatus)
def test_only_moves_in_the_table_are_made(store: Store, start: RunStatus, to: RunStatus) -> None:
    routes = {
        RunStatus.PENDING: [],
        RunStatus.PROCESSING: [RunStatus.PROCESSING],
        RunStatus.PAUSED: [RunStatus.PROCESSING, RunStatus.PAUSED],
        RunStatus.COMPLETED: [RunStatus.PROCESSING, RunStatus.COMPLETED],
        RunStatus.FAILED: [RunStatus.PROCESSING, RunStatus.FAILED],
        RunStatus.CANCELLED: [RunStatus.CANCELLED],
    }
    with store.begin() as conn:
        runs.ensure(conn, store.now(conn), "outreach", "leads-1")
    for step in routes[start]:
        assert move(store, current(store), step)
    if to in RUN_MOVES[start]:
        assert move(store, current(store), to)
        assert current(store).status is to
    else:
        with pytest.raises(runs.MoveNotAllowedError, match=f"is {start}: it can't become {to}"):
            move(store, current(store), to)
        assert current(store).status is start


def test_of_two_who_move_the_same_run_one_wins(store: Store) -> None:
    seen, _ = begin(store, "run-1")
    assert move(store, seen, RunStatus.PAUSED)
    assert not move(store, seen, RunStatus.COMPLETED)
    assert current(store).status is RunStatus.PAUSED


def test_the_ops_of_one_dagster_run_share_an_attempt(store: Store) -> None:
    _, first = begin(store, "run-1")
    _, second = begin(store, "run-1")
    assert first.number == second.number == 1


def test_a_second_run_is_refused_while_the_first_has_not_ended(store: Store) -> None:
    begin(store, "run-1")
    with pytest.raises(AttemptRefusedError, match=r"owned by attempt 1, Dagster run run-1"):
        begin(store, "run-2")


def test_a_second_run_takes_over_when_the_first_ended_in_dagster(store: Store) -> None:
    begin(store, "run-1")
    _, second = begin(store, "run-2", owner_is_over=True)
    assert second.number == 2


def test_a_campaign_run_is_created_once(store: Store) -> None:
    for _ in range(2):
        with store.begin() as conn:
            runs.ensure(conn, store.now(conn), "outreach", "leads-1")
    with store.read() as conn:
        assert conn.scalar(sa.select(sa.func.count()).select_from(t.events)) == 1


def test_a_run_that_paused_can_not_work_on(store: Store) -> None:
    run, _ = begin(store, "run-1")
    move(store, run, RunStatus.PAUSED)
    with pytest.raises(AttemptPausedError, match="attempt 1 ended as paused"):
        begin(store, "run-1")


def test_a_paused_run_that_still_works_in_dagster_is_not_taken_over(store: Store) -> None:
    run, _ = begin(store, "run-1")
    move(store, run, RunStatus.PAUSED)
    with pytest.raises(AttemptRefusedError, match="which has not ended"):
        begin(store, "run-2")


def test_two_ops_of_a_run_that_begin_at_the_same_moment_share_an_attempt(store: Store) -> None:
    with store.begin() as conn:
        runs.ensure(conn, store.now(conn), "outreach", "leads-1")
    with ThreadPoolExecutor(4) as ops:
        numbers = list(ops.map(lambda _: begin(store, "run-1")[1].number, range(8)))
    assert numbers == [1] * 8


def test_failed_records_of_the_work_that_is_resumed_count_and_older_ones_do_not(
    store: Store,
) -> None:
    run, first = begin(store, "run-1")
    write(store, first, Entry("old", 0, RecordStatus.FAILED))
    move(store, run, RunStatus.FAILED)
    run, second = begin(store, "run-2", owner_is_over=True)
    write(store, second, Entry("new", 1, RecordStatus.FAILED))
    move(store, run, RunStatus.PAUSED)
    run, _ = begin(store, "run-3", owner_is_over=True)
    with store.read() as conn:
        since = runs.began_with(runs.attempts(conn, run.id))
        counts = ledger.counts(conn, run, "send", failed_since=since)
    assert since == 2
    assert counts == {RecordStatus.FAILED: 1}


def test_an_earlier_run_can_not_come_back(store: Store) -> None:
    begin(store, "run-1")
    begin(store, "run-2", owner_is_over=True)
    with pytest.raises(AttemptRefusedError, match="has taken over from run-1"):
        begin(store, "run-1", owner_is_over=True)


def test_late_writes_of_an_older_attempt_are_refused_and_write_nothing(store: Store) -> None:
    run, first = begin(store, "run-1")
    begin(store, "run-2", owner_is_over=True)
    with pytest.raises(AttemptOverError, match="attempt 2 owns the campaign run"):
        write(store, first, Entry("a@example.org", 0, RecordStatus.DONE, {"sent": True}))
    with store.read() as conn:
        assert record_statuses(conn, run.id, "send") == {}


def test_results_of_every_attempt_are_kept(store: Store) -> None:
    run, first = begin(store, "run-1")
    write(store, first, Entry("a", 0, RecordStatus.DONE, {"n": 1}))
    move(store, run, RunStatus.PAUSED)
    _, second = begin(store, "run-2", owner_is_over=True)
    write(
        store,
        second,
        Entry("b", 1, RecordStatus.DONE, {"n": 2}),
        Entry("c", 2, RecordStatus.FAILED),
    )
    with store.read() as conn:
        assert ledger.results(conn, run, "send") == [{"n": 1}, {"n": 2}]


def test_a_clean_stop_leaves_no_record_in_doubt(store: Store) -> None:
    run, attempt = begin(store, "run-1")
    write(store, attempt, Entry("a", 0, RecordStatus.DONE), Entry("b", 1, RecordStatus.STARTED))
    with store.begin() as conn:
        ledger.abandon(conn, attempt, "send", ["a", "b"])
    with store.read() as conn:
        assert record_statuses(conn, run.id, "send") == {"a": RecordStatus.DONE}


def test_paused_runs_resume_by_priority_and_then_in_the_order_of_their_pause(
    store: Store, clock
) -> None:
    for partition, priority in (("late", 0), ("early", 0), ("urgent", 5)):
        with store.begin() as conn:
            runs.ensure(conn, store.now(conn), "outreach", partition, priority=priority)
    for partition in ("early", "late", "urgent"):
        clock.advance(1)
        with store.begin() as conn:
            run = runs.find(conn, "outreach", partition)
            assert run is not None
            runs.move(conn, store.now(conn), run, RunStatus.PAUSED, actor="ana")
    with store.read() as conn:
        found = runs.with_status(conn, RunStatus.PAUSED)
    assert [run.partition for run in found] == ["urgent", "early", "late"]
