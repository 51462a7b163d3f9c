"""How many records of `map` are in flight: a brownout slows the loop, and does not stop it."""

import heapq

import hypothesis.strategies as st
from hypothesis import given

from dagster_tidegate.records.pace import Pace


def run(pace: Pace, records: int, took_s: float, now: float = 0.0) -> float:
    """Keep as many records in flight as the pace permits; return the time at the end."""
    in_flight: list[tuple[float, float]] = []
    for _ in range(records):
        while len(in_flight) >= pace.limit:
            now, began = heapq.heappop(in_flight)
            pace.ended(began=began, now=now)
        heapq.heappush(in_flight, (now + took_s, now))
    while in_flight:
        now, began = heapq.heappop(in_flight)
        pace.ended(began=began, now=now)
    return now


def test_a_healthy_loop_stays_at_its_maximum() -> None:
    pace = Pace(32)
    run(pace, 1000, 0.05)
    assert pace.limit == 32


def test_a_brownout_slows_the_loop_down_to_one_and_no_further() -> None:
    pace = Pace(32)
    now = run(pace, 500, 0.05)
    now = run(pace, 64, 2.0, now)
    assert pace.limit <= 16
    run(pace, 200, 2.0, now)
    assert pace.limit == 1


def test_it_recovers_step_by_step() -> None:
    pace = Pace(8)
    now = run(pace, 500, 0.05)
    now = run(pace, 60, 2.0, now)
    assert pace.limit == 1
    now = run(pace, 8, 0.05, now)
    assert 2 <= pace.limit <= 3
    run(pace, 200, 0.05, now)
    assert pace.limit == 8


def test_a_service_that_is_slow_for_good_becomes_usual() -> None:
    pace = Pace(8)
    now = run(pace, 100, 0.5)
    run(pace, 3000, 3.0, now)
    assert pace.limit == 8


def test_several_that_were_throttled_together_halve_it_once() -> None:
    pace = Pace(32)
    for n in range(32):
        pace.ended(began=0.0, now=1.0 + n / 1000, throttled=True)
    assert pace.limit == 16
    pace.ended(began=2.0, now=2.1, throttled=True)
    assert pace.limit == 8


def test_one_slow_or_bad_record_in_ten_changes_nothing() -> None:
    pace = Pace(16)
    now = run(pace, 100, 0.05)
    for n in range(500):
        bad = n % 10 == 0
        pace.ended(began=now, now=now + (3.0 if bad else 0.05), failed=bad)
        now += 0.01
    assert pace.limit == 16


def test_most_of_a_round_that_fails_halves_it() -> None:
    pace = Pace(16)
    for n in range(16):
        pace.ended(began=1.0, now=1.1, failed=n % 4 != 0)
    assert pace.limit == 8


@given(
    st.integers(1, 100),
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 1000), st.booleans(), st.booleans()),
        max_size=80,
    ),
)
def test_it_stays_within_its_bounds(most: int, ends: list[tuple[float, float, bool, bool]]) -> None:
    pace, now = Pace(most), 0.0
    for passes, took_s, failed, throttled in ends:
        now += passes
        pace.ended(began=now - took_s, now=now, failed=failed, throttled=throttled)
        assert 1 <= pace.limit <= most
