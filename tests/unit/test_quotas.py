"""What services say in their headers of the calls that are left, and what follows from it."""

from datetime import UTC, datetime
from math import isfinite
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from dagster_tidegate.breaker import limits
from dagster_tidegate.breaker.answers import Answer
from dagster_tidegate.breaker.backend import MemoryBackend
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.limits import CallRequest, Grant, LimitState, RateLimit
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.quotas import Quota, names_quota, quotas_of
from dagster_tidegate.breaker.readings import MAX_FREE, Reading, Said, few_left, readings_of
from tests.support.clock import Clock

AT = datetime(2026, 11, 28, 4, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "quotas"),
    [
        (
            {"RateLimit": '"default";r=50;t=30', "RateLimit-Policy": '"default";q=100;w=60'},
            [Quota("default", 50, 30, 100, 60)],
        ),
        (
            {
                "RateLimit": '"a";r=50;t=30, "b";r=3;t=9',
                "RateLimit-Policy": '"a";q=100;w=60, "b";q=7;w=10;qu="content-bytes"',
            },
            [Quota("a", 50, 30, 100, 60), Quota("b", 3, 9, 7, 10, of_calls=False)],
        ),
        (
            {"RateLimit": "limit=100, remaining=50, reset=5", "RateLimit-Policy": "100;w=60"},
            [Quota("", 50, 5, 100, 60)],
        ),
        (
            {
                "RateLimit-Limit": "100, 100;w=60",
                "RateLimit-Remaining": "50",
                "RateLimit-Reset": "5",
            },
            [Quota("", 50, 5, 100, 60)],
        ),
        (
            {
                "X-RateLimit-Limit": "100",
                "X-RateLimit-Remaining": "50",
                "X-RateLimit-Reset": str(int(AT.timestamp()) + 40),
            },
            [Quota("", 50, 40, 100)],
        ),
        (
            {
                "x-ratelimit-limit-requests": "60",
                "x-ratelimit-remaining-requests": "59",
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-tokens": "149984",
                "x-ratelimit-reset-tokens": "6m0s",
            },
            [Quota("", 59, 1, 60), Quota("tokens", 149984, 360, of_calls=False)],
        ),
        (
            {
                "x-rate-limit-minute": "200",
                "x-minute-requests-left": "197",
                "x-rate-limit-hourly": "",
                "x-hourly-requests-left": "",
                "x-rate-limit-24-hour": "600",
                "x-24-hour-requests-left": "0",
            },
            [
                Quota("minute", 197, None, 200, 60),
                Quota("24-hour", 0, None, 600, 86400),
            ],
        ),
        ({"Date": "Sat, 28 Nov 2026 04:00:00 GMT", "ETag": "x", "Retry-After": "3"}, []),
    ],
)
def test_quotas_are_read_in_the_forms_that_services_use(
    headers: dict[str, str], quotas: list[Quota]
) -> None:
    answer = Answer(200, headers, at=AT)
    assert quotas_of(answer) == quotas
    assert names_quota(answer.headers) is bool(quotas)


def leased(
    state: LimitState, rates: list[RateLimit], seconds: float, worker: str, request: CallRequest
) -> Grant:
    now = datetime.fromtimestamp(AT.timestamp() + seconds, UTC)
    return limits.lease(state, rates, now, worker, request)


def heard(name: str, *, left: float, age_s: float, until_s: float, **values: Any) -> Reading:
    """What a service said so many seconds ago, and until when it holds, in seconds from now."""
    return Reading(name, Said(left=left, at=-age_s, until=until_s, **values))


def test_what_a_service_says_is_left_is_shared_by_all() -> None:
    state = LimitState()
    says = CallRequest(50, readings=[heard("", left=10, age_s=0.1, until_s=30.0)])
    first = leased(state, [], 0, "a", says)
    second = leased(state, [], 0, "b", CallRequest(50))
    third = leased(state, [], 0, "c", CallRequest(50))
    assert first.calls == 10
    assert (second.calls, third.calls) == (0, 0)
    assert third.retry_at == datetime.fromtimestamp(AT.timestamp() + 30, UTC)
    assert leased(state, [], 31, "c", CallRequest(50)).calls == 50, "its time is over"


def test_calls_that_were_made_since_the_service_said_it_are_taken_off() -> None:
    state = LimitState()
    says = CallRequest(4, readings=[heard("", left=10, age_s=0.1, until_s=30.0)])
    assert leased(state, [], 0, "a", says).calls == 4
    again = leased(state, [], 2, "a", CallRequest(9, ages=[1.0, 1.5, 1.9]))
    assert again.calls == 7, "one of the four came back"


def left(state: LimitState, seconds: float, worker: str = "z") -> int:
    """How many calls a process would get; it gives them back."""
    calls = leased(state, [], seconds, worker, CallRequest(4000)).calls
    leased(state, [], seconds, worker, CallRequest(0))
    return calls


def test_answers_overtake_each_other_and_the_least_that_is_left_counts() -> None:
    state = LimitState()
    for calls, age_s in ((15, 0.1), (14, 0.2), (50, 3.0)):
        reading = heard("", left=calls, age_s=age_s, until_s=30.0)
        leased(state, [], 0, "a", CallRequest(0, readings=[reading]))
    assert left(state, 0) == 14
    next_window = heard("", left=90, age_s=0.0, until_s=60.0)
    leased(state, [], 20, "a", CallRequest(0, readings=[next_window]))
    assert left(state, 20) == 90


def test_without_a_reset_the_latest_word_counts() -> None:
    state = LimitState()
    for calls, age_s in ((14, 0.1), (50, 3.0), (15, 0.0)):
        reading = heard("", left=calls, age_s=age_s, until_s=60.0, has_reset=False)
        leased(state, [], 0, "a", CallRequest(0, readings=[reading]))
    assert left(state, 0) == 15


@pytest.mark.parametrize(
    "rate", [RateLimit(calls=100, per="day"), RateLimit(calls=100, per_s=86400)]
)
def test_what_others_use_up_of_a_declared_limit_is_noticed(rate: RateLimit) -> None:
    state = LimitState()
    assert leased(state, [rate], 0, "a", CallRequest(5)).calls == 5
    reading = heard("", left=20, age_s=0.0, until_s=3600.0, calls=100)
    says = CallRequest(90, ages=[3000.0] * 5, readings=[reading])
    assert leased(state, [rate], 3600, "a", says).calls == 20, "75 are those of others"


def test_what_a_service_says_never_permits_more_than_what_is_declared() -> None:
    state, rate = LimitState(), RateLimit(calls=10, per="day")
    reading = heard("", left=900, age_s=0.0, until_s=3600.0, calls=1000, window_s=86400)
    assert leased(state, [rate], 0, "a", CallRequest(50, readings=[reading])).calls == 10


def test_a_limit_of_a_service_that_is_lower_than_what_is_declared_counts() -> None:
    state, rate = LimitState(), RateLimit(calls=100, per_s=60)
    reading = heard("", left=29, age_s=0.0, until_s=50.0, calls=30, window_s=60)
    assert leased(state, [rate], 0, "a", CallRequest(90, readings=[reading])).calls == 29


def test_a_quota_that_comes_back_bit_by_bit_is_not_waited_for_as_a_whole() -> None:
    state = LimitState()
    reading = heard("", left=0, age_s=0.0, until_s=60.0, calls=600, refills=True)
    refusal = leased(state, [], 0, "a", CallRequest(5, readings=[reading]))
    assert refusal.retry_at is not None
    assert (refusal.retry_at - AT).total_seconds() < 1
    assert leased(state, [], 1, "a", CallRequest(50)).calls == 10


@pytest.mark.parametrize(("others", "few"), [(2, False), (60, True)])
def test_what_others_would_use_up_within_a_second_is_little(others: int, few: bool) -> None:
    backend = MemoryBackend(clock=(clock := Clock()))
    fleet = Fleet(backend, [ServicePolicy(name="mail")])
    for remaining in (900, 900 - others):
        answer = Answer(200, {"X-RateLimit-Remaining": str(remaining), "X-RateLimit-Reset": "60"})
        fleet.breaker("mail").call(lambda answer=answer: answer)
        clock.advance(0.05)
    assert fleet.breaker("mail").engine.admission.fast is not few


def test_a_quota_of_tokens_counts_once_it_is_empty() -> None:
    state = LimitState()
    some = heard("tokens", left=5, age_s=0.1, until_s=30.0, of_calls=False)
    assert leased(state, [], 0, "a", CallRequest(50, readings=[some])).calls == 50
    none = heard("tokens", left=0, age_s=0.0, until_s=30.0, of_calls=False)
    assert leased(state, [], 0, "b", CallRequest(50, readings=[none])).calls == 0


def test_the_state_survives_the_store() -> None:
    state = LimitState()
    reading = heard("", left=10, age_s=0.1, until_s=30.0, calls=100)
    leased(state, [], 0, "a", CallRequest(4, readings=[reading]))
    leased(state, [], 0, "a", CallRequest(0, ages=[0.01]))
    assert LimitState.from_json(state.to_json()) == state


nonsense = st.one_of(
    st.sampled_from(["", "nan", "inf", "-inf", "1e999", "-1", "9" * 400, "1.2.3", "soon"]),
    st.integers(-10, 10**12).map(str),
    st.floats().map(str),
    st.text(max_size=8),
)
numbers = st.integers(0, 3).flatmap(
    lambda nth: nonsense if nth == 3 else st.integers(0, 500).map(str)
)
any_headers = st.fixed_dictionaries(
    {"x-ratelimit-remaining": numbers},
    optional={
        "x-ratelimit-limit": numbers,
        "x-ratelimit-reset": numbers,
        "x-ratelimit-reset-ms": numbers,
        "x-minute-requests-left": numbers,
    },
) | st.tuples(numbers, numbers, numbers, numbers).map(
    lambda each: {
        "ratelimit": f'"a";r={each[0]};t={each[1]}',
        "ratelimit-policy": f'"a";q={each[2]};w={each[3]}',
    }
)


# The first example compiles patterns, and other programs use the processor: no deadline.
@settings(deadline=None, max_examples=200)
@example({"x-ratelimit-remaining": "inf"}, False, 0.0, 0)
@example({"x-ratelimit-remaining": "-1"}, False, 0.0, 0)
@given(any_headers, st.booleans(), st.floats(0, 100), st.integers(0, 1000))
def test_no_header_is_believed_beyond_its_own_limit(
    headers: dict[str, str], refills: bool, later_s: float, taken: int
) -> None:
    quotas = quotas_of(Answer(200, headers))
    few_left(quotas)
    for _, reading in readings_of(quotas, counted_s=0.5, heard_s=0.1, refills=refills):
        assert isfinite(reading.left)
        assert isfinite(reading.until)
        assert reading.left >= 0
        assert reading.at <= 0 < reading.until
        heard_at = 1000.0
        said, now = reading.moved(heard_at), heard_at + later_s
        free = said.free(now, taken)
        if said.calls is not None and said.of_calls and now < said.until:
            assert free <= said.calls - taken
        assert said.free(said.until, taken) == MAX_FREE, "it is full again"
        free_at = said.free_at(now, taken, 0)
        assert now <= free_at <= max(now, said.until)
        assert said.free(free_at, taken) >= 1
