"""Which record is tried next: nothing is lost or given out twice, and a bad one does not block."""

from collections.abc import Iterable

import hypothesis.strategies as st
from hypothesis import given

from dagster_tidegate.records import schedule as module
from dagster_tidegate.records.schedule import Schedule


def of(*records: str, is_open: bool = False) -> Schedule[str]:
    schedule: Schedule[str] = Schedule()
    schedule.is_open = is_open
    for record in records:
        schedule.add(record)
    return schedule


def order(schedule: Schedule[str], failing: Iterable[str], call_s: float, calls: int) -> list[str]:
    """The records that are tried, where some fail for ever and are due again at once."""
    tried, now, bad = [], 0.0, set(failing)
    while len(schedule) and len(tried) < calls:
        record = schedule.next(now)
        if record is None:
            now = schedule.next_at()
            continue
        tried.append(record)
        now += call_s
        if record in bad:
            schedule.set_aside(record, now + 0.1)
        schedule.note(succeeded=record not in bad)
    return tried


def test_a_dead_service_is_met_by_different_records_however_slow_it_is() -> None:
    for call_s in (0.001, 20.0):
        assert order(of(*"abcdefgh"), "abcdefgh", call_s, calls=5) == list("abcde")


def test_a_bad_record_is_tried_again_between_others() -> None:
    assert order(of(*"abcdef"), "a", 0.06, calls=8) == list("abcadeaf")


def test_nothing_is_tried_during_a_pause_and_what_was_refused_comes_first() -> None:
    schedule = of("a", "b")
    record = schedule.next(0)
    assert record == "a"
    schedule.put_back(record)
    schedule.pause(5.0)
    assert schedule.next(4.9) is None
    assert schedule.next_at() == 5.0
    assert schedule.next(5.0) == "a"


def test_the_input_is_read_on_before_a_failed_record_is_repeated() -> None:
    schedule = of("a", is_open=True)
    record = schedule.next(0)
    assert record is not None
    schedule.set_aside(record, 0.0)
    schedule.note(succeeded=False)
    assert schedule.next(1.0) is None
    assert schedule.wants_input
    schedule.is_open = False
    assert schedule.next(1.0) == "a"


def test_no_more_of_the_input_is_read_while_a_hundred_wait() -> None:
    schedule = of(*map(str, range(module.MAX_FAILED_ASIDE)), is_open=True)
    while (record := schedule.next(0)) is not None:
        schedule.set_aside(record, 9.0)
    assert not schedule.wants_input
    assert schedule.next(9.0) == "0"
    assert schedule.wants_input


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "next", "next", "next", "pause", "tick", "close"]),
        st.sampled_from(["done", "failed", "pending", "refused"]),
        st.floats(0, 3),
    ),
    max_size=80,
)


@given(STEPS)
def test_no_record_is_lost_or_given_out_twice(steps: list[tuple[str, str, float]]) -> None:
    schedule: Schedule[int] = Schedule()
    left: set[int] = set()
    now, added = 0.0, 0
    for step, outcome, seconds in steps:
        if step == "add" and schedule.is_open:
            added += 1
            left.add(added)
            schedule.add(added)
        elif step == "pause":
            schedule.pause(now + seconds)
        elif step == "tick":
            now += seconds
        elif step == "close":
            schedule.is_open = False
        elif step == "next" and (record := schedule.next(now)) is not None:
            assert record in left
            if outcome == "done":
                left.discard(record)
            elif outcome == "refused":
                schedule.put_back(record)
            else:
                schedule.set_aside(record, now + seconds, failed=outcome == "failed")
            schedule.note(succeeded=outcome == "done")
        assert len(schedule) == len(left)
    schedule.is_open = False
    given_out: list[int] = []
    while len(schedule):
        now = max(now, schedule.next_at())
        record = schedule.next(now)
        assert record is not None
        given_out.append(record)
    assert sorted(given_out) == sorted(left)
