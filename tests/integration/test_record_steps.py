"""Steps of a record that are remembered, so that what was paid for is not paid for again."""

import asyncio
from collections import Counter

import pytest

from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.records.journal import Group
from dagster_tidegate.records.record import Record
from dagster_tidegate.statuses import BreakerState, RecordStatus, RunStatus
from tests.integration.record_loop import Stopped, Work, go_through
from tests.support.databases import both_databases

KEYS = ["ada", "bob", "eve"]


pytestmark = pytest.mark.usefixtures("short_backoff")


class Services:
    """One to find a person, which is paid for, and one to write to them, which fails at first."""

    def __init__(self, failures: int = 0) -> None:
        self.found: Counter[str] = Counter()
        self.failures = failures

    def find(self, key: str) -> dict[str, tuple[str, ...]]:
        self.found[key] += 1
        return {"names": (key, key.upper())}

    def write(self, person: dict) -> str:
        if self.failures:
            self.failures -= 1
            raise ConnectionError
        return f"letter to {person['names'][1]}"

    def both(self, record: Record) -> str:
        return self.write(record.once("find", self.find, record.key))


def results(work: Work) -> list:
    return work.records(KEYS).results()


@both_databases
@pytest.mark.parametrize("group", [None, Group(records=100)], ids=["one by one", "grouped"])
def test_a_step_is_not_done_again_when_a_later_one_fails(work: Work, group: Group | None) -> None:
    services = Services(failures=2)
    go_through(work.records(KEYS, group=group), services.both)
    assert services.found == dict.fromkeys(KEYS, 1)
    assert results(work) == ["letter to ADA", "letter to BOB", "letter to EVE"]


@both_databases
def test_a_step_is_remembered_by_the_next_attempt(work: Work) -> None:
    services = Services()

    def stop_before_writing(record: Record) -> None:
        record.once("find", services.find, record.key)
        work.hold()
        raise BreakerOpenError("openai", BreakerState.OPEN, work.fleet.now(), "held", None)

    with pytest.raises(Stopped):
        go_through(work.records(KEYS), stop_before_writing)
    assert work.statuses() == {"ada": RecordStatus.WAITING}
    work.release()
    work.begin()
    go_through(work.records(KEYS), services.both)
    assert services.found == dict.fromkeys(KEYS, 1)


def test_a_step_of_a_failed_record_is_not_paid_for_again(work: Work) -> None:
    services = Services()

    def fail(record: Record) -> None:
        record.once("find", services.find, record.key)
        raise ValueError(record.key)

    go_through(work.records(KEYS, max_failed=1.0), fail)
    work.end(RunStatus.FAILED)
    work.begin()
    go_through(work.records(KEYS), services.both)
    assert services.found == dict.fromkeys(KEYS, 1)


def test_steps_in_threads_and_tasks(work: Work) -> None:
    services = Services(failures=2)
    work.records(KEYS).map(services.both, concurrency=3)
    assert services.found == dict.fromkeys(KEYS, 1)

    async def find(key: str) -> dict[str, tuple[str, ...]]:
        await asyncio.sleep(0)
        return services.find(key)

    async def both(record: Record) -> str:
        return services.write(await record.once("look", find, record.key))

    services.failures = 2
    work.records(KEYS, op="again").map(both, concurrency=3)
    assert services.found == dict.fromkeys(KEYS, 2)


def test_a_result_reads_the_same_before_and_after(work: Work) -> None:
    def is_list(record: Record) -> bool:
        return record.once("find", lambda: (1, 2)) == [1, 2]

    go_through(work.records(["ada"]), is_list)
    assert work.records(["ada"]).results() == [True]


def test_a_step_without_a_json_result_fails_its_record(work: Work) -> None:
    go_through(work.records(["ada"], max_failed=1.0), lambda record: record.once("find", object))
    assert work.statuses() == {"ada": RecordStatus.FAILED}
