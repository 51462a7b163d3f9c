"""A fleet that calls within limits, beside a simple model of each window: a state machine."""

from bisect import bisect_right
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dagster_tidegate.breaker import limits
from dagster_tidegate.breaker.limiter import Limiter
from dagster_tidegate.breaker.limits import (
    CLOCKS_DIFFER_S,
    GRACE_S,
    CallRequest,
    Grant,
    LimitState,
    RateLimit,
)
from dagster_tidegate.breaker.policy import ServicePolicy

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

    name = "api"

    def __init__(self, rates: list[RateLimit]) -> None:
        self.rates, self.state = rates, LimitState()
        self.passed, self.set_back = 0.0, 0.0
        self.loses = False

    @property
    def now(self) -> datetime:
        return BEGIN + timedelta(seconds=self.passed - self.set_back)

    def of(self, worker: str, campaign: str = "", priority: int = 0) -> "Process":
        return Process(self, worker, campaign, priority)

    def lend(
        self, policy: ServicePolicy, worker: str, request: CallRequest, priority: int = 0
    ) -> Grant:
        state = LimitState.from_json(self.state.to_json())  # as the store keeps it
        grant = limits.lease(state, policy.limits, self.now, worker, request, priority=priority)
        self.state = state
        return grant


class Process:
    """A process as the lender knows it."""

    def __init__(self, lender: Lender, worker: str, campaign: str = "", priority: int = 0) -> None:
        self.lender, self.worker = lender, worker
        self.campaign, self.priority = campaign, priority
        self.limiter = Limiter(ServicePolicy(name=lender.name, limits=lender.rates), self)

    @property
    def monotonic(self) -> Callable[[], float]:
        return lambda: self.lender.passed

    def lease(self, policy: ServicePolicy, request: CallRequest) -> Grant:
        grant = self.lender.lend(policy, self.worker, request, self.priority)
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
        if self.limiter.wait_s > 0:
            return False
        return self.limiter.renew(patience_s) is None and self.limiter.take()


class TheFleet(RuleBasedStateMachine):
    """Processes that call, idle, die and lose answers, beside a clock that is set back."""

    make_lender: Callable[[list[RateLimit]], Lender] = Lender

    @initialize(rates=st.sampled_from(RATES))
    def begin(self, rates: list[RateLimit]) -> None:
        self.lender = self.make_lender(rates)
        self.processes = [self.lender.of(f"p{n}", "ab"[n % 2], n % 2) for n in range(4)]
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
