"""Rate limits: never more calls in any window than permitted, whatever the processes do."""

from bisect import bisect_right
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pydantic import ValidationError

from dagster_tidegate import BreakerResource, Rate, ServiceConfig
from dagster_tidegate.breaker import limits
from dagster_tidegate.breaker.limiter import Limiter
from dagster_tidegate.breaker.limits import (
    CLOCKS_DIFFER_S,
    GRACE_S,
    Grant,
    LimitState,
    RateLimit,
    Request,
)
from dagster_tidegate.breaker.policy import ServicePolicy
from tests.support.examples import share_of_examples

BEGIN = datetime(2026, 10, 24, 21, 55, tzinfo=UTC)  # Berlin: 5 minutes to the longest day
RATES = [
    [RateLimit(calls=5, per_s=1)],
    [RateLimit(calls=7, per_s=1), RateLimit(calls=20, per_s=10)],
    [RateLimit(calls=3, per_s=60), RateLimit(calls=8, per="hour")],
    [RateLimit(calls=6, per_s=10), RateLimit(calls=30, per="day", timezone="Europe/Berlin")],
]


class Lost(Exception):
    """The answer of the store did not arrive."""


class Lender:
    """The store, whose clock can be set back, in a world whose time only goes on."""

    def __init__(self, rates: list[RateLimit]) -> None:
        self.rates, self.state = rates, LimitState()
        self.passed, self.set_back = 0.0, 0.0
        self.loses = False

    @property
    def now(self) -> datetime:
        return BEGIN + timedelta(seconds=self.passed - self.set_back)

    def of(self, worker: str) -> "Process":
        return Process(self, worker)


class Process:
    """A process as the lender knows it."""

    def __init__(self, lender: Lender, worker: str) -> None:
        self.lender, self.worker = lender, worker
        self.limiter = Limiter(ServicePolicy(name="api", limits=lender.rates), self)

    @property
    def monotonic(self) -> Callable[[], float]:
        return lambda: self.lender.passed

    def lease(self, policy: ServicePolicy, request: Request) -> Grant:
        state = LimitState.from_json(self.lender.state.to_json())  # as the store keeps it
        grant = limits.lease(state, policy.limits, self.lender.now, self.worker, request)
        self.lender.state = state
        if self.lender.loses:
            raise Lost
        return grant

    def seconds_until(self, grant: Grant) -> float:
        assert grant.retry_at is not None
        return (grant.retry_at - self.lender.now).total_seconds()

    def call(self, patience_s: float = 0.0) -> bool:
        """Make a call, if there is one; with patience, it may be left for a later time."""
        if self.limiter.take():
            return True
        if self.limiter.pending:
            return False
        return self.limiter.renew(patience_s) is None and self.limiter.take()


class TheFleet(RuleBasedStateMachine):
    """Processes that call, idle, die and lose answers, beside a clock that is set back."""

    @initialize(rates=st.sampled_from(RATES))
    def begin(self, rates: list[RateLimit]) -> None:
        self.lender = Lender(rates)
        self.processes = [self.lender.of(f"p{n}") for n in range(4)]
        self.started = 4
        self.calls: list[float] = []  # when each was made

    @rule(
        process=st.integers(0, 3),
        times=st.sampled_from([1, 1, 2, 3, 12]),
        patience_s=st.sampled_from([0.0, 0.5, 100.0]),
    )
    def process_calls(self, process: int, times: int, patience_s: float) -> None:
        for _ in range(times):
            if self.processes[process].call(patience_s):
                self.calls.append(self.lender.passed)

    @rule(share=st.sampled_from([0.01, 0.1, 0.3, 0.6, 0.9, 1.0, 1.02, 1.3, 4]))
    def part_of_the_first_window_passes(self, share: float) -> None:
        self.lender.passed += share * (self.lender.rates[0].per_s or 1)

    @rule(seconds=st.sampled_from([0.51, 11, 61, 400, 3700]))
    def time_passes(self, seconds: float) -> None:
        self.lender.passed += seconds

    @rule(process=st.integers(0, 3))
    def a_process_dies_and_another_starts(self, process: int) -> None:
        self.processes[process] = self.lender.of(f"p{self.started}")
        self.started += 1

    @rule(process=st.integers(0, 3), final=st.booleans())
    def process_reports(self, process: int, final: bool) -> None:
        self.processes[process].limiter.settle(final=final)

    @rule(process=st.integers(0, 3))
    def an_answer_is_lost(self, process: int) -> None:
        self.lender.loses = True
        try:
            self.process_calls(process, 1, patience_s=5.0)
        except Lost:
            pass
        finally:
            self.lender.loses = False

    @precondition(lambda self: not any(rate.per for rate in self.lender.rates))
    @rule(seconds=st.sampled_from([0.5, 30.0, 7200.0]))
    def the_clock_is_set_back(self, seconds: float) -> None:
        self.lender.set_back += seconds

    @invariant()
    def no_window_has_more_calls_than_its_limit(self) -> None:
        for rate in getattr(self, "lender", Lender([])).rates:
            if rate.per_s is not None:
                for first, at in enumerate(self.calls):
                    assert bisect_right(self.calls, at + rate.per_s - 1e-6) - first <= rate.calls
            else:
                zone = ZoneInfo(rate.timezone)
                counted: dict[tuple, int] = {}
                for at in self.calls:
                    local = (BEGIN + timedelta(seconds=at)).astimezone(zone)
                    key = (
                        (local.date(), local.hour, local.fold)
                        if rate.per == "hour"
                        else (local.date(),)
                    )
                    counted[key] = counted.get(key, 0) + 1
                assert max(counted.values(), default=0) <= rate.calls

    def teardown(self) -> None:
        """In the end, when all others are gone, one process may make all calls again."""
        if not hasattr(self, "lender"):
            return
        for process in self.processes:
            process.limiter.settle(final=True)
        rate = min(self.lender.rates, key=lambda each: each.calls)
        longest = max(25 * 3600.0 if each.per else each.window_s for each in self.lender.rates)
        survivor = self.lender.of("survivor")
        survivor.call()  # notices that the clock was set back
        survivor.limiter.settle(final=True)
        self.lender.passed += longest + 2 * GRACE_S
        made = int(survivor.call())
        if not made:  # just where a period ends
            self.lender.passed += 2 * CLOCKS_DIFFER_S
        while survivor.call():
            made += 1
        assert made == rate.calls


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
        ({"calls": 1, "per": "day", "timezone": "Mars"}, "no time zone"),
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
