"""What a breaker does for each verdict."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import httpx
import pytest

from dagster_tidegate.breaker.backend import MemoryBackend
from dagster_tidegate.breaker.breaker import Breaker
from dagster_tidegate.breaker.errors import (
    AnswerError,
    BreakerOpenError,
    Denied,
    Pending,
    Rejected,
    Throttled,
)
from dagster_tidegate.breaker.events import CallJudged, StateChanged
from dagster_tidegate.breaker.evidence import NO_EVIDENCE, of_record
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.verdicts import Scope, Verdict, VerdictKind
from dagster_tidegate.breaker.window import LocalWindow
from dagster_tidegate.statuses import BreakerState
from tests.support.clock import Clock
from tests.support.failing_service import Down, Letter, fail, policy, trip

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def make_fleet(clock: Clock, **fields: Any) -> Fleet:
    return Fleet(MemoryBackend(clock=clock), [policy(**fields)])


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return make_fleet(clock).breaker("openai")


def raises(error: Exception) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


def attempt(breaker: Breaker, error: Exception) -> None:
    with suppress(AnswerError, Down, BreakerOpenError):
        breaker.call(raises(error))


# --- throttled ---------------------------------------------------------------------------------


def test_one_throttled_call_closes_the_service_until_its_time(breaker: Breaker, clock: Clock):
    until = clock() + timedelta(hours=4)
    with pytest.raises(BreakerOpenError) as refused:
        breaker.call(raises(Throttled("600 a day", until=until)))
    assert refused.value.retry_at == until
    assert isinstance(refused.value.__cause__, Throttled)
    assert (breaker.status.cause, breaker.status.reason) == (VerdictKind.THROTTLED, "600 a day")
    clock.advance(4 * 3600 - 1)
    with pytest.raises(BreakerOpenError):
        breaker.call(int)
    clock.advance(1)
    breaker.call(int)
    assert breaker.status.state == CLOSED


def test_one_success_opens_a_throttled_service_to_all(clock: Clock):
    breaker = make_fleet(clock, success_threshold=5).breaker("openai")
    attempt(breaker, Throttled(until=clock() + timedelta(seconds=60)))
    clock.advance(60)
    breaker.call(int)
    assert breaker.status.state == CLOSED


def test_throttling_is_no_failure_and_its_pauses_do_not_grow(breaker: Breaker, clock: Clock):
    pauses = []
    for _ in range(4):
        attempt(breaker, Throttled("429"))
        assert breaker.status.open_until is not None
        pauses.append((breaker.status.open_until - clock()).total_seconds())
        clock.advance(pauses[-1])
    assert pauses == [30] * 4
    assert (breaker.status.attempt, breaker.fail_counter) == (0, 0)


def test_a_later_time_of_a_call_in_flight_prolongs_the_pause(breaker: Breaker, clock: Clock):
    def slow() -> None:
        attempt(breaker, Throttled(until=clock() + timedelta(seconds=60)))
        raise Throttled(until=clock() + timedelta(seconds=90))

    with pytest.raises(BreakerOpenError):
        breaker.call(slow)
    assert breaker.status.open_until == clock() + timedelta(seconds=90)


@pytest.mark.parametrize("profile", ["generic", None])
def test_a_time_that_is_over_is_no_reason_to_call_at_once(clock: Clock, profile: str | None):
    breaker = make_fleet(clock, profile=profile).breaker("openai")
    attempt(breaker, Throttled(until=clock() - timedelta(hours=1)))
    with pytest.raises(BreakerOpenError):
        breaker.call(int)


# --- denied ------------------------------------------------------------------------------------


def test_a_denied_service_stays_open_until_a_person_repaired_it(breaker: Breaker, clock: Clock):
    attempt(breaker, Denied("invalid_api_key"))
    assert breaker.status.is_denied
    clock.advance(7 * 86400)
    with pytest.raises(BreakerOpenError, match="invalid_api_key"):
        breaker.call(int)
    breaker.half_open()  # repaired
    attempt(breaker, Denied("invalid_api_key"))
    assert breaker.status.is_denied
    breaker.half_open()
    breaker.call(int)
    assert breaker.status.state == CLOSED


def test_what_a_call_from_before_the_repair_says_does_not_close_the_service_again(
    breaker: Breaker,
):
    def begun_before_the_repair() -> None:
        attempt(breaker, Denied("invalid key"))
        breaker.half_open()
        breaker.call(int)
        raise Denied("invalid key")

    with pytest.raises(Denied):
        breaker.call(begun_before_the_repair)
    assert breaker.status.state == CLOSED


def says_no() -> bool:
    return False


def says_yes() -> bool:
    return True


@pytest.mark.parametrize(
    ("check", "state"), [("says_no", OPEN), ("says_yes", HALF_OPEN), ("is_missing", OPEN)]
)
def test_a_free_check_can_say_that_it_is_repaired(clock: Clock, check: str, state: BreakerState):
    fleet = make_fleet(clock, repair_check=f"{__name__}:{check}")
    breaker = fleet.breaker("openai")
    assert fleet.due_probes() == []
    attempt(breaker, Denied("dead key"))
    assert fleet.due_probes() == ["openai"]
    assert breaker.probe().state == state


def test_a_dead_key_is_not_called_again_by_calls_that_fail_otherwise(
    breaker: Breaker, clock: Clock
):
    def slow() -> None:
        attempt(breaker, Denied("dead key"))
        raise Throttled(until=clock() + timedelta(seconds=1))

    with pytest.raises(BreakerOpenError, match="dead key"):
        breaker.call(slow)
    clock.advance(60)
    assert breaker.status.is_denied


# --- the record's own --------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Pending(after=30), Rejected("422"), KeyError("email")])
def test_what_concerns_the_record_alone_neither_trips_nor_ends_a_row(
    breaker: Breaker, error: Exception
):
    for _ in range(2):
        attempt(breaker, Down())
    for _ in range(10):
        with pytest.raises(type(error)):
            breaker.call(raises(error))
    assert (breaker.status.state, breaker.fail_counter) == (CLOSED, 2)
    attempt(breaker, Down())
    assert breaker.status.state == OPEN


def test_hooks_receive_what_a_service_said(clock: Clock):
    events: list[Any] = []
    fleet = Fleet(MemoryBackend(clock=clock), [policy()], hooks=[events.append])
    for error in (Rejected("422"), Pending(), Throttled("429")):
        attempt(fleet.breaker("openai"), error)
    kinds = [event.verdict.kind for event in events if isinstance(event, CallJudged)]
    assert kinds == [VerdictKind.REJECTED, VerdictKind.PENDING, VerdictKind.THROTTLED]


# --- evidence ----------------------------------------------------------------------------------


def fail_for(breaker: Breaker, record: str | None, times: int = 1) -> None:
    with of_record(Letter(record)):
        for _ in range(times):
            attempt(breaker, Down())


def test_one_record_alone_cannot_trip_however_often_it_fails(breaker: Breaker):
    fail_for(breaker, "bad", 100)
    assert breaker.status.state == CLOSED


def test_what_a_record_is_called_stays_in_its_process(clock: Clock):
    window = LocalWindow("openai", 0, "worker", lambda: 0.0)
    window.fail(clock(), None, "outreach/leads-1/send/ada@example.org")
    delta = window.pending(policy(), clock())
    assert delta is not None
    assert delta.row_records == "3c385374"


def test_failures_of_three_records_trip(breaker: Breaker):
    for record in ("one", "two"):
        fail_for(breaker, record, 5)
    assert breaker.status.state == CLOSED
    fail_for(breaker, "three")
    assert breaker.status.state == OPEN


def test_failures_without_evidence_do_not_count(breaker: Breaker):
    fail_for(breaker, NO_EVIDENCE, 100)
    assert (breaker.status.state, breaker.fail_counter) == (CLOSED, 0)


def test_one_record_on_many_workers_is_still_one(clock: Clock):
    backend = MemoryBackend(clock=clock)
    for _ in range(8):  # each a process of its own, with the same record
        fail_for(Fleet(backend, [policy()]).breaker("openai"), "bad", 2)
        clock.advance(1)
    assert Fleet(backend, [policy()]).breaker("openai").status.state == CLOSED
    for record in ("another", "a third"):
        fail_for(Fleet(backend, [policy()]).breaker("openai"), record)
    assert Fleet(backend, [policy()]).breaker("openai").status.state == OPEN


# --- rows, however long they take --------------------------------------------------------------


@pytest.mark.parametrize("gap_s", [1, 20, 300, 7200])
def test_failures_in_a_row_trip_however_slow_they_are(clock: Clock, gap_s: float):
    breaker = make_fleet(clock).breaker("openai")

    def hang() -> None:
        clock.advance(gap_s)
        raise TimeoutError

    for _ in range(3):
        assert breaker.status.state == CLOSED
        with suppress(TimeoutError, BreakerOpenError):
            breaker.call(hang)
    assert breaker.status.state == OPEN


def test_a_success_of_another_worker_ends_a_slow_row(clock: Clock):
    backend = MemoryBackend(clock=clock)
    failing, healthy = (Fleet(backend, [policy()]) for _ in range(2))
    for _ in range(10):
        for _ in range(2):
            attempt(failing.breaker("openai"), Down())
            clock.advance(300)
        healthy.breaker("openai").call(int)
        healthy.flush()
        clock.advance(300)
    assert failing.breaker("openai").status.state == CLOSED


def test_thresholds_above_a_thousand_trip(clock: Clock):
    breaker = make_fleet(clock, consecutive_failures=1200).breaker("openai")
    for _ in range(1199):
        attempt(breaker, Down())
    assert breaker.status.state == CLOSED
    attempt(breaker, Down())
    assert breaker.status.state == OPEN


def test_after_a_trip_the_counter_keeps_the_failures_that_tripped_it(breaker: Breaker):
    trip(breaker)
    assert breaker.fail_counter == 3
    breaker.half_open()
    attempt(breaker, Down())
    assert breaker.fail_counter == 4
    breaker.close()
    assert breaker.fail_counter == 0


def test_a_recovery_that_does_not_last_keeps_the_backoff(breaker: Breaker, clock: Clock):
    waits = []
    for _ in range(5):
        trip(breaker)
        assert breaker.status.open_until is not None
        waits.append((breaker.status.open_until - clock()).total_seconds())
        clock.advance(waits[-1])
        breaker.call(lambda: "the health probe is green")
    assert waits == [30, 60, 120, 240, 480]
    clock.advance(3600)
    breaker.call(int)
    trip(breaker)
    assert breaker.status.attempt == 0


@pytest.mark.parametrize("in_a_row", [False, True], ids=["after a denial", "after failures"])
def test_a_half_open_service_that_answers_401_is_denied_at_the_first_call(
    breaker: Breaker, clock: Clock, *, in_a_row: bool
):
    if in_a_row:
        trip(breaker)
    else:
        attempt(breaker, Denied("dead key"))
    breaker.half_open()
    calls = 0

    def ask() -> httpx.Response:
        nonlocal calls
        calls += 1
        return httpx.Response(401, json={"error": {"code": "invalid_api_key"}})

    for _ in range(30):
        with pytest.raises(BreakerOpenError):
            breaker.call(ask)
    assert calls == 1
    assert breaker.status.is_denied
    assert breaker.status.reason == "invalid_api_key"
    clock.advance(365 * 86_400)
    with pytest.raises(BreakerOpenError):
        breaker.call(ask)
    assert calls == 1


def test_what_a_client_makes_of_a_judged_answer_counts_and_what_was_counted_does_not_again(
    clock: Clock,
):
    events: list[Any] = []
    fleet = Fleet(MemoryBackend(clock=clock), [policy(enforce=False)], hooks=[events.append])
    breaker = fleet.breaker("openai")

    def judged() -> int:
        return sum(isinstance(event, CallJudged) for event in events)

    counted = RuntimeError("the client's own")
    counted.__cause__ = Denied("no seat")
    with pytest.raises(RuntimeError):
        breaker.call(raises(counted))
    assert judged() == 1
    assert breaker.refusal_after(counted) is None
    assert judged() == 1

    rejected, seat = Rejected("422"), Denied("no seat")
    seat.__cause__ = rejected
    attempt(breaker, rejected)
    assert judged() == 2
    assert breaker.refusal_after(seat) is None
    assert judged() == 3


def test_a_judge_that_raises_breaks_no_call_and_is_logged_once(
    breaker: Breaker, caplog: pytest.LogCaptureFixture
):
    def broken(_: object) -> Verdict:
        raise KeyError("x-stage")

    breaker.judge = broken
    for _ in range(2):
        assert breaker.call(dict, status="error") == {"status": "error"}
    assert caplog.text.count("The judge of openai raised") == 1
    trip(breaker)
    assert breaker.status.state is BreakerState.OPEN


@pytest.mark.parametrize(
    "garbage",
    [None, "denied", {}, VerdictKind.DENIED, Verdict("nonsense"), Verdict("throttled", until=5)],  # type: ignore[arg-type]
    ids=repr,
)
def test_a_judge_that_returns_no_verdict_breaks_no_call_and_is_logged(
    breaker: Breaker, caplog: pytest.LogCaptureFixture, garbage: object
):
    breaker.judge = lambda _: garbage  # type: ignore[assignment, return-value]
    assert breaker.call(dict, status="error") == {"status": "error"}
    assert caplog.text.count("The judge of openai raised") == 1
    trip(breaker)
    assert breaker.status.state is BreakerState.OPEN


def test_what_a_client_or_a_judge_says_is_short_on_one_line_and_without_secrets(breaker: Breaker):
    page = "no seat\0\ud800\n for ann@acme.example, sk-1234567890abcdef " + "<p>" * 100_000
    attempt(breaker, Denied(page))
    assert breaker.status.reason is not None
    assert breaker.status.reason.startswith(r"no seat\x00\ud800 for ***, *** <p>")
    assert len(breaker.status.reason) <= 200
    breaker.close()
    breaker.judge = lambda _: Verdict(VerdictKind.DENIED, reason="no seat", answer=page)
    attempt(breaker, ConnectionError())
    assert breaker.status.reason == "no seat"
    assert len(breaker.status.answer or "") <= 300


@pytest.mark.parametrize("profile", ["generic", None])
def test_what_a_client_asks_to_wait_is_cut_to_the_cap_of_the_policy(
    clock: Clock, profile: str | None
):
    breaker = make_fleet(clock, profile=profile, retry_after_cap_s=60).breaker("openai")
    attempt(breaker, Throttled("month used", until=clock() + timedelta(days=3650)))
    assert breaker.status.open_until == clock() + timedelta(seconds=60)


# --- parts of a service --------------------------------------------------------------------------


@pytest.fixture
def apollo(clock: Clock) -> Fleet:
    return make_fleet(clock, name="apollo", parts=["people_match", "enrich"])


def test_a_quota_of_an_endpoint_closes_the_endpoint_alone(apollo: Fleet, clock: Clock):
    day = Throttled("600 a day", until=clock() + timedelta(hours=4), scope=Scope.ENDPOINT)
    attempt(apollo.breaker("apollo/people_match"), day)
    with pytest.raises(BreakerOpenError, match="apollo/people_match is open"):
        apollo.breaker("apollo/people_match").call(int)
    assert apollo.breaker("apollo/enrich").call(int, "1") == 1
    assert apollo.breaker("apollo").call(int, "1") == 1


def test_a_dead_key_closes_the_service_with_all_its_parts(apollo: Fleet):
    attempt(apollo.breaker("apollo/people_match"), Denied("dead key"))
    assert apollo.breaker("apollo").status.is_denied
    for name in ("apollo", "apollo/people_match", "apollo/enrich"):
        with pytest.raises(BreakerOpenError, match="apollo is open"):
            apollo.breaker(name).call(int)


def test_a_call_to_a_part_is_the_trial_call_of_the_whole(apollo: Fleet):
    whole, part = apollo.breaker("apollo"), apollo.breaker("apollo/people_match")
    part.call(int)
    attempt(whole, Denied("dead key"))
    whole.half_open()
    with suppress(Down, BreakerOpenError):
        part.call(fail)
    assert whole.status.state == OPEN
    whole.half_open()
    part.call(int)
    assert (whole.status.state, part.status.state) == (CLOSED, CLOSED)


@pytest.mark.parametrize("as_coroutine", [False, True])
def test_a_denial_of_a_call_that_began_before_the_repair_comes_too_late(
    apollo: Fleet, clock: Clock, as_coroutine: bool
):
    whole, part = apollo.breaker("apollo"), apollo.breaker("apollo/people_match")
    part.call(int)

    def deny_late() -> None:
        clock.advance(5)
        attempt(whole, Denied("dead key"))
        whole.half_open()
        whole.call(int)
        raise Denied("dead key")

    async def deny_late_async() -> None:
        deny_late()

    with suppress(AnswerError, BreakerOpenError):
        if as_coroutine:
            asyncio.run(part.call_async(deny_late_async))
        else:
            part.call(deny_late)
    assert (whole.status.state, part.status.state) == (CLOSED, CLOSED)
    apollo.refresh()
    attempt(part, Denied("dead key"))
    assert whole.status.is_denied


def test_failures_of_a_part_leave_the_others_alone(apollo: Fleet):
    trip(apollo.breaker("apollo/enrich"))
    assert apollo.breaker("apollo").status.state == CLOSED
    assert apollo.breaker("apollo/people_match").call(int, "1") == 1


# --- without enforcement -------------------------------------------------------------------------


def test_a_policy_that_is_not_enforced_refuses_nothing_and_says_what_it_would_do(clock: Clock):
    events: list[Any] = []
    rules = policy(enforce=False)
    fleet = Fleet(MemoryBackend(clock=clock), [rules], hooks=[events.append])
    breaker = fleet.breaker("openai")
    for error in (*[Down()] * 10, Denied("dead key")):
        with pytest.raises(type(error)):
            breaker.call(raises(error))
    assert breaker.call(int, "1") == 1
    status = breaker.status
    assert (status.state, status.would_open_at, status.reason) == (CLOSED, clock(), "Down x3")
    assert not fleet.snapshot().holds
    assert len([event for event in events if isinstance(event, StateChanged)]) == 1


def test_enforcement_that_ends_closes_an_open_breaker(clock: Clock):
    backend = MemoryBackend(clock=clock)
    trip(Fleet(backend, [policy()]).breaker("openai"))
    lenient = Fleet(backend, [policy(enforce=False)])
    assert lenient.breaker("openai").call(int, "1") == 1
    assert lenient.breaker("openai").status.state == CLOSED


def test_a_part_that_others_closed_does_not_keep_the_trial_call_of_the_whole(clock: Clock):
    backend = MemoryBackend(clock=clock)
    here, there = (Fleet(backend, [policy(name="apollo", parts=["match"])]) for _ in range(2))
    part = here.breaker("apollo/match")
    there.breaker("apollo").half_open()
    there.breaker("apollo/match").half_open()
    here.refresh()
    there.breaker("apollo/match").close()
    assert part.call(int, "1") == 1
    assert here.breaker("apollo").status.state == CLOSED


def test_the_probe_of_a_part_gives_the_trial_call_of_the_whole_back(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    well = Verdict(VerdictKind.SUCCESS)
    monkeypatch.setattr("dagster_tidegate.breaker.probe.http_get", lambda *_: well)
    fields = {"probe_url": "http://apollo.example/health", "success_threshold": 2}
    fleet = Fleet(MemoryBackend(clock=clock), [policy(name="apollo", parts=["match"], **fields)])
    names = ["apollo", "apollo/match"]
    for name in names:
        fleet.breaker(name).half_open()
    for name in names * 2:
        fleet.breaker(name).probe()
    assert [fleet.breaker(name).status.state for name in names] == [CLOSED, CLOSED]


def test_the_kill_switch_changes_no_breaker_of_others(clock: Clock):
    backend = MemoryBackend(clock=clock)
    breaker = Fleet(backend, [policy()]).breaker("openai")
    attempt(breaker, Denied("dead key"))
    Fleet(backend, [policy(enforce=False)], enabled=False).breaker("openai").call(int)
    breaker.fleet.refresh()
    assert breaker.status.is_denied


# --- brownouts ---------------------------------------------------------------------------------


def test_a_brownout_trips_by_default(clock: Clock):
    breaker = make_fleet(clock).breaker("openai")
    for _ in range(100):
        breaker.call(clock.advance, 0.1)
    with suppress(BreakerOpenError):
        for _ in range(20):
            breaker.call(clock.advance, 8)
    assert (breaker.status.state, breaker.status.cause) == (OPEN, VerdictKind.SLOW)
    assert breaker.status.reason == "15 calls in a row took much longer than usual"


def test_a_service_that_was_always_slow_is_not_in_a_brownout(clock: Clock):
    breaker = make_fleet(clock).breaker("openai")
    for seconds in [30, 90, 60, 20, 120] * 40:
        breaker.call(clock.advance, seconds)
    assert breaker.status.state == CLOSED


def test_a_process_that_begins_in_a_brownout_learns_its_durations_as_usual(clock: Clock):
    breaker = make_fleet(clock).breaker("openai")
    for seconds in [8] * 100 + [0.1] * 100:
        breaker.call(clock.advance, seconds)
    assert breaker.status.state == CLOSED


@pytest.mark.parametrize("pause_s", [0.1, 60])
def test_a_process_that_stood_still_is_no_brownout(clock: Clock, pause_s: float):
    breaker = make_fleet(clock).breaker("openai")
    for _ in range(100):
        breaker.call(clock.advance, pause_s)

    def with_others_under_way(others: int) -> None:
        if others:
            breaker.call(with_others_under_way, others - 1)
        else:
            clock.advance(100 * pause_s)

    breaker.call(with_others_under_way, 50)
    assert breaker.status.state == CLOSED


def test_a_brownout_is_noticed_with_calls_at_the_same_time(clock: Clock):
    breaker = make_fleet(clock).breaker("openai")
    for _ in range(100):
        breaker.call(clock.advance, 0.1)

    def with_others_under_way(others: int) -> None:
        if others:
            breaker.call(with_others_under_way, others - 1)
        else:
            clock.advance(8)

    with suppress(BreakerOpenError):
        for _ in range(3):
            breaker.call(with_others_under_way, 7)
    assert breaker.status.cause == VerdictKind.SLOW


def test_the_time_that_the_caller_takes_for_streamed_items_is_no_brownout(clock: Clock):
    breaker = make_fleet(clock).breaker("openai")
    for _ in range(100):
        breaker.call(clock.advance, 0.1)
    for _ in range(30):
        for _page in breaker.call(lambda: (page for page in range(3))):
            clock.advance(60)
    assert breaker.status.state == CLOSED
