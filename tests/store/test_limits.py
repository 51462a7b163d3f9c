"""Rate limits in the store: processes that share it never get more calls than the limit."""

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Lock

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import event

from dagster_tidegate.breaker.answers import Answer
from dagster_tidegate.breaker.backend import BreakerBackend
from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.limits import CallRequest, Grant, RateLimit
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import campaigns, service_stats
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from dagster_tidegate.testing import Service
from tests.support.clock import Clock
from tests.support.eager_calls import calls
from tests.support.examples import share_of_examples
from tests.support.leasing_fleet import Lender, TheFleet

DAILY = ServicePolicy(
    name="mail",
    limits=[RateLimit(calls=6, per="day", timezone="Europe/Berlin")],
    jitter=0,
)
MIDNIGHT = datetime(2026, 3, 1, 23, 0, 1, tzinfo=UTC)  # in Berlin, with a second for the clocks


def test_no_window_has_more_calls_than_its_limit(store: Store) -> None:
    numbers = itertools.count()

    class InTheStore(Lender):
        def __init__(self, rates: list[RateLimit]) -> None:
            super().__init__(rates)
            self.name = f"mail{next(numbers)}"
            store.clock = lambda: self.now

        def lend(
            self,
            policy: ServicePolicy,
            worker: str,
            request: CallRequest,
            priority: int = 0,  # noqa: ARG002 -- the store knows it
        ) -> Grant:
            return SqlBackend(store).lease(policy, worker, request)

    class StoredFleet(TheFleet):
        make_lender = InTheStore

    run_state_machine_as_test(
        StoredFleet,
        settings=settings(max_examples=share_of_examples(2), deadline=None),
    )


@pytest.mark.parametrize("rounds", [3])
def test_processes_that_ask_at_once_get_no_more_than_the_limit(store: Store, rounds: int) -> None:
    policy = ServicePolicy(name="mail", limits=[RateLimit(calls=50, per_s=3600)])
    backends: list[BreakerBackend] = [SqlBackend(store) for _ in range(8)]

    def ask(number: int) -> int:
        worker = f"w{number % 8}-{number}"
        return backends[number % 8].lease(policy, worker, CallRequest(4)).calls

    with ThreadPoolExecutor(8) as pool:
        leased = sum(pool.map(ask, range(rounds * 40)))
    assert leased == 50


def test_a_used_up_day_throttles_the_service_until_the_next(
    store: Store, clock: Clock, make_fleet: Callable[..., Fleet]
) -> None:
    first, second = make_fleet(DAILY), make_fleet(DAILY)
    assert calls(first, at_most=2) == 2
    first.flush(final=True)
    made = calls(second) + 2
    assert made == 6
    first.refresh()
    status = first.breaker("mail").status
    assert status.state is BreakerState.OPEN
    assert status.throttled_until == MIDNIGHT
    assert status.reason == "its limit of 6 calls per day is used up"
    with pytest.raises(BreakerOpenError) as refused:
        first.breaker("mail").call(str.upper, "x")
    assert refused.value.retry_at == MIDNIGHT
    with store.read() as conn:
        [hold] = conn.execute(sa.text("SELECT target_name, source FROM holds")).all()
    assert tuple(hold) == ("mail", "breaker")
    clock.time = MIDNIGHT + timedelta(seconds=1)
    assert calls(second, at_most=3) == 3, "its trial call closes the breaker"
    assert second.breaker("mail").status.state is BreakerState.CLOSED


def test_a_permitted_call_needs_no_query_while_a_block_lasts(
    store: Store, make_fleet: Callable[..., Fleet]
) -> None:
    policy = ServicePolicy(name="mail", limits=[RateLimit(calls=10_000, per_s=60)])
    fleet = make_fleet(policy, ServicePolicy(name="maps"))
    assert calls(fleet, at_most=300) == 300
    statements: list[str] = []
    event.listen(store.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    assert calls(fleet, at_most=200) == 200
    of_limits = [statement for statement in statements if "limits" in statement]
    assert len(of_limits) <= 4, "one or two blocks"
    assert calls(fleet, "maps", at_most=200) == 200
    assert len([statement for statement in statements if "limits" in statement]) == len(of_limits)


def test_the_block_of_a_process_that_died_comes_back(
    clock: Clock, make_fleet: Callable[..., Fleet]
) -> None:
    policy = ServicePolicy(name="mail", limits=[RateLimit(calls=6, per_s=60)], jitter=0)
    dead = make_fleet(policy)
    dead.breaker("mail").call(str.upper, "x")  # and it never reports
    assert calls(make_fleet(policy)) < 6
    clock.advance(60 + 5 + 30 + 1)
    other = make_fleet(policy)
    assert calls(other) == 6


def test_a_campaign_waits_for_another_of_higher_priority(store: Store, clock: Clock) -> None:
    specs = [CampaignSpec(name, "here", "none", n) for name, n in (("digest", 0), ("urgent", 5))]
    with store.begin() as conn:
        campaigns.save(conn, clock(), "here", specs)
    policy = ServicePolicy(name="mail", limits=[RateLimit(calls=10, per_s=4)])
    backend, request = SqlBackend(store), CallRequest(10, patience_s=20)
    assert backend.lease(policy, "a", replace(request, campaign="digest")).calls == 10
    clock.advance(0.5)
    grant = backend.lease(policy, "b", replace(request, campaign="urgent"))
    assert grant.calls, "free when the block of the other is over"
    clock.advance(0.5)
    again = CallRequest(10, ages=[0.5] * 10, patience_s=20, campaign="digest")
    grant = backend.lease(policy, "a", again)
    assert grant.calls == 0
    assert (grant.limit, grant.retry_at) == ("", clock() + timedelta(seconds=0.25))


def test_parts_share_the_limit_of_the_whole(make_fleet: Callable[..., Fleet]) -> None:
    whole = DAILY.model_copy(update={"parts": ["bulk", "single"]})
    fleet = make_fleet(whole)
    assert calls(fleet, "mail/bulk", at_most=4) == 4
    assert calls(fleet, "mail/single") == 2
    assert fleet.breaker("mail").status.throttled_until == MIDNIGHT


def test_a_call_that_is_refused_otherwise_uses_nothing_up(
    make_fleet: Callable[..., Fleet],
) -> None:
    fleet = make_fleet(DAILY.model_copy(update={"consecutive_failures": 1, "min_records": 1}))
    fleet.breaker("mail").open()
    assert calls(fleet) == 0
    fleet.breaker("mail").close()
    assert calls(fleet) == 6


@pytest.mark.database_time
def test_a_short_wait_is_waited_for_in_place(make_fleet: Callable[..., Fleet]) -> None:
    policy = ServicePolicy(name="mail", limits=[RateLimit(calls=3, per_s=1)])
    fleet, service = make_fleet(policy), Service()
    began = fleet.now()
    for n in range(7):
        fleet.breaker("mail").call(service, str(n))
    took_s = (fleet.now() - began).total_seconds()
    assert took_s >= 2
    assert fleet.breaker("mail").status.state is BreakerState.CLOSED


def test_coroutines_keep_to_the_limits_too() -> None:
    fleet = Fleet(policies=[ServicePolicy(name="mail", limits=[RateLimit(calls=6, per="month")])])
    made: list[int] = []

    async def send(number: int) -> None:
        made.append(number)

    async def send_all() -> None:
        for number in range(9):
            await fleet.breaker("mail").call_async(send, number)

    with pytest.raises(BreakerOpenError, match="its limit of 6 calls per month is used up"):
        asyncio.run(send_all())
    assert made == list(range(6))


def test_people_see_how_much_is_used_up(
    store: Store, clock: Clock, make_fleet: Callable[..., Fleet]
) -> None:
    fleet = make_fleet(DAILY)
    assert calls(fleet, at_most=2) == 2
    fleet.flush(final=True)
    with store.read() as conn:
        [used] = service_stats.read(conn, clock())["mail"].limits
        assert (used.limit, used.calls, used.used) == ("6 calls per day", 6, 2)
        [used] = service_stats.read(conn, clock() + timedelta(days=1))["mail"].limits
    assert used.used == 0


def test_without_enforcement_nothing_is_limited(make_fleet: Callable[..., Fleet]) -> None:
    assert calls(make_fleet(DAILY.model_copy(update={"enforce": False})), at_most=20) == 20


class HonestService:
    """Has a limit that nobody declared, and says in each answer what is left of it."""

    def __init__(self, clock: Clock, calls: int, window_s: int) -> None:
        self.clock, self.calls, self.window_s = clock, calls, window_s
        self.used: dict[float, int] = {}
        self.refused = 0
        self._lock = Lock()

    def __call__(self) -> Answer:
        with self._lock:
            return self._answer()

    def _answer(self) -> Answer:
        self.clock.advance(0.001)
        now = self.clock().timestamp()
        window = now // self.window_s
        used = self.used[window] = self.used.get(window, 0) + 1
        headers = {
            "X-RateLimit-Limit": str(self.calls),
            "X-RateLimit-Remaining": str(max(0, self.calls - used)),
            "X-RateLimit-Reset": str(int((window + 1) * self.window_s)),
        }
        self.refused += used > self.calls
        return Answer(200 if used <= self.calls else 429, headers, at=self.clock())


def test_a_service_that_says_nothing_is_left_is_throttled_before_it_refuses(
    clock: Clock, make_fleet: Callable[..., Fleet]
) -> None:
    policy = ServicePolicy(name="mail", jitter=0)
    fleets, service = [make_fleet(policy) for _ in range(3)], HonestService(clock, 40, 600)
    for n in range(40):
        clock.advance(0.05)
        fleets[n % 3 if n < 20 else 0].breaker("mail").call(service)
    for fleet in fleets:
        fleet.refresh()
        with pytest.raises(BreakerOpenError, match=r"40 calls \(by its headers\) is used up"):
            fleet.breaker("mail").call(service)
    status = fleets[0].breaker("mail").status
    assert service.refused == 0
    assert status.throttled_until is not None
    reset_at = datetime.fromtimestamp((clock().timestamp() // 600 + 1) * 600, UTC)
    assert reset_at <= status.throttled_until <= reset_at + timedelta(seconds=2)
    clock.time = status.throttled_until + timedelta(seconds=1)
    for _ in range(20):
        fleets[1].breaker("mail").call(service)
    assert service.refused == 0


def test_the_last_calls_of_a_window_are_leased(
    clock: Clock, make_fleet: Callable[..., Fleet]
) -> None:
    policy = ServicePolicy(name="mail", jitter=0)
    fleets, service = [make_fleet(policy) for _ in range(4)], HonestService(clock, 200, 600)
    for _ in range(46):
        for fleet in fleets:
            clock.advance(0.01)
            fleet.breaker("mail").call(service)

    def rest(fleet: Fleet) -> int:
        for made in range(100):
            try:
                fleet.breaker("mail").call(service)
            except BreakerOpenError:
                return made
        return 100

    with ThreadPoolExecutor(4) as pool:  # 16 are left, and all know that these are few
        made = sum(pool.map(rest, fleets))
    assert service.refused == 0
    assert 12 <= made <= 16, "answers overtake each other"


def test_what_other_programs_use_up_of_a_declared_limit_is_noticed(
    clock: Clock, make_fleet: Callable[..., Fleet]
) -> None:
    policy = ServicePolicy(name="mail", limits=[RateLimit(calls=40, per_s=600)], jitter=0)
    fleets, service = [make_fleet(policy) for _ in range(2)], HonestService(clock, 40, 600)
    clock.time = datetime.fromtimestamp((clock().timestamp() // 600 + 1) * 600 + 1, UTC)
    made = 0
    for n in range(100):
        clock.advance(0.05)
        if n == 5:  # another program with the same key
            for _ in range(20):
                service()
        try:
            fleets[n % 2 if n < 8 else 0].breaker("mail").call(service)
        except BreakerOpenError:
            break
        made += 1
    assert service.refused == 0
    assert 15 <= made <= 20


def test_wrong_headers_can_be_left_out_of_account(
    clock: Clock, make_fleet: Callable[..., Fleet]
) -> None:
    fleet = make_fleet(ServicePolicy(name="mail", heed_quotas=False))
    wrong = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "3000"}
    for _ in range(50):
        fleet.breaker("mail").call(lambda: Answer(200, wrong, at=clock()))


def test_processes_share_the_calls_in_flight(
    clock: Clock, store: Store, make_fleet: Callable[..., Fleet]
) -> None:
    policy = ServicePolicy(name="mail", max_concurrency=3)
    first, second = make_fleet(policy), make_fleet(policy)
    with ExitStack() as calls:
        for _ in range(2):
            calls.enter_context(first.breaker("mail").calling())
        calls.enter_context(second.breaker("mail").calling())
        assert first.breaker("mail").engine.admission.enter() is None
        clock.advance(6)  # the turn of the first is over
        assert first.breaker("mail").engine.admission.enter() is None
        with store.read() as conn:
            [used] = service_stats.read(conn, clock())["mail"].limits
        assert (used.limit, used.calls, used.used) == ("3 calls at a time", 3, 3)
    first.flush(final=True)
    second.flush(final=True)
    with store.read() as conn:
        [used] = service_stats.read(conn, clock())["mail"].limits
    assert used.used == 0


def test_a_call_with_a_free_slot_needs_no_query(
    store: Store, make_fleet: Callable[..., Fleet]
) -> None:
    fleet = make_fleet(ServicePolicy(name="mail", max_concurrency=4))
    assert calls(fleet, at_most=5) == 5
    statements: list[str] = []
    event.listen(store.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    assert calls(fleet, at_most=200) == 200
    assert not [statement for statement in statements if "limits" in statement]


def test_the_slots_of_a_process_that_died_come_back(
    clock: Clock, make_fleet: Callable[..., Fleet]
) -> None:
    policy = ServicePolicy(name="mail", max_concurrency=1)
    dead, other = make_fleet(policy), make_fleet(policy)
    with dead.breaker("mail").calling():
        clock.advance(31)
        assert calls(other, at_most=2) == 2
