"""Rate limits: never more calls in any window than permitted, whatever the processes do."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from pydantic import ValidationError

from dagster_tidegate import BreakerResource, Rate, ServiceConfig
from dagster_tidegate.breaker.limits import (
    GRACE_S,
    RateLimit,
)
from tests.support.examples import share_of_examples
from tests.support.leasing_fleet import Lender, TheFleet

TestTheFleet = TheFleet.TestCase
TestTheFleet.settings = settings(
    max_examples=5 * share_of_examples(1),
    stateful_step_count=40,
    deadline=None,  # a step is no measurement: a busy machine takes its time
)


def test_a_permitted_call_asks_the_store_once_a_block() -> None:
    lender = Lender([RateLimit(calls=1000, per_s=60)])
    process, requests = lender.of("p"), []
    lease = process.lease
    process.lease = lambda policy, request: requests.append(request) or lease(policy, request)  # type: ignore[method-assign] -- counts
    assert all(process.call() for _ in range(1000))
    assert len(requests) < 20
    assert not process.call()


@pytest.mark.parametrize("seconds", [0.0, 0.4])
def test_close_to_the_limit_is_used_by_those_who_want_more(seconds: float) -> None:
    """Eight processes that call as often as they may, for ten windows."""
    rate = RateLimit(calls=100, per_s=10)
    lender = Lender([rate])
    processes = [lender.of(f"p{n}") for n in range(8)]
    made = 0
    while lender.passed < 100:
        for process in processes:
            made += process.call(patience_s=5)
        lender.passed += 0.01 + seconds / 100
    assert made >= 0.97 * 10 * rate.calls


def test_a_call_that_was_not_reported_yet_counts_for_as_long_as_it_may_have_been_made() -> None:
    lender = Lender([RateLimit(calls=5, per_s=1)])
    assert lender.of("silent").call()
    lender.passed += 0.6  # its block has expired
    other = lender.of("other")
    assert [other.call() for _ in range(5)] == [True, True, True, True, False]
    lender.passed += 0.92  # it may have been made when the block expired
    assert other.call()


def test_what_a_dead_process_had_leased_counts_until_its_window_has_passed() -> None:
    lender = Lender([RateLimit(calls=4, per_s=10)])
    assert lender.of("dead").call()
    other = lender.of("other")
    while other.call():
        pass
    lender.passed += 10 + 2.5 + GRACE_S  # its lease, its grace and the window
    assert sum(lender.of("next").call() for _ in range(4)) == 4


def test_the_calls_of_a_process_with_other_limits_count_in_all() -> None:
    lender = Lender([RateLimit(calls=4, per="day")])
    assert [lender.of(f"p{n}").call() for n in range(2)] == [True, True]
    lender.passed += GRACE_S + 6
    before, lender.rates = lender.rates, [RateLimit(calls=9, per_s=1)]
    assert lender.of("other").call()
    lender.rates = before
    assert [lender.of(f"q{n}").call() for n in range(2)] == [True, False]


def test_the_refusal_says_when_and_which_limit() -> None:
    lender = Lender([RateLimit(calls=2, per_s=1), RateLimit(calls=3, per="day", timezone="UTC")])
    process = lender.of("p")
    for _ in range(3):
        process.call()
        lender.passed += 1.1
    refusal = process.limiter.renew()
    assert refusal is not None
    assert refusal.limit == "3 calls per day"
    assert refusal.retry_at == datetime(2026, 10, 25, 0, 0, 1, tzinfo=UTC)


@given(
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)),  # noqa: DTZ001 -- UTC is added
    st.sampled_from(["hour", "day", "month"]),
    st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata", "America/New_York"]),
)
def test_a_period_of_the_calendar_contains_the_time_and_no_other_day(
    naive: datetime, per: str, zone: str
) -> None:
    at = naive.replace(tzinfo=UTC)
    rate = RateLimit(calls=1, per=per, timezone=zone)
    begins, ends = rate.period(at.timestamp())
    assert begins <= at.timestamp() < ends
    field = {"hour": "hour", "day": "day", "month": "month"}[per]

    def part(time: float) -> int:
        return getattr(datetime.fromtimestamp(time, UTC).astimezone(ZoneInfo(zone)), field)

    assert part(begins) == part(at.timestamp()) == part(ends - 0.001)
    if per != "hour":  # which comes twice where summer time ends
        assert part(begins - 0.001) != part(begins)
        assert part(ends) != part(begins)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"calls": 1}, "either per_s or per"),
        ({"calls": 1, "per_s": 1, "per": "day"}, "either per_s or per"),
        ({"calls": 1, "per": "week"}, "use hour, day, month"),
        ({"calls": 0, "per": "day"}, "greater than or equal to 1"),
        ({"calls": 1, "per": "day", "timezone": "Mars"}, "not a time zone"),
    ],
)
def test_a_rate_that_means_nothing_is_refused(fields: dict, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Rate(**fields)


def test_limits_reach_the_fleet_and_services_without_any_pay_nothing() -> None:
    limited = ServiceConfig(
        name="mail", parts=["bulk"], limits=[Rate(calls=2, per="day", timezone="Europe/Berlin")]
    )
    fleet = BreakerResource.in_memory([limited, ServiceConfig(name="maps")]).fleet
    assert str(fleet.policies["mail"].limits[0]) == "2 calls per day"
    assert not fleet.policies["mail/bulk"].limits, "its calls are those of the whole"
    assert fleet.breaker("maps").engine.admission.fast
    assert not fleet.breaker("mail/bulk").engine.admission.fast
