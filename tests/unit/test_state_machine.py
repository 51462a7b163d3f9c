from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_tidegate.breaker import state_machine as machine
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind
from dagster_tidegate.breaker.window import WindowStats
from dagster_tidegate.statuses import BreakerState

NOW = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
FAILED = Verdict(VerdictKind.FAILURE, reason="503")
CLOSED = BreakerStatus(name="openai", changed_at=NOW - timedelta(hours=1))


def policy(**fields: Any) -> ServicePolicy:
    defaults = {"name": "openai", "consecutive_failures": None, "jitter": 0.0}
    return ServicePolicy(**defaults | fields)


def in_row(failures: int, **fields: Any) -> WindowStats:
    defaults: dict[str, Any] = {
        "failed": failures,
        "failed_in_row": failures,
        "row_since": NOW,
        "row_records": min(failures, 8),
        "row_workers": 1,
        "workers": 1,
        "failing_workers": 1,
    }
    return WindowStats(**defaults | fields)


def trip(rules: ServicePolicy, stats: WindowStats, status: BreakerStatus = CLOSED) -> BreakerStatus:
    return machine.after_calls(status, rules, stats, NOW, FAILED, 0.0)


@pytest.mark.parametrize(
    ("rules", "below", "reached", "reason"),
    [
        (policy(consecutive_failures=5), in_row(4), in_row(5), "503 x5"),
        (
            policy(window_failures=7),
            WindowStats(failed=6, workers=1, failing_workers=1),
            WindowStats(failed=7, workers=1, failing_workers=1),
            "503, 7 failures in 60 s",
        ),
        (
            policy(failure_rate=0.5, min_calls=10),
            WindowStats(ok=6, failed=14, workers=1, failing_workers=1),
            WindowStats(ok=5, failed=15, workers=1, failing_workers=1),
            "503, 15 of 20 calls failed in 60 s",
        ),
        (
            policy(failure_rate=0.5, min_calls=10),
            WindowStats(ok=0, failed=9, workers=1, failing_workers=1),
            WindowStats(ok=0, failed=10, workers=1, failing_workers=1),
            "503, 10 of 10 calls failed in 60 s",
        ),
        (
            policy(slow_call_rate=0.5, slow_call_s=2, min_calls=10),
            WindowStats(ok=20, slow=14, workers=1, failing_workers=1),
            WindowStats(ok=20, slow=15, workers=1, failing_workers=1),
            "15 of 20 calls took 2 s or more in 60 s",
        ),
    ],
    ids=["consecutive", "window", "rate", "min_calls", "slow"],
)
def test_each_rule_trips_when_it_is_reached_and_says_why(rules, below, reached, reason):
    assert trip(rules, below) is CLOSED
    opened = trip(rules, reached)
    assert (opened.state, opened.reason) == (BreakerState.OPEN, reason)
    assert (opened.generation, opened.opened_at) == (1, NOW)
    assert opened.open_until == NOW + timedelta(seconds=30)


def test_one_broken_machine_stops_nobody_where_two_must_see_it():
    rules = policy(consecutive_failures=3, min_workers=2)
    assert trip(rules, in_row(9, workers=4, failing_workers=1)) is CLOSED
    assert trip(rules, in_row(9, workers=4, failing_workers=2)) is not CLOSED
    # A fleet of one can't wait for a second.
    assert trip(rules, in_row(3, workers=1, failing_workers=1)) is not CLOSED


def test_successes_that_silent_workers_may_not_have_told_yet_are_reckoned_with():
    # 200 workers that each succeed once a second; five failures came within half of one.
    half_a_second_ago = NOW - timedelta(seconds=0.5)
    busy = in_row(
        5,
        row_since=half_a_second_ago,
        row_workers=5,
        workers=200,
        failing_workers=5,
        unflushed_ok_per_s=195.0,
    )
    assert trip(policy(consecutive_failures=5), busy) is CLOSED
    # All that were heard of fail, as fast as they succeeded before.
    dead = replace(busy, failed=98, failed_in_row=98, row_workers=98)
    assert trip(policy(consecutive_failures=5), dead) is not CLOSED
    # Two workers see nothing but failures.
    agreed = replace(busy, failed=6, failed_in_row=6, row_workers=2)
    assert trip(policy(consecutive_failures=5), agreed) is not CLOSED


def test_a_rate_waits_until_the_fleet_has_told_of_successes():
    rules = policy(failure_rate=0.5, min_calls=10)
    told = WindowStats(ok=2, failed=10, workers=9, failing_workers=8)
    recovered = replace(CLOSED, changed_at=NOW - timedelta(seconds=1))
    assert trip(rules, told, recovered) is recovered
    assert trip(rules, told) is not CLOSED
    assert trip(rules, replace(told, unflushed_ok_per_s=50.0)) is CLOSED


def test_an_operator_can_keep_it_closed_for_a_time():
    kept = replace(CLOSED, kept_closed_by="ann", kept_closed_until=NOW + timedelta(hours=1))
    assert trip(policy(consecutive_failures=1), in_row(50), kept) is kept
    later = NOW + timedelta(hours=1)
    after = machine.after_calls(
        kept, policy(consecutive_failures=1), in_row(50), later, FAILED, 0.0
    )
    assert after.state == BreakerState.OPEN


def test_the_reset_timeout_grows_with_each_failed_probe_up_to_its_cap():
    rules = policy(
        consecutive_failures=1, reset_timeout_s=10, backoff_factor=2, reset_timeout_cap_s=60
    )
    status, waits = trip(rules, in_row(1)), []
    for _ in range(5):
        assert status.open_until is not None
        waits.append((status.open_until - status.changed_at).total_seconds())
        now = status.open_until
        half_open = machine.half_opened(status, now)
        status = machine.after_trial(half_open, rules, Verdict(VerdictKind.FAILURE), now, 0.0)
    assert waits == [10, 20, 40, 60, 60]
    assert status.opened_at == NOW, "it is open since the trip, not since the last probe"
    assert status.reason == "503 x1"


@given(
    st.integers(0, 10_000),
    st.floats(0, 1),
    st.floats(1, 10),
    st.floats(0, 1),
)
def test_the_reset_timeout_stays_within_its_bounds(attempt, dice, factor, jitter):
    rules = policy(
        consecutive_failures=1, backoff_factor=factor, jitter=jitter, reset_timeout_cap_s=600
    )
    assert 30 <= machine.reset_timeout_s(rules, attempt, dice) <= 600 * (1 + jitter)


def test_it_is_not_probed_before_the_service_asked_to_be():
    rules = policy(consecutive_failures=1)
    asked = NOW + timedelta(seconds=300)
    assert trip(rules, in_row(1, retry_at=asked)).open_until == asked
    soon = NOW + timedelta(seconds=1)
    assert trip(rules, in_row(1, retry_at=soon)).open_until == NOW + timedelta(seconds=30)
    half_open = machine.half_opened(trip(rules, in_row(1)), NOW)
    again = machine.after_trial(half_open, rules, Verdict(VerdictKind.FAILURE, asked), NOW, 0.0)
    assert again.open_until == asked


def test_it_closes_after_enough_trial_calls_and_forgets_the_outage():
    rules = policy(consecutive_failures=1, success_threshold=2)
    status = machine.half_opened(trip(rules, in_row(1)), NOW)
    status = machine.after_trial(status, rules, Verdict(VerdictKind.SUCCESS), NOW, 0.0)
    assert (status.state, status.trial_successes) == (BreakerState.HALF_OPEN, 1)
    status = machine.after_trial(status, rules, Verdict(VerdictKind.SUCCESS), NOW, 0.0)
    assert status == BreakerStatus(
        name="openai",
        changed_at=NOW,
        generation=3,
        closed_at=NOW,
        cause=VerdictKind.FAILURE,  # for the ramp
    )
    # Half opened by hand after that, it is on trial for another reason.
    assert machine.half_opened(status, NOW).cause is None


def test_an_ignored_trial_call_says_nothing():
    rules = policy(consecutive_failures=1)
    half_open = machine.half_opened(trip(rules, in_row(1)), NOW)
    assert (
        machine.after_trial(half_open, rules, Verdict(VerdictKind.IGNORED), NOW, 0.0) is half_open
    )


@pytest.mark.parametrize(("rate", "state"), [(0.5, BreakerState.OPEN), (None, BreakerState.CLOSED)])
def test_a_slow_trial_call_fails_only_where_slow_calls_matter(rate, state):
    rules = policy(consecutive_failures=1, slow_call_rate=rate)
    half_open = machine.half_opened(trip(rules, in_row(1)), NOW)
    assert machine.after_trial(half_open, rules, Verdict(VerdictKind.SLOW), NOW, 0.0).state == state


@pytest.mark.parametrize("state", [BreakerState.CLOSED, BreakerState.OPEN])
def test_the_result_of_a_trial_call_changes_nothing_outside_half_open(state):
    status = replace(CLOSED, state=state)
    for verdict in VerdictKind:
        rules = policy(consecutive_failures=1)
        assert machine.after_trial(status, rules, Verdict(verdict), NOW, 0.0) is status


def test_a_breaker_that_is_not_closed_does_not_trip_again():
    opened = trip(policy(consecutive_failures=1), in_row(1))
    assert trip(policy(consecutive_failures=1), in_row(99), opened) is opened


def test_by_hand():
    rules = policy(consecutive_failures=1)
    opened = machine.opened(
        CLOSED, rules, NOW, Verdict(VerdictKind.FAILURE, reason="maintenance"), 0.0
    )
    assert opened.reason == "maintenance"
    half_open = machine.half_opened(opened, NOW)
    assert machine.half_opened(half_open, NOW) is half_open
    closed = machine.closed(half_open, NOW)
    assert (closed.state, closed.generation) == (BreakerState.CLOSED, 3)
    assert machine.closed(closed, NOW) is closed


def test_a_denied_breaker_is_never_due_and_a_throttled_one_not_before_its_time() -> None:
    until = NOW + timedelta(hours=5)
    throttled = replace(
        CLOSED, state=BreakerState.OPEN, cause=VerdictKind.THROTTLED, open_until=until
    )
    assert (throttled.due(until - timedelta(seconds=1)), throttled.due(until)) == (False, True)
    assert (throttled.throttled_until, throttled.remedy) == (until, None)
    denied = replace(throttled, cause=VerdictKind.DENIED)
    assert not denied.due(NOW + timedelta(days=365))
    assert (denied.throttled_until, denied.remedy) == (None, "tidegate services repaired openai")
    assert not machine.half_opened(denied, NOW).is_denied
