"""When a run that could not be started is requested again."""

from datetime import UTC, datetime, timedelta

import pytest

from dagster_tidegate.gate.failed_launches import MAX_IN_A_ROW, is_given_up, next_at

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.mark.parametrize(("failures", "wait_s"), [(1, 5), (2, 10), (3, 20), (7, 300), (9, 300)])
def test_the_wait_doubles_up_to_five_minutes(failures: int, wait_s: float) -> None:
    times = [NOW - timedelta(minutes=10 * n) for n in range(failures)]
    assert next_at(times) == NOW + timedelta(seconds=wait_s)


def test_the_first_request_waits_for_nothing() -> None:
    assert next_at([]) is None


def test_there_is_an_end() -> None:
    assert not is_given_up([NOW] * (MAX_IN_A_ROW - 1))
    assert is_given_up([NOW] * MAX_IN_A_ROW)
