"""Two code locations share a service: two code servers, one daemon, one store."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from dagster_tidegate.statuses import RunStatus
from tests.deployment.gate_stage import OTHER_LOCATION, Stage, gate_stage

# A busy machine makes real processes many times slower.
pytestmark = pytest.mark.timeout(600)
RECORDS = 100
LATENCY_S = 0.05
PAUSED_ONCE = [RunStatus.PAUSED, RunStatus.COMPLETED]
TRIGGERS = ("letters_schedule", "new_letters", "reviews_schedule", "new_reviews")
# Long enough for many ticks of the gate, in which it could do what it should not.
TICKS = timedelta(seconds=2)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    home = tmp_path / "home"
    url = f"sqlite:///{home / 'tidegate.db'}"
    with gate_stage(home, url, records=RECORDS, latency_s=LATENCY_S, two_locations=True) as stage:
        yield stage


@pytest.mark.filterwarnings("ignore:Error loading repository location")
def test_a_trip_in_one_location_pauses_all_and_each_gate_frees_its_own(stage: Stage):
    before = stage.settings()
    ours = stage.launch("essays", "0")
    stage.wait(lambda: stage.sandbox.stats()["openai"]["effects"] > 4, "openai is called")
    stage.outage("openai")
    stage.wait(lambda: stage.is_paused(ours), "what trips is paused")
    # The other location never had a failed call: it knows from the first.
    theirs = stage.launch("reviews", "0", OTHER_LOCATION)
    for trigger in TRIGGERS:
        stage.wait(
            lambda trigger=trigger: stage.settings().triggers[trigger] == "STOPPED",
            f"{trigger} has stopped",
        )
    assert stage.settings().triggers["notices_schedule"] == "RUNNING", "it does not need openai"
    assert stage.pools()["openai"] == stage.pools()["openai@reviews"] == "0"
    stopped_at = stage.now()
    stage.wait(lambda: stage.ticked_since(stopped_at + TICKS), "both gates have looked again")
    assert stage.status(theirs) == "QUEUED"

    stage.heal("openai")
    stage.settle()
    assert stage.settings() == before
    assert stage.outcomes("essays", "0") == PAUSED_ONCE
    assert stage.outcomes("reviews", "0") == [RunStatus.COMPLETED]

    # Now the code server of the other location is away while the service recovers.
    stage.launch("reviews", "1", OTHER_LOCATION)
    stage.wait(lambda: stage.campaign_run("reviews", "1") == "processing", "reviews are at work")
    stage.outage("openai")
    stage.wait(lambda: stage.campaign_run("reviews", "1") == "paused", "reviews pause")
    for trigger in TRIGGERS:
        stage.wait(
            lambda trigger=trigger: stage.settings().triggers[trigger] == "STOPPED",
            f"{trigger} has stopped",
        )
    stage.launch("essays", "1")
    stage.kill("other_code")
    stage.heal("openai")
    stage.wait(lambda: stage.campaign_run("essays", "1") == "completed", "essays go on")
    for name in ("letters_schedule", "new_letters"):
        stage.wait(
            lambda name=name: stage.settings().triggers[name] == before.triggers[name],
            f"{name} is as it was",
        )
    assert stage.settings().triggers["new_reviews"] == "STOPPED"
    assert stage.campaign_run("reviews", "1") == "paused"

    stage.start_code(OTHER_LOCATION)
    stage.settle()
    assert stage.settings() == before
    assert stage.outcomes("reviews", "1") == PAUSED_ONCE
    assert stage.sandbox.stats()["openai"]["effects"] == 4 * RECORDS
    assert stage.sent_twice() == {}
