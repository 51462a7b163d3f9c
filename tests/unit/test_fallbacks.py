"""The first of several services that may be called, without Dagster or a database."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from dagster_tidegate import Throttled
from dagster_tidegate.breaker.backend import MemoryBackend
from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.breaker.evidence import of_record
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.statuses import BreakerState
from tests.support.clock import Clock
from tests.support.failing_service import Down, Letter, fail, policy, trip

CHAIN = ("apollo", "clearbit")


@pytest.fixture
def fleet(clock: Clock) -> Fleet:
    return make_fleet(clock)


def make_fleet(clock: Clock | None = None) -> Fleet:
    policies = [
        policy(name="apollo", parts=["people"], reset_timeout_s=60, trial_lease_s=20),
        policy(name="clearbit", reset_timeout_s=30),
    ]
    return Fleet(MemoryBackend(clock=clock), policies)


def throttle(fleet: Fleet, seconds: float) -> None:
    def refuse() -> None:
        raise Throttled(until=datetime.now(UTC) + timedelta(seconds=seconds))

    with pytest.raises(BreakerOpenError):
        fleet.breaker("apollo").call(refuse)


def test_the_preferred_service_is_chosen_while_its_breaker_is_closed(fleet: Fleet):
    assert fleet.first_available(*CHAIN).name == "apollo"
    assert fleet.first_available(*reversed(CHAIN)).name == "clearbit"
    trip(fleet.breaker("apollo"))
    assert fleet.first_available(*CHAIN).name == "clearbit"
    assert fleet.first_available("apollo/people", "clearbit").name == "clearbit"


def test_a_half_open_service_is_chosen_once_for_each_trial_call(fleet: Fleet, clock: Clock):
    trip(fleet.breaker("apollo"))
    clock.advance(61)
    apollo = fleet.first_available(*CHAIN)
    assert apollo.name == "apollo"
    assert [fleet.first_available(*CHAIN).name for _ in range(3)] == ["clearbit"] * 3
    assert apollo.call(len, "four") == 4
    assert fleet.first_available(*CHAIN).name == "apollo"


def test_a_trial_call_that_is_never_made_is_given_to_another_later(fleet: Fleet, clock: Clock):
    trip(fleet.breaker("apollo"))
    clock.advance(61)
    fleet.first_available(*CHAIN)
    clock.advance(21)
    apollo = fleet.first_available(*CHAIN)
    assert apollo.name == "apollo"
    assert apollo.call(len, "four") == 4
    assert apollo.status.state is BreakerState.CLOSED


def test_if_none_may_be_called_the_error_is_that_of_the_one_to_be_tried_first(
    fleet: Fleet, clock: Clock
):
    for name in CHAIN:
        trip(fleet.breaker(name))
    with pytest.raises(BreakerOpenError) as refused:
        fleet.first_available(*CHAIN)
    assert refused.value.service == "clearbit"
    assert refused.value.retry_at == clock() + timedelta(seconds=30)
    with pytest.raises(BreakerOpenError):
        fleet.first_available("apollo/people", "clearbit")


def test_a_short_throttle_is_waited_for_and_a_long_one_is_not():
    fleet = make_fleet()
    throttle(fleet, 0.3)
    began = time.monotonic()
    apollo = fleet.first_available(*CHAIN)
    assert apollo.name == "apollo"
    assert 0.2 < time.monotonic() - began < 4
    apollo.call(len, "four")
    throttle(fleet, 6)
    began = time.monotonic()
    assert fleet.first_available(*CHAIN).name == "clearbit"
    assert time.monotonic() - began < 2


def test_an_event_loop_does_not_wait():
    fleet = make_fleet()
    throttle(fleet, 3)

    async def choose() -> str:
        return fleet.first_available(*CHAIN).name

    assert asyncio.run(choose()) == "clearbit"


def test_a_record_remembers_which_service_of_each_chain_was_chosen_last(fleet: Fleet):
    letter = Letter()
    with of_record(letter):
        fleet.first_available(*CHAIN)
        fleet.first_available("apollo/people")
        trip(fleet.breaker("apollo"))
        fleet.first_available(*CHAIN)
    assert letter.served_by == ["apollo/people", "clearbit"]
    fleet.first_available(*reversed(CHAIN))
    assert letter.served_by == ["apollo/people", "clearbit"]


def test_a_chain_names_services(fleet: Fleet):
    with pytest.raises(ValueError, match="needs the names of services"):
        fleet.first_available()
    with pytest.raises(LookupError, match="no policy for service 'mailer'"):
        fleet.first_available("apollo", "mailer")


def test_a_failure_below_the_threshold_keeps_the_choice(fleet: Fleet):
    apollo = fleet.first_available(*CHAIN)
    with pytest.raises(Down):
        apollo.call(fail)
    assert fleet.first_available(*CHAIN).name == "apollo"
