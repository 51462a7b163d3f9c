"""Backfills of a campaign, in the midst of which a service fails."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.deployment.gate_stage import LOCATION, REPOSITORY, Stage, gate_stage

# A busy machine makes real processes many times slower.
pytestmark = pytest.mark.timeout(600)
RECORDS = 20
LAUNCH = """
mutation ($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }
} }
"""
LOOK = """
query ($id: String!) { partitionBackfillOrError(backfillId: $id) {
  ... on PartitionBackfill { status partitionStatuses { results { partitionName runStatus } } }
} }
"""


def launch(stage: Stage, *partitions: str) -> str:
    """Launch a backfill of letters, as its page does, and return its id."""
    repository = {"repositoryLocationName": LOCATION, "repositoryName": REPOSITORY}
    selector = {"partitionSetName": "letters_partition_set", "repositorySelector": repository}
    params = {"selector": selector, "partitionNames": partitions}
    answer = stage.graphql(LAUNCH, params=params)
    assert answer["__typename"] == "LaunchBackfillSuccess", answer
    return answer["backfillId"]


def page(stage: Stage, backfill: str) -> tuple[str, Mapping[str, str]]:
    """Return the status of a backfill and those of its partitions, as its page shows them."""
    answer = stage.graphql(LOOK, id=backfill)
    results = answer["partitionStatuses"]["results"]
    return answer["status"], {found["partitionName"]: found["runStatus"] for found in results}


def test_backfills_go_on_after_an_outage_and_their_pages_stay_true(tmp_path: Path):
    home = tmp_path / "home"
    with gate_stage(home, f"sqlite:///{home / 'tidegate.db'}", records=RECORDS) as stage:
        before = stage.settings()
        broken_off = launch(stage, "0", "1")
        stage.wait(lambda: stage.sandbox.stats()["openai"]["effects"] > 4, "openai is called")
        stage.outage("openai")
        stage.wait(lambda: not stage.at_work(), "no run works any more")
        assert "CANCELED" in page(stage, broken_off)[1].values()

        held = launch(stage, "2", "3")
        stage.wait(
            lambda: page(stage, held) == ("REQUESTED", {"2": "QUEUED", "3": "QUEUED"}),
            "a backfill goes on enqueueing, and the queue holds",
        )
        stage.heal("openai")
        for backfill, partitions in ((broken_off, ("0", "1")), (held, ("2", "3"))):
            done = ("COMPLETED_SUCCESS", dict.fromkeys(partitions, "SUCCESS"))
            stage.wait(lambda b=backfill, d=done: page(stage, b) == d, f"{done}: the page says so")
            for partition in partitions:
                last = stage.runs_of("letters", partition)[-1]
                assert last.tags["dagster/backfill"] == backfill
                assert set(stage.arrived("letters", partition).values()) == {1}
                assert len(stage.arrived("letters", partition)) == RECORDS
        stage.settle()
        assert stage.settings() == before
        assert stage.sent_twice() == {}
