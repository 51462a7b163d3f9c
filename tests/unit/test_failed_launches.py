"""When a run that could not be started is requested again."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.storage.tags import RUN_KEY_TAG

from dagster_tidegate.dagster_api.lineage import PARTITION_TAG, request_key
from dagster_tidegate.dagster_api.runs import Runs
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


# --- which runs of Dagster they are ---------------------------------------------------------------


class Requests:
    """The runs that the gate requested of an instance, one after another."""

    def __init__(self) -> None:
        self.instance = dg.DagsterInstance.ephemeral()
        self.number = 0

    def create(self, *assets: str, partition: str = "d1", by_gate: bool = True) -> dg.DagsterRun:
        self.number += 1
        tags = {PARTITION_TAG: partition}
        if by_gate:
            tags[RUN_KEY_TAG] = request_key(7, self.number)
        run_id = f"00000000-0000-0000-0000-{self.number:012}"
        run = dg.DagsterRun(
            "__ASSET_JOB", run_id, asset_selection=frozenset(map(dg.AssetKey, assets)), tags=tags
        )
        self.instance.add_run(run)
        return run

    def fail_to_launch(self, *assets: str, partition: str = "d1") -> dg.DagsterRun:
        run = self.create(*assets, partition=partition)
        self.instance.report_run_failed(run, "its code server restarts")
        return run

    def failures(self, run: dg.DagsterRun) -> int:
        return len(Runs(self.instance).failed_launches(run, MAX_IN_A_ROW))


@pytest.mark.parametrize("launches", [True, False], ids=["starts", "fails to start"])
def test_a_run_of_other_assets_of_the_partition_neither_ends_nor_extends_the_count(
    launches: bool,
) -> None:
    requests = Requests()
    first = requests.fail_to_launch("letters")
    others = requests.create("places") if launches else requests.fail_to_launch("places")
    if launches:
        requests.instance.report_dagster_event(
            dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, others.job_name, message=""),
            others.run_id,
        )
    last = requests.fail_to_launch("letters")
    assert requests.failures(last) == 2
    assert requests.failures(others) == (0 if launches else 1)
    assert requests.failures(first) == 2


def test_the_count_ends_at_a_run_of_the_same_campaign_run_that_the_gate_did_not_request() -> None:
    requests = Requests()
    requests.fail_to_launch("letters")
    by_hand = requests.create("letters", by_gate=False)
    requests.instance.report_run_failed(by_hand, "its code server restarts")
    assert requests.failures(requests.fail_to_launch("letters")) == 1
    assert requests.failures(requests.fail_to_launch("letters", partition="d2")) == 1
