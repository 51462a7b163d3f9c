"""The record loop by itself, on real databases: how it reads, writes, stops and goes on."""

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any

import pandas as pd
import pytest

from dagster_tidegate.records import chunks, lease
from dagster_tidegate.records.journal import Group
from dagster_tidegate.records.record import Record
from dagster_tidegate.records.worklist import (
    InputChangedError,
    Mark,
    MissingKeyError,
    Worklist,
)
from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import ledger, loops, runs
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.ledger import AttemptOverError
from tests.integration.record_loop import Stopped, Work, go_through
from tests.support.databases import both_databases

# --- the input ------------------------------------------------------------------------------------


def test_chunks_of_a_frame_are_rows(work: Work) -> None:
    frames = iter(
        [pd.DataFrame({"mail": ["a", "b"], "n": [1, None]}), pd.DataFrame({"mail": ["c"]})]
    )
    records = work.records(frames, key="mail")
    seen: list[dict] = []
    go_through(records, lambda record: seen.append(record.value))
    assert seen == [{"mail": "a", "n": 1}, {"mail": "b", "n": None}, {"mail": "c"}]


def test_an_input_of_several_chunks_is_gone_through_once_and_in_order(work: Work) -> None:
    count = chunks.MAX_CHUNK * 2 + 10
    keys = [str(n) for n in range(count)]
    seen = go_through(work.records((key for key in keys), group=Group(records=400)))
    assert seen == keys
    assert go_through(work.records(keys)) == []
    assert work.progress().done == count


def test_an_asynchronous_input_is_gone_through_in_an_asynchronous_loop(work: Work) -> None:
    async def items() -> AsyncIterator[str]:
        for key in "abc":
            await asyncio.sleep(0)
            yield key

    async def op() -> list[Any]:
        records = work.records(items())
        async for record in records:
            with record:
                await asyncio.sleep(0)
                record.result = record.key.upper()
        return records.results()

    assert asyncio.run(op()) == ["A", "B", "C"]


def test_an_asynchronous_input_in_a_for_loop_is_refused(work: Work) -> None:
    async def items() -> AsyncIterator[str]:
        yield "a"

    with pytest.raises(TypeError, match="async for"):
        go_through(work.records(items()))


def test_repeated_keys_are_told_and_counted(work: Work, caplog: pytest.LogCaptureFixture) -> None:
    assert go_through(work.records(["a", "b", "a", *["b"] * 20])) == ["a", "b"]
    assert "Skipped row 2: duplicate key a" in caplog.text
    assert "Skipped 21 rows with a duplicate key" in caplog.text
    assert len(caplog.records) < 15


@both_databases
@pytest.mark.parametrize(
    ("item", "key"),
    [
        ({}, lambda item: item["id"]),
        ({"id": pd.NA}, "id"),
        ({"id": object()}, "id"),
        ({"id": "x" * 513}, "id"),
        ({"id": "a\0b"}, "id"),
        ({"id": "\ud800"}, "id"),
        ({"id": 10**5000}, "id"),
        ({"id": Decimal("sNaN")}, "id"),
        ({"id": None}, lambda item: item["id"] + 0),
        ({"id": "seven"}, lambda item: int(item["id"])),
    ],
)
def test_a_key_that_can_not_be_kept_names_its_row(work: Work, item: dict, key: Any) -> None:
    with pytest.raises(MissingKeyError, match="row 1 has"):
        go_through(work.records([{"id": 7}, item], key=key))


def test_a_list_of_frames_is_gone_through_row_by_row(work: Work) -> None:
    records = work.records([pd.DataFrame({"n": [1, 2]}), pd.DataFrame({"n": [3]})], key="n")
    assert records.total is None
    assert go_through(records) == ["1", "2", "3"]


@both_databases
def test_records_are_gone_through_by_one_loop_at_a_time(work: Work) -> None:
    records = work.records(list("abc"))
    first = iter(records)
    with next(first):
        pass
    with pytest.raises(RuntimeError, match="still running"):
        next(iter(records))


def test_an_iterator_that_was_gone_through_is_not_taken_for_an_empty_input(work: Work) -> None:
    records = work.records(iter("abc"))
    go_through(records)
    with pytest.raises(RuntimeError, match="already consumed"):
        go_through(records)


@both_databases
def test_a_record_is_entered_once(work: Work) -> None:
    for record in work.records(["a"]):
        with record:
            pass
        with pytest.raises(RuntimeError, match="record a is finished"), record:
            pass
    assert work.progress().done == 1


def test_a_loop_that_is_left_early_leaves_nothing_in_doubt(work: Work) -> None:
    for record in work.records(list("abc")):
        if record.key == "b":
            break
        with record:
            pass
    assert work.statuses() == {"a": RecordStatus.DONE}


def test_a_slow_input_keeps_nothing_of_what_is_behind(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "MAX_READ_S", 0.0)
    monkeypatch.setattr("dagster_tidegate.records.journal.PROGRESS_INTERVAL_S", 0.0)
    kept = []
    mark = Worklist.mark

    def count(self: Worklist) -> Mark:
        marked = mark(self)
        kept.append(len(self._marks))
        return marked

    monkeypatch.setattr(Worklist, "mark", count)
    go_through(work.records(str(n) for n in range(30)))
    assert len(kept) >= 30
    assert max(kept) < 3


# --- several at once ------------------------------------------------------------------------------


@both_databases
def test_map_works_on_so_many_at_once_and_returns_the_results_in_order(work: Work) -> None:
    together = threading.Barrier(4)

    def handle(record: Record) -> str:
        together.wait(timeout=20)  # breaks unless four are here at once
        return record.key * 2

    records = work.records(list("abcdefgh"))
    assert records.map(handle, concurrency=4) == ["aa", "bb", "cc", "dd", "ee", "ff", "gg", "hh"]
    assert (records.done, records.failed) == (8, 0)


def test_map_never_works_on_more(work: Work) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def handle(_: Record) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.005)
        with lock:
            now -= 1

    work.records([str(n) for n in range(40)]).map(handle, concurrency=3)
    assert most <= 3


def test_map_works_on_fewer_while_the_service_is_slow(work: Work) -> None:
    lock, now = threading.Lock(), 0
    eight = threading.Barrier(8, timeout=20)
    at_once: dict[int, int] = {}

    def handle(record: Record) -> None:
        nonlocal now
        number = int(record.key)
        with lock:
            now += 1
            at_once[number] = now
        if 24 <= number < 32:
            eight.wait()
        time.sleep(0.01 if number < 40 else 0.7)
        with lock:
            now -= 1

    records = work.records([str(n) for n in range(60)])
    records.map(handle, concurrency=8)
    assert not eight.broken, "as many as asked for, while it is quick"
    assert max(at_once[number] for number in range(56, 60)) <= 4
    assert records.done == 60, "it goes on"


def test_map_of_an_async_handler_runs_on_one_event_loop(work: Work) -> None:
    here = 0
    all_here = asyncio.Event()

    async def handle(record: Record) -> str:
        nonlocal here
        here += 1
        if here == 3:
            all_here.set()
        await asyncio.wait_for(all_here.wait(), 20)
        return record.key.upper()

    assert work.records(list("abc")).map(handle, concurrency=3) == ["A", "B", "C"]


def test_a_record_that_fails_in_map_is_written_down_and_the_others_go_on(work: Work) -> None:
    def handle(record: Record) -> str:
        if record.key == "b":
            raise ValueError("no such lead")
        return record.key

    assert work.records(list("abcd")).map(handle, concurrency=2) == ["a", "c", "d"]
    assert work.statuses()["b"] is RecordStatus.FAILED


def test_a_record_that_the_service_fails_in_map_is_tried_again_with_the_same_key(
    work: Work,
) -> None:
    keys: list[str] = []

    def handle(record: Record) -> None:
        keys.append(record.idempotency_key)
        if record.tries == 1:
            raise ConnectionError("reset by peer")

    records = work.records(["a"])
    records.map(handle, concurrency=2)
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert records.done == 1


def test_a_hold_lets_what_is_in_flight_in_map_finish_and_begins_no_other(work: Work) -> None:
    held = threading.Event()

    def handle(record: Record) -> str:
        if record.key == "b":
            work.hold()
            held.set()
        assert held.wait(20)
        return record.key

    with pytest.raises(Stopped) as stopped:
        work.records(list("abcdefgh")).map(handle, concurrency=2)
    done = work.statuses()
    assert done == {"a": RecordStatus.DONE, "b": RecordStatus.DONE}
    assert stopped.value.reason.done == 2
    work.release()
    work.begin()
    assert work.records(list("abcdefgh")).map(lambda r: r.key) == list("abcdefgh")


def test_what_outlives_the_drain_timeout_stays_in_doubt(work: Work) -> None:
    forever = threading.Event()

    def handle(record: Record) -> None:
        if record.key == "b":
            work.hold()
            forever.wait(20)

    work.drain_timeout_s = 0.3
    with pytest.raises(Stopped):
        work.records(list("ab")).map(handle, concurrency=2)
    forever.set()
    assert work.statuses()["b"] is RecordStatus.STARTED
    work.release()
    work.begin()
    doubts = {}
    go_through(work.records(list("ab")), lambda r: doubts.update({r.key: r.in_doubt}))
    assert doubts == {"b": True}


def test_a_result_that_json_can_not_hold_ends_map_and_the_others_are_written(work: Work) -> None:
    together = threading.Barrier(2)

    def handle(record: Record) -> Any:
        together.wait(timeout=20)
        return object() if record.key == "a" else record.key

    with pytest.raises(TypeError, match="record a can't be kept"):
        work.records(list("ab")).map(handle, concurrency=2)
    assert work.statuses() == {"a": RecordStatus.STARTED, "b": RecordStatus.DONE}


def test_a_result_that_is_nested_too_deeply_names_its_record(work: Work) -> None:
    result: list[Any] = []
    for _ in range(100_000):
        result = [result]
    with pytest.raises(TypeError, match="record a can't be kept"):
        go_through(work.records(["a"]), lambda _: result)
    work.end(RunStatus.FAILED)
    work.begin()
    go_through(work.records(["a"], max_failed=1), lambda r: r.once("step", lambda: result))
    assert work.statuses() == {"a": RecordStatus.FAILED}


def test_map_begins_with_what_a_slow_input_has_given(work: Work) -> None:
    begun = threading.Event()

    def slow() -> Iterator[str]:
        yield "a"
        assert begun.wait(20)  # would never come if map read ahead
        yield "b"

    records = work.records(slow())
    assert records.map(lambda record: begun.set() or record.key, concurrency=2) == ["a", "b"]


def test_an_error_that_ends_map_does_not_wait_for_nobody(work: Work) -> None:
    def handle(_: Record) -> None:
        raise KeyboardInterrupt

    work.drain_timeout_s = 120.0
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        work.records(list("ab")).map(handle, concurrency=1)
    assert time.monotonic() - began < 60


def test_a_with_block_in_the_handler_of_map_is_refused(work: Work) -> None:
    def handle(record: Record) -> None:
        with record:
            pass

    records = work.records(["a"], max_failed=1.0, max_tries=1)
    records.map(handle)
    assert records.failed == 1


# --- groups ---------------------------------------------------------------------------------------


@both_databases
def test_a_group_is_written_when_it_is_full_and_the_rest_at_the_end(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a slow machine a progress report, which writes the group too, would come in between.
    monkeypatch.setattr("dagster_tidegate.records.journal.PROGRESS_INTERVAL_S", 3600.0)
    in_ledger = []
    go_through(
        work.records(list("abcde"), group=Group(records=2, seconds=60)),
        lambda _: in_ledger.append(len(work.statuses())),
    )
    assert in_ledger == [0, 0, 2, 2, 4]
    assert len(work.statuses()) == 5


def test_a_group_that_is_old_is_written(work: Work) -> None:
    records = iter(work.records(list("abc"), group=Group(records=100, seconds=0.01)))
    for in_ledger in (0, 0, 2):
        with next(records):
            assert len(work.statuses()) == in_ledger
            time.sleep(0.02)  # older than a group may become, from the second record on


def test_a_pause_writes_what_a_group_has(work: Work) -> None:
    with pytest.raises(Stopped):
        go_through(work.records(list("abcd"), group=Group(records=100)), lambda _: work.hold())
    assert work.statuses() == {"a": RecordStatus.DONE}


def test_a_group_ends_with_its_campaign_run(work: Work) -> None:
    with pytest.raises(Stopped):
        go_through(
            work.records(list("abcdef"), group=Group(records=2)),
            lambda r: work.end(RunStatus.CANCELLED) if r.key == "c" else None,
        )
    assert len(work.statuses()) == 4


@pytest.mark.parametrize("values", [{"records": 0}, {"seconds": 0}])
def test_a_group_that_is_never_written_is_refused(values: dict) -> None:
    with pytest.raises(ValueError, match="at least 1 record"):
        Group(**values)


# --- going on -------------------------------------------------------------------------------------


class Watched(list):
    """A list that knows which rows were read."""

    def __init__(self, values: Any) -> None:
        super().__init__(values)
        self.read: list[int] = []

    def __getitem__(self, index: Any) -> Any:
        self.read.append(index)
        return super().__getitem__(index)


def pause_after(work: Work, items: Any, key: str, **options: Any) -> None:
    with pytest.raises(Stopped):
        go_through(work.records(items, **options), lambda r: work.hold() if r.key == key else None)
    work.release()
    work.begin()


def test_an_input_that_only_grows_is_not_read_again(work: Work) -> None:
    items = Watched(str(n) for n in range(chunks.MAX_CHUNK * 3))
    pause_after(work, items, str(chunks.MAX_CHUNK * 2), append_only=True)
    items.read.clear()
    items.append("new")
    assert len(go_through(work.records(items, append_only=True))) == chunks.MAX_CHUNK
    assert min(items.read) == chunks.MAX_CHUNK * 2 - 1
    assert work.progress().done == len(items)


def test_an_iterator_that_only_grows_goes_on_where_it_stopped(work: Work) -> None:
    items = [str(n) for n in range(1200)]
    pause_after(work, iter(items), "1000", append_only=True)
    assert go_through(work.records(iter(items), append_only=True)) == items[1001:]


def test_nothing_is_lost_of_a_chunk_that_could_not_be_read_to_its_end(work: Work) -> None:
    items = ["a", "b", "", "d"]
    with pytest.raises(MissingKeyError, match="row 2"):
        go_through(work.records(items, append_only=True))
    work.end(RunStatus.FAILED)
    work.begin()
    assert go_through(work.records(list("abcd"), append_only=True)) == list("abcd")


def test_a_cancelled_run_goes_on_where_it_stopped(work: Work) -> None:
    items = Watched(str(n) for n in range(chunks.MAX_CHUNK * 2))
    with pytest.raises(Stopped):
        go_through(
            work.records(items, append_only=True),
            lambda r: os.kill(os.getpid(), signal.SIGTERM) if r.key == "600" else None,
        )
    work.begin()
    items.read.clear()
    assert len(go_through(work.records(items, append_only=True))) == len(items) - 601
    assert min(items.read) == chunks.MAX_CHUNK - 1


@pytest.mark.parametrize("now", ["shifted", "shorter"])
def test_an_input_that_did_not_only_grow_is_found_out(work: Work, now: str) -> None:
    items = [str(n) for n in range(1200)]
    pause_after(work, items, "1000", append_only=True)
    changed = ["before", *items] if now == "shifted" else items[:100]
    with pytest.raises(InputChangedError, match="append_only"):
        go_through(work.records(changed, append_only=True))


def test_records_that_failed_are_tried_again_by_a_re_execution_that_only_grew(work: Work) -> None:
    def handle(record: Record) -> None:
        if record.key == "1":
            raise ValueError("no such lead")

    items = [str(n) for n in range(20)]
    go_through(work.records(items, append_only=True), handle)
    work.end(RunStatus.FAILED)
    work.begin()
    assert go_through(work.records(items, append_only=True)) == ["1"]
    assert (work.progress().done, work.progress().failed) == (20, 0)


@both_databases
def test_counts_are_right_after_an_attempt_that_died(work: Work) -> None:
    loop = iter(work.records(list("abcd"), group=Group(records=1)))
    for _ in range(2):
        with next(loop):
            pass
    next(loop)  # and here its process dies: nothing more is written
    work.end(RunStatus.FAILED)
    work.begin()
    records = work.records(list("abcd"))
    assert records.done == 2
    del loop


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_leaving_a_loop_whose_attempt_is_over_is_logged_and_raises_nothing(
    work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    for record in work.records(list("abc")):
        with record:
            record.result = record.key
        work.begin()
        break
    gc.collect()
    assert "The record loop was left" in caplog.text
    assert "attempt 2 owns the campaign run" in caplog.text


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_leaving_an_asynchronous_loop_whose_attempt_is_over_is_logged_and_raises_nothing(
    work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    async def op() -> None:
        async for record in work.records(list("abc")):
            with record:
                record.result = record.key
            work.begin()
            break

    asyncio.run(op())
    assert "The record loop was left" in caplog.text
    assert "an error occurred during closing" not in caplog.text


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_record_in_flight(work: Work, number: int) -> None:
    former = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        go_through(work.records(list("abc")), lambda _: os.kill(os.getpid(), number))
    assert stopped.value.reason.signal == number
    assert work.statuses() == {"a": RecordStatus.DONE}
    assert signal.getsignal(number) == former
    work.begin()
    assert go_through(work.records(list("abc"))) == ["b", "c"]


def test_a_signal_in_map_lets_what_is_in_flight_finish(work: Work) -> None:
    def handle(record: Record) -> None:
        if record.key == "b":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)

    with pytest.raises(Stopped):
        work.records(list("abcdef")).map(handle, concurrency=2)
    assert set(work.statuses().values()) == {RecordStatus.DONE}
    assert len(work.statuses()) < 6


def test_a_record_that_takes_too_long_is_cut_off_and_in_doubt(work: Work) -> None:
    def handle(_: Record) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
        pytest.fail("it was not cut off")

    work.drain_timeout_s = 0.2
    with pytest.raises(Stopped) as stopped:
        go_through(work.records(list("ab")), handle)
    assert stopped.value.reason.signal == signal.SIGINT
    assert work.statuses() == {"a": RecordStatus.STARTED}
    doubts: list[bool] = []
    work.begin()
    go_through(work.records(list("ab")), lambda record: doubts.append(record.in_doubt))
    assert doubts == [True, False]


def test_a_signal_at_the_last_record_stops_the_op(work: Work) -> None:
    with pytest.raises(Stopped) as stopped:
        go_through(work.records(["a"]), lambda _: os.kill(os.getpid(), signal.SIGINT))
    assert stopped.value.reason.signal == signal.SIGINT
    assert work.statuses() == {"a": RecordStatus.DONE}


def test_a_signal_at_the_last_record_stops_map(work: Work) -> None:
    with pytest.raises(Stopped):
        work.records(["a"]).map(lambda _: os.kill(os.getpid(), signal.SIGINT))
    assert work.statuses() == {"a": RecordStatus.DONE}


def interrupt_and_wait() -> None:
    for _ in range(20):  # one that comes while a finalizer runs is lost there
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_two_loops_by_turns_do_not_put_a_signal_off_after_they_ended(work: Work) -> None:
    first, second = work.records(list("ab"), op="one"), work.records(list("ab"), op="two")
    for one, two in zip(first, second, strict=True):
        with one:
            pass
        with two:
            pass
    with pytest.raises(KeyboardInterrupt):
        interrupt_and_wait()


def test_a_signal_is_not_lost_when_the_loop_is_left_by_break(work: Work) -> None:
    def leave() -> None:
        for record in work.records(list("ab")):
            with record:
                os.kill(os.getpid(), signal.SIGINT)
            break
        time.sleep(20)

    with pytest.raises(KeyboardInterrupt):
        leave()


# --- one live attempt -----------------------------------------------------------------------------


def test_a_run_that_was_ended_from_outside_finishes_its_record_and_begins_no_other(
    work: Work,
) -> None:
    """As when a person marks the run as canceled in Dagster while its process lives on."""
    with pytest.raises(Stopped) as stopped:
        go_through(work.records(list("abc")), lambda _: work.end(RunStatus.CANCELLED))
    assert stopped.value.reason.ended is RunStatus.CANCELLED
    assert work.statuses() == {"a": RecordStatus.DONE}


def test_a_run_that_dagster_has_given_up_begins_no_other_record(work: Work) -> None:
    with pytest.raises(AttemptOverError, match="no further record"):
        go_through(work.records(list("abc")), lambda _: work.end(RunStatus.FAILED))
    assert work.statuses() == {"a": RecordStatus.DONE}


def test_a_loop_inside_a_record_stops_the_loop_around_it(work: Work) -> None:
    def inner(record: Record) -> None:
        go_through(work.records(list("xy"), op=f"inner-{record.key}"), lambda _: work.hold())

    with pytest.raises(Stopped):
        go_through(work.records(list("ab")), inner)
    work.release()
    work.begin()
    assert go_through(work.records(list("ab"))) == ["a", "b"]


@both_databases
def test_the_writes_of_an_older_attempt_are_refused(work: Work) -> None:
    with pytest.raises(AttemptOverError, match="attempt 2 owns"):
        go_through(work.records(list("abc")), lambda _: work.begin() and None)
    assert work.statuses() == {"a": RecordStatus.STARTED}


@both_databases
def test_an_attempt_at_work_has_a_lease_and_one_that_is_not_has_none(work: Work) -> None:
    def lease_until() -> Any:
        with work.store.read() as conn:
            newest = runs.latest_attempt(conn, work.run.id)
        assert newest is not None
        return newest.lease_until

    seen = []
    go_through(work.records(["a"]), lambda _: seen.append(lease_until()))
    assert seen[0] > work.fleet.now() + lease.LEASE / 2
    assert lease_until() is None


@both_databases
def test_a_lease_is_renewed_while_a_record_takes_long(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_INTERVAL_S", 0.02)
    renewed = threading.Event()
    claim = loops.claim

    def note(*args: Any) -> bool:
        claimed = claim(*args)
        if claimed and threading.current_thread() is not threading.main_thread():
            renewed.set()
        return claimed

    monkeypatch.setattr(loops, "claim", note)
    assert go_through(work.records(["a"]), lambda _: renewed.wait(60)) == ["a"]
    assert renewed.is_set()


def waits_for_another(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return what is set once a loop has found another process in it."""
    monkeypatch.setattr(lease, "POLL_INTERVAL_S", 0.01)
    waits = threading.Event()
    require_ours = lease.Lease._require_processing

    def note(self: lease.Lease) -> None:
        require_ours(self)
        waits.set()

    monkeypatch.setattr(lease.Lease, "_require_processing", note)
    return waits


@both_databases
def test_a_run_that_was_launched_twice_does_each_record_once(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = work.records(list("abc"))
    waits, done = waits_for_another(monkeypatch), []
    second = threading.Thread(target=lambda: done.extend(go_through(late)))

    def launch_again(record: Record) -> None:
        if record.key == "a":
            second.start()
        assert waits.wait(60)

    assert go_through(work.records(list("abc")), launch_again) == ["a", "b", "c"]
    second.join(60)
    assert not second.is_alive()
    assert done == []
    assert (late.done, late.failed) == (3, 0)
    assert (work.progress().done, work.progress().exact) == (3, True)


@both_databases
def test_of_a_run_launched_twice_the_second_pauses_with_the_first(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = waits_for_another(monkeypatch)
    late, ends = work.records(list("ab")), []

    def go_through_too() -> None:
        try:
            go_through(late)
        except Stopped as stopped:
            ends.append(stopped.reason.ended)

    second = threading.Thread(target=go_through_too)

    def hold(_: Record) -> None:
        second.start()
        assert waits.wait(60)
        work.hold()

    with pytest.raises(Stopped):
        go_through(work.records(list("ab")), hold)
    second.join(60)
    assert ends == [RunStatus.PAUSED]
    assert work.statuses() == {"a": RecordStatus.DONE}


@both_databases
def test_a_process_that_was_silent_for_too_long_leaves_the_records_to_the_next(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_INTERVAL_S", 0.02)
    lost = threading.Event()
    renew = lease.Lease._renew

    def note(self: lease.Lease) -> None:
        renew(self)
        if self.lost:
            lost.set()

    monkeypatch.setattr(lease.Lease, "_renew", note)

    def overtaken(record: Record) -> None:
        if record.key == "a":
            with work.store.begin() as conn:  # its lease had lapsed
                conn.execute(t.loops.update().values(worker="another"))
            assert lost.wait(60)

    with pytest.raises(AttemptOverError, match="renew its lease in time"):
        go_through(work.records(list("abc")), overtaken)
    with work.store.begin() as conn:
        loops.leave(conn, work.row, "send", "another")
    assert go_through(work.records(list("abc"))) == ["b", "c"]


# --- in doubt -------------------------------------------------------------------------------------


def test_a_record_that_was_cut_off_stays_listed_until_it_is_settled(work: Work) -> None:
    loop = iter(work.records(list("abc")))
    next(loop)  # and here its process dies
    work.end(RunStatus.FAILED)
    work.begin()
    work.hold()
    with pytest.raises(Stopped):  # begun, and stopped before the record
        go_through(work.records(list("abc")))
    assert work.statuses() == {"a": RecordStatus.STARTED}
    del loop


def test_progress_has_a_rate_while_somebody_works(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dagster_tidegate.records.journal.PROGRESS_INTERVAL_S", 0.0)
    rates = []
    go_through(work.records(list("abc")), lambda _: rates.append(work.progress().rate))
    assert rates[0] is None
    assert rates[-1] > 0
    assert work.progress() == ledger.Progress(
        done=3, failed=0, total=3, position=3, position_key="c", series=1, exact=True
    )


@pytest.mark.parametrize(
    ("error", "in_doubt"), [(TimeoutError("read"), True), (ConnectionRefusedError("no"), False)]
)
def test_what_may_have_reached_the_service_is_in_doubt_when_the_loop_stops(
    work: Work, error: Exception, in_doubt: bool
) -> None:
    def handle(_: Record) -> None:
        work.hold()
        raise error

    with pytest.raises(Stopped):
        go_through(work.records(["a"]), handle)
    assert work.statuses() == {"a": RecordStatus.STARTED if in_doubt else RecordStatus.WAITING}


@both_databases
def test_what_is_done_is_written_also_when_the_first_write_is_cut_off(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the end of the grace, while the store is away."""
    write, cut = ledger.write, []

    def once(*arguments: Any) -> bool:
        if arguments[-1][0].status is RecordStatus.DONE and not cut:
            cut.append(True)
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(ledger, "write", once)
    with pytest.raises(KeyboardInterrupt):
        go_through(work.records(list("ab")))
    assert work.statuses() == {"a": RecordStatus.DONE}


def test_what_an_earlier_try_of_the_step_left_in_doubt_stays_so(work: Work) -> None:
    """Dagster tries a step again in the same run: the attempt is the same."""
    many = [str(n) for n in range(chunks.MAX_CHUNK * 2)]
    with work.store.begin() as conn:
        entry = ledger.Entry(many[-1], len(many) - 1, RecordStatus.STARTED)
        ledger.write(conn, work.store.now(conn), work.row, "send", [entry])
    with pytest.raises(Stopped):
        go_through(work.records(many), lambda _: work.hold())
    assert work.statuses()[many[-1]] is RecordStatus.STARTED


@both_databases
def test_an_error_with_any_text_is_written_down(work: Work) -> None:
    def handle(_: Record) -> None:
        raise ValueError("NUL \0 and half a character \ud800")

    go_through(work.records(["a"], max_failed=1.0), handle)
    assert work.statuses() == {"a": RecordStatus.FAILED}
