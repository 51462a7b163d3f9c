"""Records of a campaign run for people: listed, summed up, marked and skipped."""

from collections.abc import Sequence

import pytest

from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import ledger, records, runs
from dagster_tidegate.store.database import Connection, Store
from dagster_tidegate.store.ledger import Entry, Progress
from dagster_tidegate.store.records import RecordState, Selection
from dagster_tidegate.store.runs import CampaignRun
from tests.support.clock import Clock
from tests.support.record_statuses import record_statuses

DONE, FAILED, WAITING = RecordStatus.DONE, RecordStatus.FAILED, RecordStatus.WAITING
STARTED, SKIPPED = RecordStatus.STARTED, RecordStatus.SKIPPED
ENTRIES = [
    Entry("a", 0, DONE, {"sent": True}, tries=1),
    Entry("b", 1, FAILED, error="HTTPError('422 invalid id 17')", tries=1),
    Entry("c", 2, FAILED, error="HTTPError('422 invalid id 18')", tries=1),
    Entry("d", 3, FAILED, error="500 for this record, 9 others succeeded: Timeout()", tries=10,
          suspect=True),
    Entry("e", 4, WAITING, error="Timeout()", tries=3),
    Entry("f", 5, STARTED, tries=1),
]  # fmt: skip


def prepared(conn: Connection, clock: Clock, entries: Sequence[Entry] = ENTRIES) -> CampaignRun:
    """A campaign run that has failed, with these records."""
    run = runs.ensure(conn, clock(), "outreach", "leads-1")
    attempt = runs.begin_attempt(conn, clock(), run, "first", owner_is_over=True)
    ledger.write(conn, clock(), attempt, "send", entries)
    progress = Progress(done=1, failed=3, total=6, position=6, position_key="f", exact=True)
    ledger.write_progress(conn, clock(), attempt, "send", progress)
    run = runs.ensure(conn, clock(), "outreach", "leads-1")
    runs.move(conn, clock(), run, RunStatus.FAILED, actor="test")
    return runs.ensure(conn, clock(), "outreach", "leads-1")


def test_records_are_listed_by_key_a_page_at_a_time(store: Store, clock: Clock) -> None:
    with store.begin() as conn:
        run = prepared(conn, clock)
        first = records.read(conn, clock(), run, Selection(), limit=4)
        last = first[-1]
        rest = records.read(conn, clock(), run, Selection(), after=(last.op, last.key), limit=4)
    assert [(each.key, each.state.value, each.tries) for each in [*first, *rest]] == [
        ("a", "done", 1),
        ("b", "failed", 1),
        ("c", "failed", 1),
        ("d", "suspect", 10),
        ("e", "waiting", 3),
        ("f", "in_doubt", 1),
    ]


@pytest.mark.parametrize(
    ("selection", "keys"),
    [
        (Selection([RecordState.FAILED]), "bcd"),
        (Selection([RecordState.SUSPECT, RecordState.IN_DOUBT]), "df"),
        (Selection([RecordState.IN_FLIGHT]), ""),
        (Selection(error="INVALID ID"), "bc"),
        (Selection(error="%"), ""),
        (Selection([RecordState.FAILED], keys=["a", "b"]), "b"),
    ],
)
def test_records_are_selected(store: Store, clock: Clock, selection: Selection, keys: str) -> None:
    with store.begin() as conn:
        run = prepared(conn, clock)
        found = records.read(conn, clock(), run, selection, limit=100)
        later = clock.advance(1)
        since = Selection(selection.states, selection.error, selection.keys, later)
        assert records.read(conn, clock(), run, since, limit=100) == []
    assert [each.key for each in found] == list(keys)


def test_a_record_that_somebody_works_on_is_in_flight(store: Store, clock: Clock) -> None:
    with store.begin() as conn:
        run = runs.ensure(conn, clock(), "outreach", "leads-1")
        attempt = runs.begin_attempt(conn, clock(), run, "first", owner_is_over=True)
        ledger.write(conn, clock(), attempt, "send", [Entry("a", 0, STARTED)])
        [record] = records.read(conn, clock(), run, Selection(), limit=9)
        assert record.state is RecordState.IN_FLIGHT
        assert records.summary(conn, clock(), run, Selection())[0].state is RecordState.IN_FLIGHT


def test_a_summary_groups_what_says_the_same(store: Store, clock: Clock) -> None:
    with store.begin() as conn:
        run = prepared(conn, clock)
        groups = records.summary(conn, clock(), run, Selection())
    assert [(group.state.value, group.count, group.key) for group in groups] == [
        ("failed", 2, "b"),
        ("suspect", 1, "d"),
        ("in_doubt", 1, None),
        ("waiting", 1, "e"),
        ("done", 1, None),
    ]


def test_marked_records_are_done_again_and_unmarked_ones_are_as_before(
    store: Store, clock: Clock
) -> None:
    chosen = Selection([RecordState.FAILED, RecordState.DONE, RecordState.SKIPPED])
    with store.begin() as conn:
        run = prepared(conn, clock)
        records.skip(conn, clock(), run, Selection(keys=["c"]), "not needed")
        before = record_statuses(conn, run.id, "send")
        failed_before = ledger.look_up(conn, run, "send", ["d"])
        clock.advance(5)
        former = records.to_restore(conn, clock(), run, chosen)
        assert records.mark(conn, clock(), run, chosen) == {"send": 4}
        statuses = record_statuses(conn, run.id, "send")
        assert {key for key, status in statuses.items() if status is WAITING} == set("abcde")
        found = ledger.look_up(conn, run, "send", ["d"])["d"]
        assert (found.tries, found.retry_at) == (0, None)
        progress = ledger.progress(conn, run.id, "send")
        assert progress is not None
        assert (progress.done, progress.failed, progress.position, progress.exact) == (
            0,
            0,
            0,
            False,
        )
        records.unmark(conn, clock(), run, former)
        assert record_statuses(conn, run.id, "send") == before
        assert before["c"] is SKIPPED
        assert ledger.look_up(conn, run, "send", ["d"]) == failed_before
        progress = ledger.progress(conn, run.id, "send")
        assert progress is not None
        assert (progress.done, progress.failed) == (1, 2)


def test_skipped_records_are_not_failed_any_more(store: Store, clock: Clock) -> None:
    with store.begin() as conn:
        run = prepared(conn, clock)
        keys = Selection(keys=["a", "b", "f"])
        assert records.skip(conn, clock(), run, keys, "not needed") == {"send": 2}
        statuses = record_statuses(conn, run.id, "send")
        assert (statuses["a"], statuses["b"], statuses["f"]) == (DONE, SKIPPED, SKIPPED)
        found = records.read(conn, clock(), run, Selection([RecordState.SKIPPED]), limit=9)
        assert [each.error for each in found] == [
            "HTTPError('422 invalid id 17')", "skipped: not needed"
        ]  # fmt: skip
        progress = ledger.progress(conn, run.id, "send")
        assert progress is not None
        assert progress.failed == 2
