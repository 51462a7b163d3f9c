"""Records for which the service fails: set aside, tried again, and given up when it is their fault.

The blocks raise without a breaker in between, unless a test is about what the breaker makes of it.
"""

import asyncio
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from itertools import product
from typing import Any

import httpx
import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings

from dagster_tidegate.breaker.errors import Denied, Pending, Rejected, Throttled
from dagster_tidegate.breaker.events import CallJudged
from dagster_tidegate.breaker.evidence import NO_EVIDENCE, evidence
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.holds import Hold
from dagster_tidegate.records import tries
from dagster_tidegate.records.loop_pass import PendingRecordsError, TooManyFailedError
from dagster_tidegate.records.record import Record
from dagster_tidegate.statuses import BreakerState, RecordStatus, RunStatus
from dagster_tidegate.store import records
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.records import Selection
from tests.integration.record_loop import Stopped, Work, go_through
from tests.support.databases import both_databases

WAITING, STARTED = RecordStatus.WAITING, RecordStatus.STARTED
DONE, FAILED = RecordStatus.DONE, RecordStatus.FAILED
KEYS = [f"lead-{number:02}" for number in range(30)]
Handle = Callable[[Record], Any]


pytestmark = pytest.mark.usefixtures("short_backoff")


def in_a_loop(work: Work, items: Any, handle: Handle, **options: Any) -> None:
    go_through(work.records(items, **options), handle)


def in_an_async_loop(work: Work, items: Any, handle: Handle, **options: Any) -> None:
    async def op() -> None:
        async for record in work.records(items, **options):
            with record:
                await asyncio.sleep(0)
                record.result = handle(record)

    asyncio.run(op())


def in_threads(work: Work, items: Any, handle: Handle, **options: Any) -> None:
    work.records(items, **options).map(handle, concurrency=4)


def in_tasks(work: Work, items: Any, handle: Handle, **options: Any) -> None:
    async def handle_async(record: Record) -> Any:
        await asyncio.sleep(0)
        return handle(record)

    work.records(items, **options).map(handle_async, concurrency=4)


every_way = pytest.mark.parametrize(
    "go", [in_a_loop, in_an_async_loop, in_threads, in_tasks], ids=lambda go: go.__name__
)


class Service:
    """Fails for some records, and notes for which it was called and as what evidence."""

    def __init__(self, *bad: str, error: Callable[[], Exception] = ConnectionRefusedError) -> None:
        self.bad = set(bad)
        self.error = error
        self.calls: list[str] = []
        self.evidence: list[tuple[str, str | None]] = []

    def __call__(self, record: Record) -> str:
        self.calls.append(record.key)
        self.evidence.append((record.key, evidence()))
        if record.key in self.bad:
            raise self.error()
        return record.key


def crashed() -> Exception:
    """A service that received a request and could not process it."""
    request = httpx.Request("POST", "http://service.test/")
    return httpx.HTTPStatusError("500", request=request, response=httpx.Response(500))


def timed_out() -> Exception:
    """A service that received a request and did not answer."""
    return httpx.ReadTimeout("timed out")


def unavailable() -> Exception:
    """A service that does not process any request."""
    request = httpx.Request("POST", "http://service.test/")
    return httpx.HTTPStatusError("503", request=request, response=httpx.Response(503))


def rows(work: Work) -> dict[str, Any]:
    with work.store.read() as conn:
        found = conn.execute(sa.select(t.ledger).where(t.ledger.c.campaign_run == work.run.id))
        return {row.key: row for row in found}


# --- one bad record -------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("bad", [KEYS[0], KEYS[15], KEYS[-1]], ids=["first", "middle", "last"])
def test_one_bad_record_fails_alone(work: Work, go: Any, bad: str) -> None:
    service = Service(bad)
    go(work, KEYS, service)
    statuses = work.statuses()
    assert statuses.pop(bad) is FAILED
    assert set(statuses.values()) == {DONE}
    assert Counter(service.calls) == {**dict.fromkeys(KEYS, 1), bad: 10}
    row = rows(work)[bad]
    assert (row.tries, row.suspect) == (10, True)
    said = r"ConnectionRefusedError for this record, \d+ others succeeded: ConnectionRefusedError"
    assert re.match(said, row.error)
    assert (work.progress().done, work.progress().failed) == (29, 1)


@every_way
def test_what_a_bad_record_does_is_no_evidence_once_others_have_succeeded(
    work: Work, go: Any
) -> None:
    service = Service(KEYS[0])
    go(work, KEYS, service)
    own = f"outreach/leads-1/send/{KEYS[0]}"
    of_bad = [each for key, each in service.evidence if key == KEYS[0]]
    assert of_bad[0] == own
    assert set(of_bad) <= {own, NO_EVIDENCE}
    assert of_bad[-5:] == [NO_EVIDENCE] * 5
    others = {key: each for key, each in service.evidence if key != KEYS[0]}
    assert len(set(others.values())) == len(KEYS) - 1
    assert evidence() is None


def test_the_next_record_does_not_wait_for_one_that_failed(work: Work) -> None:
    service = Service("a")
    go_through(work.records(list("abcd"), max_tries=2), service)
    assert service.calls[:2] == ["a", "b"]


def test_with_fewer_records_than_a_trip_needs_each_failure_counts(work: Work) -> None:
    """Or a campaign run of one record could not notice that its service is dead."""
    service = Service("a", "b")
    go_through(work.records(list("ab"), max_failed=1.0, max_tries=4), service)
    assert [each for _, each in service.evidence[-4:]] == [None] * 4


@pytest.mark.parametrize("go", [in_a_loop, in_threads], ids=lambda go: go.__name__)
@pytest.mark.parametrize("count", [1, 2, 300])
def test_a_dead_service_is_noticed_within_as_many_calls_as_the_policy_says(
    work: Work, go: Any, count: int
) -> None:
    service = Service(*map(str, range(count)))
    guarded = work.fleet.breaker("openai")
    with pytest.raises(Stopped):
        go(work, list(map(str, range(count))), lambda record: guarded.call(service, record))
    assert len(service.calls) <= 5 + (3 if go is in_threads else 0)
    assert FAILED not in work.statuses().values()
    assert STARTED not in work.statuses().values()


# Not three of them in threads: if these are all that is left, nobody can tell them from an outage.
@pytest.mark.parametrize(
    ("go", "bad"),
    [
        *product([in_a_loop, in_threads], [KEYS[:1], KEYS[15:16], KEYS[-1:]]),
        (in_a_loop, [KEYS[0], KEYS[15], KEYS[-1]]),
    ],
    ids=lambda value: value.__name__ if callable(value) else " ".join(value),
)
def test_bad_records_do_not_open_the_breaker(work: Work, go: Any, bad: list[str]) -> None:
    service = Service(*bad, error=crashed)
    guarded = work.fleet.breaker("openai")
    go(work, KEYS, lambda record: guarded.call(service, record))
    statuses = work.statuses()
    assert {key for key, status in statuses.items() if status is FAILED} == set(bad)
    assert set(statuses.values()) == {DONE, FAILED}
    assert (guarded.status.state, guarded.status.generation) == (BreakerState.CLOSED, 0)


@pytest.mark.parametrize("error", [ConnectionRefusedError, unavailable, httpx.ConnectTimeout])
def test_the_last_record_waits_for_a_service_that_processes_nothing(
    work: Work, error: Callable[..., Exception]
) -> None:
    """Nobody else calls it, and what it did not receive can't be at fault."""
    service = Service(KEYS[-1], error=partial(error, "down") if error is not unavailable else error)
    guarded = work.fleet.breaker("openai")
    with pytest.raises(Stopped):
        in_a_loop(work, KEYS, lambda record: guarded.call(service, record))
    assert guarded.status.state is BreakerState.OPEN
    assert rows(work)[KEYS[-1]].status == WAITING
    guarded.close()
    work.begin()
    service.bad.clear()
    in_a_loop(work, KEYS, lambda record: guarded.call(service, record))
    assert set(work.statuses().values()) == {DONE}


@pytest.mark.parametrize("error", [crashed, timed_out])
def test_two_last_records_that_fail_are_an_outage_and_one_is_a_bad_record(
    work: Work, store_url: str, error: Callable[[], Exception]
) -> None:
    guarded = work.fleet.breaker("openai")
    service = Service(*KEYS[-2:], error=error)
    with pytest.raises(Stopped):
        in_a_loop(work, KEYS, lambda record: guarded.call(service, record))
    assert FAILED not in work.statuses().values()
    guarded.close()

    other = Work(store_url, "leads-2")
    alone = Service(KEYS[-1], error=error)
    of_other = other.fleet.breaker("openai")
    in_a_loop(other, KEYS, lambda record: of_other.call(alone, record))
    assert (rows(other)[KEYS[-1]].status, rows(other)[KEYS[-1]].suspect) == (FAILED, True)
    assert of_other.status.state is BreakerState.CLOSED
    other.close()


def test_bad_records_that_time_out_while_others_succeed_do_not_open_the_breaker(
    work: Work,
) -> None:
    guarded = work.fleet.breaker("openai")
    are_done = threading.Event()

    def call(record: Record) -> None:
        if record.position < 3:
            are_done.wait(20)
            raise TimeoutError
        if len(work.statuses()) == len(KEYS):
            are_done.set()

    def handle(record: Record) -> None:
        guarded.call(call, record)

    work.records(KEYS).map(handle, concurrency=8)
    statuses = work.statuses()
    assert {key for key, status in statuses.items() if status is FAILED} == set(KEYS[:3])
    assert (guarded.status.state, guarded.status.generation) == (BreakerState.CLOSED, 0)


def test_too_many_failed_records_are_summed_up_by_what_the_service_said(work: Work) -> None:
    def handle(record: Record) -> None:
        if record.key != KEYS[0]:
            raise Rejected(f"422 invalid id {record.key}")

    with pytest.raises(TooManyFailedError) as failed:
        go_through(work.records(KEYS), handle)
    assert "9 of 10 records failed; max_failed allows 50%" in str(failed.value)
    assert "invalid id lead-...') x9. 'tidegate records list" in str(failed.value)


# --- over attempts --------------------------------------------------------------------------------


@both_databases
def test_tries_are_kept_over_attempts(work: Work) -> None:
    service = Service("b")
    counts: list[int] = []

    def interrupted(record: Record) -> str:
        if record.key == "b":
            counts.append(record.tries)
            if record.tries == 3:
                work.hold()
        return service(record)

    with pytest.raises(Stopped):
        go_through(work.records(list("abc"), max_tries=5), interrupted)
    row = rows(work)["b"]
    assert (row.status, row.tries, row.error) == (WAITING, 3, "ConnectionRefusedError()")
    assert row.retry_at > row.at - timedelta(seconds=1)
    work.release()
    work.begin()
    go_through(work.records(list("abc"), max_tries=5), interrupted)
    assert counts == [1, 2, 3, 4, 5]
    assert (rows(work)["b"].status, rows(work)["b"].suspect) == (FAILED, True)


@both_databases
def test_no_record_that_is_to_be_done_again_is_lost_when_the_run_stops(work: Work) -> None:
    leads = KEYS[:3]

    def fail(_: Record) -> None:
        raise ValueError

    go_through(work.records(leads, max_failed=1.0), fail)
    work.end(RunStatus.COMPLETED)
    with work.store.begin() as conn:
        records.mark(conn, work.store.now(conn), work.run, Selection())
    work.only_marked = True
    for _ in leads:
        work.begin()
        with suppress(Stopped):
            go_through(work.records(leads), lambda _: signal.raise_signal(signal.SIGTERM))
    assert work.statuses() == dict.fromkeys(leads, DONE)


def test_a_try_that_its_process_did_not_survive_counts(work: Work) -> None:
    loop = iter(work.records(list("abc")))
    next(loop)  # and here its process dies
    assert (rows(work)["a"].status, rows(work)["a"].tries) == (STARTED, 1)
    work.end(RunStatus.FAILED)
    work.begin()
    tries = {}
    go_through(work.records(list("abc")), lambda record: tries.update({record.key: record.tries}))
    assert tries == {"a": 2, "b": 1, "c": 1}
    del loop


@both_databases
@pytest.mark.parametrize("go", [in_a_loop, in_threads], ids=lambda go: go.__name__)
def test_an_attempt_begins_with_records_that_have_not_failed(work: Work, go: Any) -> None:
    service = Service(*KEYS)
    guarded = work.fleet.breaker("openai")

    def call(record: Record) -> str:
        return guarded.call(service, record)

    with pytest.raises(Stopped):
        go(work, KEYS, call)
    tried = set(service.calls)
    guarded.close()
    work.begin()
    service.bad.clear()
    service.calls.clear()
    go(work, KEYS, call)
    assert service.calls[0] not in tried
    assert set(work.statuses().values()) == {DONE}


def test_a_call_that_an_open_breaker_refuses_is_no_try(work: Work) -> None:
    guarded = work.fleet.breaker("openai")
    counts: list[int] = []

    def call(record: Record) -> None:
        counts.append(record.tries)
        if len(counts) == 1:
            guarded.open()
        guarded.call(len, "four")

    with pytest.raises(Stopped):
        go_through(work.records(["a", "b"]), call)
    assert work.statuses() == {}
    guarded.close()
    work.begin()
    go_through(work.records(["a", "b"]), lambda record: counts.append(record.tries))
    assert counts == [1, 1, 1]


def test_a_failure_that_leaves_the_breaker_open_fails_no_record_while_none_succeeded(
    work: Work,
) -> None:
    service = Service("a")
    guarded = work.fleet.breaker("openai")

    def holds() -> Sequence[Hold]:  # as for a canary
        half_open = guarded.status.state is BreakerState.HALF_OPEN
        return () if half_open else work.fleet.holds_on(services=["openai"])

    work.holds = holds
    for _ in range(3):
        with pytest.raises(Stopped):
            go_through(
                work.records(["a"], max_tries=5), lambda record: guarded.call(service, record)
            )
        work.begin()
        guarded.half_open()
    row = rows(work)["a"]
    assert (row.status, row.tries, len(service.calls)) == (WAITING, 7, 7)


def as_a_canary(work: Work) -> None:
    """Let the loop try a service that is half open."""
    guarded = work.fleet.breaker("openai")

    def holds() -> Sequence[Hold]:
        half_open = guarded.status.state is BreakerState.HALF_OPEN
        return () if half_open else work.fleet.holds_on(services=["openai"])

    work.holds = holds


def trial_rounds(work: Work, service: Service, rounds: int) -> None:
    """Try what is left in attempts that are canaries, until the loop ends without a pause."""
    guarded = work.fleet.breaker("openai")
    for _ in range(rounds):
        work.begin()
        guarded.half_open()
        try:
            go_through(
                work.records(["a", "b"], max_tries=3, max_failed=1.0),
                lambda record: guarded.call(service, record),
            )
        except Stopped:
            continue
        return


def test_the_last_record_waits_for_a_service_that_is_down_for_everybody(work: Work) -> None:
    """Others of its loop have succeeded, but nobody since it failed."""
    service = Service("b")
    guarded = work.fleet.breaker("openai")
    as_a_canary(work)

    def call(record: Record) -> str:
        if record.key == "b":
            guarded.open()  # by failures of others
            guarded.half_open()
        return guarded.call(service, record)

    with pytest.raises(Stopped):
        go_through(work.records(["a", "b"], max_tries=3, max_failed=1.0), call)
    trial_rounds(work, service, 6)
    row = rows(work)["b"]
    assert (row.status, row.tries, row.suspect) == (WAITING, 7, False)
    service.bad.clear()
    trial_rounds(work, service, 1)
    assert set(work.statuses().values()) == {DONE}


def test_a_record_that_failed_while_others_succeeded_does_not_keep_a_service_open(
    work: Work,
) -> None:
    """Also if it is the only one left that tries the service, in later attempts."""
    service = Service("a")
    guarded = work.fleet.breaker("openai")
    as_a_canary(work)

    def call(record: Record) -> str:
        if record.key == "a" and record.tries == 2:  # b has succeeded
            guarded.open()
            guarded.half_open()
        return guarded.call(service, record)

    with pytest.raises(Stopped):
        go_through(work.records(["a", "b"], max_tries=3, max_failed=1.0), call)
    assert rows(work)["a"].status == WAITING
    trial_rounds(work, service, 6)
    row = rows(work)["a"]
    assert (row.status, row.tries, row.suspect) == (FAILED, 3, True)


def test_the_last_records_of_two_campaign_runs_tell_an_outage_from_bad_records(
    work: Work, store_url: str
) -> None:
    other = Work(store_url, "leads-2")
    service = Service("c")
    guarded, of_other = (each.fleet.breaker("openai") for each in (work, other))
    go_through(work.records(["a", "b"]), lambda record: guarded.call(service, record))
    go_through(other.records(["a", "b"]), lambda record: of_other.call(service, record))
    work.fleet.flush()
    other.fleet.flush()
    with pytest.raises(ConnectionRefusedError):
        of_other.call(service, next(iter(other.records(["c"]))))
    with pytest.raises(Stopped):
        go_through(work.records(["a", "b", "c"]), lambda record: guarded.call(service, record))
    assert work.statuses() == {"a": DONE, "b": DONE, "c": WAITING}
    other.close()


def fail_for_all(work: Work, service: Service) -> None:
    """Try five records until the breaker opens."""
    guarded = work.fleet.breaker("openai")
    service.evidence.clear()
    with pytest.raises(Stopped):
        go_through(work.records(KEYS[:5]), lambda record: guarded.call(service, record))
    time.sleep(0.05)  # longer than they are set aside


def test_a_green_probe_alone_is_no_proof_that_records_failed_by_their_own_fault(
    store_url: str,
) -> None:
    """All calls fail while the probe is green: the breaker opens again, and the records wait."""
    work = Work(store_url, probe_url="http://127.0.0.1:1/")
    service, guarded = Service(*KEYS), work.fleet.breaker("openai")
    for _ in range(4):
        fail_for_all(work, service)
        assert len(service.evidence) <= 6
        assert NO_EVIDENCE not in [evidence for _, evidence in service.evidence]
        assert FAILED not in work.statuses().values()
        guarded.half_open()
        guarded.close()  # as a green probe does
        work.begin()
    work.close()


def test_a_call_that_succeeded_is_proof_that_records_fail_by_their_own_fault(work: Work) -> None:
    service, guarded = Service(*KEYS), work.fleet.breaker("openai")
    fail_for_all(work, service)
    guarded.half_open()
    guarded.call(int)  # of another op
    work.fleet.flush()
    work.begin()
    service.evidence.clear()
    go_through(work.records(KEYS[:5], max_failed=1.0), lambda record: guarded.call(service, record))
    assert {evidence for _, evidence in service.evidence} == {NO_EVIDENCE}
    assert set(work.statuses().values()) == {FAILED}


def test_a_record_that_failed_begins_anew_when_the_run_is_executed_again(work: Work) -> None:
    service = Service("b")
    go_through(work.records(list("abc"), max_tries=3), service)
    work.end(RunStatus.COMPLETED)
    work.begin()
    counts: list[int] = []
    go_through(work.records(list("abc"), max_tries=3), lambda record: counts.append(record.tries))
    assert counts == [1]
    row = rows(work)["b"]
    assert (row.status, row.error, row.suspect) == (DONE, None, False)


def test_a_timeout_stays_in_doubt_while_it_is_set_aside(work: Work) -> None:
    between: list[str] = []

    def handle(record: Record) -> None:
        if record.key == "a" and record.tries == 1:
            raise TimeoutError("read")
        if record.key == "b":
            between.append(rows(work)["a"].status)

    go_through(work.records(list("ab")), handle)
    assert between == [STARTED]
    assert set(work.statuses().values()) == {DONE}


def test_what_is_set_aside_and_did_not_arrive_is_not_in_doubt_after_a_crash(work: Work) -> None:
    between: list[str] = []
    service = Service("a")

    def handle(record: Record) -> None:
        if record.key == "b":
            between.append(rows(work)["a"].status)
            service.bad.clear()
        service(record)

    go_through(work.records(list("ab")), handle)
    assert between == [WAITING]


# --- other verdicts -------------------------------------------------------------------------------


@every_way
def test_a_record_without_an_answer_yet_is_tried_again_and_the_others_go_on(
    work: Work, go: Any
) -> None:
    calls: list[str] = []

    def handle(record: Record) -> str:
        calls.append(record.key)
        if record.key == "a" and calls.count("a") <= 2:
            raise Pending("still verifying", after=0.05)
        return record.key

    go(work, list("abc"), handle, max_tries=1)
    assert sorted(calls) == list("aaabc")
    assert calls[-1] == "a"
    assert set(work.statuses().values()) == {DONE}
    assert rows(work)["a"].tries == 1


@both_databases
@pytest.mark.parametrize("go", [in_a_loop, in_threads], ids=lambda go: go.__name__)
def test_what_has_no_answer_for_long_ends_the_op_and_says_when_to_execute_it_again(
    work: Work, go: Any
) -> None:
    def handle(record: Record) -> None:
        if record.key == "a":
            raise Pending("tomorrow", after=86_400)

    with pytest.raises(PendingRecordsError, match=r"UTC: then re-execute the run from failure"):
        go(work, list("abc"), handle)
    assert work.statuses() == {"a": WAITING, "b": DONE, "c": DONE}
    assert rows(work)["a"].retry_at - work.fleet.now() > timedelta(hours=23)
    work.end(RunStatus.FAILED)
    work.begin()
    with pytest.raises(PendingRecordsError):  # it is not asked before
        go(work, list("abc"), lambda record: pytest.fail(record.key))


def test_a_record_that_never_gets_an_answer_fails(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tries, "MAX_PENDINGS", 3)

    def handle(record: Record) -> None:
        if record.key == "a":
            raise Pending("still verifying", after=0.001)

    go_through(work.records(list("abc")), handle)
    row = rows(work)["a"]
    assert (row.status, row.suspect) == (FAILED, False)
    assert row.error.startswith("still pending after 3 answers: ")


def test_a_rejected_record_fails_with_the_words_of_the_service(work: Work) -> None:
    def handle(record: Record) -> None:
        if record.key == "a":
            raise Rejected("no such mailbox")

    go_through(work.records(list("abc")), handle)
    row = rows(work)["a"]
    assert (row.status, row.tries, row.suspect) == (FAILED, 1, False)
    assert "no such mailbox" in row.error


@pytest.mark.parametrize(
    "error", [Throttled("day used", after=3600), Denied("401")], ids=["throttled", "denied"]
)
def test_what_the_service_refuses_all_is_no_fault_of_the_record(
    work: Work, error: Exception
) -> None:
    guarded = work.fleet.breaker("openai")

    def handle(_: Record) -> None:
        guarded.open()  # what the breaker makes of such an answer
        raise guarded.engine.admission.refusal() from error

    with pytest.raises(Stopped):
        go_through(work.records(list("abc")), handle)
    assert work.statuses() == {}


@pytest.mark.parametrize("go", [in_a_loop, in_threads], ids=lambda go: go.__name__)
def test_a_record_waits_as_the_service_asks_where_the_policy_is_not_enforced(
    store_url: str, go: Any
) -> None:
    work = Work(store_url, enforce=False)
    until = work.fleet.now() + timedelta(seconds=2)
    calls: list[str] = []

    def call(record: Record) -> None:
        calls.append(record.key)
        if record.key == KEYS[1] and work.fleet.now() < until:
            raise Throttled(until=until)

    guarded = work.fleet.breaker("openai")
    go(work, KEYS[:4], lambda record: guarded.call(call, record))
    assert work.statuses() == dict.fromkeys(KEYS[:4], DONE)
    assert calls.count(KEYS[1]) == 2
    work.close()


def without_a_breaker(error: Exception) -> tuple[Handle, list[str]]:
    """A client that says so outside of the call that the breaker guards."""
    calls: list[str] = []

    def call(record: Record) -> str:
        calls.append(record.key)
        if record.key >= KEYS[15]:
            raise error
        return record.key

    return call, calls


@both_databases
@every_way
def test_a_client_that_is_denied_outside_of_a_guarded_call_closes_its_service_too(
    work: Work, go: Any
) -> None:
    error = denied = Denied("no seat\0for ann@acme.example, sk-1234567890abcdef")
    if go in (in_an_async_loop, in_threads):
        error = RuntimeError("the client's own")
        error.__cause__ = denied
    call, calls = without_a_breaker(error)
    with pytest.raises(Stopped) as stopped:
        go(work, KEYS, call)
    assert len(calls) <= 15 + 4
    assert work.statuses() == dict.fromkeys(KEYS[:15], DONE)
    status = work.fleet.breaker("openai").status
    assert (status.state, status.cause, status.open_until) == (BreakerState.OPEN, "denied", None)
    assert status.reason == r"no seat\x00for ***, ***"
    assert stopped.value.reason.holds


def test_a_client_that_is_throttled_outside_of_a_guarded_call_closes_it_until_then(
    work: Work,
) -> None:
    call, calls = without_a_breaker(Throttled("month used", after=2 * 86_400))
    with pytest.raises(Stopped):
        in_a_loop(work, KEYS, call)
    assert len(calls) == 16
    until = work.fleet.breaker("openai").status.open_until
    assert until is not None
    assert until - work.fleet.now() > timedelta(days=1, hours=23)


def test_of_an_op_with_two_services_what_is_denied_outside_of_a_guarded_call_is_tried_once(
    work: Work,
) -> None:
    """Nobody knows which of them it is."""
    work.services = ("openai", "apollo")
    work.fleet.close()
    policies = [ServicePolicy(name=name) for name in work.services]
    work.fleet = Fleet(SqlBackend(work.store), policies)
    call, calls = without_a_breaker(Denied("no seat"))
    in_a_loop(work, KEYS, call)
    assert Counter(calls) == dict.fromkeys(KEYS, 1)
    assert Counter(work.statuses().values()) == {DONE: 15, FAILED: 15}


def test_a_policy_that_is_not_enforced_counts_a_denied_call_once(store_url: str) -> None:
    work = Work(store_url, enforce=False)
    judged: list[Any] = []
    work.fleet.close()
    policy = ServicePolicy(name="openai", enforce=False)
    work.fleet = Fleet(SqlBackend(work.store), [policy], hooks=[judged.append])
    call, calls = without_a_breaker(Denied("no seat"))
    guarded = work.fleet.breaker("openai")
    with pytest.raises(TooManyFailedError):
        in_a_loop(work, KEYS[10:], lambda record: guarded.call(call, record), max_failed=0.2)
    denied = [event for event in judged if isinstance(event, CallJudged)]
    assert len(denied) == len([key for key in calls if key >= KEYS[15]])
    work.close()


# --- anything at all ------------------------------------------------------------------------------

OUTCOMES = st.sampled_from(["ok", "ok", "ok", "refuse", "timeout", "own", "hold", "crash"])
SCRIPTS = st.lists(st.lists(OUTCOMES, min_size=1, max_size=4), min_size=1, max_size=8)
TRIES = 3


class Crash(BaseException):
    """The process ends."""


def play(work: Work, scripts: list[list[str]], go: Any, *, append_only: bool) -> None:
    """Execute a campaign run until it is over; each record's calls end as its script says."""
    calls: Counter[str] = Counter()
    done: Counter[str] = Counter()
    twice: Counter[str] = Counter()
    service: Counter[str] = Counter()
    repeated: set[str] = set()  # done, in doubt, and tried again
    running: Counter[str] = Counter()  # a thread outlives the crash that it is to go down with

    def handle(record: Record, attempt: int) -> None:
        if attempt != work.row.number:
            return  # its process is dead
        running[record.key] += 1
        try:
            try_once(record)
        finally:
            running[record.key] -= 1

    def try_once(record: Record) -> None:
        if done[record.key] > 0 and record.in_doubt:
            repeated.add(record.key)
        elif done[record.key] > 0:
            twice[record.key] += 1
        script = scripts[int(record.key)]
        outcome = script[min(calls[record.key], len(script) - 1)]
        calls[record.key] += 1
        if outcome in ("refuse", "timeout"):
            service[record.key] += 1
            raise (ConnectionRefusedError if outcome == "refuse" else TimeoutError)
        if outcome == "own":
            raise KeyError(record.key)
        if outcome == "crash" and calls[record.key] == 1:
            raise Crash
        if outcome == "hold" and calls[record.key] == 1:
            work.hold()
        done[record.key] += 1

    keys = [str(number) for number in range(len(scripts))]
    options = {"max_tries": TRIES, "max_failed": 1.0, "append_only": append_only}
    for _ in range(20):
        try:
            go(work, keys, partial(handle, attempt=work.row.number), **options)
            break
        except Stopped:
            work.release()
        except Crash:
            while running.total():
                time.sleep(0.001)
            work.release()
            work.end(RunStatus.PAUSED)
        work.begin()
    else:
        pytest.fail("it never ends")
    statuses = work.statuses()
    assert set(statuses) == set(keys), "none is lost"
    assert not twice, "only what is in doubt is done again"
    for key, status in statuses.items():
        assert (status is DONE) == (done[key] > 0) or key in repeated, key
        assert status in (DONE, FAILED)
        assert service[key] <= TRIES
    counted = Counter(statuses.values())
    assert (work.progress().done, work.progress().failed) == (counted[DONE], counted[FAILED])


@both_databases
@pytest.mark.parametrize("go", [in_a_loop, in_threads], ids=lambda go: go.__name__)
def test_whatever_happens_each_record_is_done_once_or_fails_within_its_tries(
    store_url: str, go: Any
) -> None:
    numbers = iter(range(10_000))

    @settings(
        deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(scripts=SCRIPTS, append_only=st.booleans())
    def check(scripts: list[list[str]], append_only: bool) -> None:
        work = Work(store_url, f"leads-{next(numbers)}")
        try:
            play(work, scripts, go, append_only=append_only)
        finally:
            work.close()

    check()
