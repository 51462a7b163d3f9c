"""Whether the last records of a loop that fail are an outage or bad records."""

import pytest

from dagster_tidegate.records.tries import each_failure_counts, is_used_up

ALONE = {"successes": 299, "others_fail_too": False, "never_arrived": False, "failing": 1}


def test_one_record_that_fails_alone_is_a_bad_record():
    assert not each_failure_counts(**ALONE)


@pytest.mark.parametrize(
    "change",
    [{"successes": 0}, {"others_fail_too": True}, {"never_arrived": True}, {"failing": 2}],
    ids=lambda change: next(iter(change)),
)
def test_it_is_an_outage_if_anything_else_says_so(change: dict[str, int | bool]):
    assert each_failure_counts(**{**ALONE, **change})


@pytest.mark.parametrize(("is_of_service", "ends_at"), [(False, 10), (True, 100)])
def test_each_record_ends(is_of_service: bool, ends_at: int):
    ended = [is_used_up(tries, 10, is_of_service=is_of_service) for tries in range(1, 101)]
    assert ended.index(True) == ends_at - 1
