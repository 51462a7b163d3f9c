"""A code location that is gone for good is forgotten."""

import json
from datetime import timedelta

import pytest

from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import campaigns, heartbeats, runs, takeovers
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.takeovers import Take, TakeoverKind
from tests.integration.conftest import Run
from tests.support.databases import both_databases

pytestmark = pytest.mark.database_time


@pytest.fixture
def old(store: Store) -> None:
    """A location whose gate fell silent long ago, beside one at work."""
    with store.begin() as conn:
        now = store.now(conn)
        for location, at in (("old", now - timedelta(days=3)), ("new", now)):
            spec = CampaignSpec(f"{location}_letters", location, "none", owners=frozenset("a"))
            campaigns.save(conn, now, location, [spec])
            for part in heartbeats.PARTS:
                heartbeats.beat(conn, at, location=location, part=part, summary="")
        conn.execute(
            t.campaign_runs.insert().values(
                campaign="old_letters",
                partition="monday",
                status=RunStatus.COMPLETED,
                created_at=now,
                changed_at=now,
            )
        )


@both_databases
@pytest.mark.usefixtures("old")
def test_a_location_is_forgotten_and_its_gate_not_stale_any_more(run: Run, store: Store) -> None:
    assert json.loads(run("status", "--json").output)["gate_stale"] is True
    done = run("store", "forget", "old", "--yes", "--actor", "ana")
    assert (done.exit_code, done.output) == (0, "forgot old and its campaigns: old_letters\n")
    seen = json.loads(run("status", "--json").output)
    assert seen["gate_stale"] is False
    assert [each["name"] for each in seen["campaigns"]] == ["new_letters"]
    assert {part["location"] for part in seen["gate"]} == {"new"}
    with store.read() as conn:
        assert runs.find(conn, "old_letters", "monday") is not None
    [event] = json.loads(run("history", "--kind", "location", "--json").output)
    assert (event["name"], event["to_status"], event["actor"]) == ("old", "forgotten", "ana")
    assert event["before"] == {"campaigns": ["old_letters"]}


@pytest.mark.usefixtures("old")
def test_what_the_gate_of_a_forgotten_location_took_over_is_left_to_the_others(
    run: Run, store: Store
) -> None:
    with store.begin() as conn:
        for kind, name in ((TakeoverKind.POOL, "mail"), (TakeoverKind.SCHEDULE, "daily")):
            take = Take(kind, name, name, campaign=None, location="old", former="5", set_to="0")
            takeovers.take(conn, store.now(conn), [take], newest=takeovers.newest_id(conn))
    run("store", "forget", "old", "--yes")
    with store.read() as conn:
        [pool] = takeovers.live(conn)
    assert (pool.name, pool.location, pool.former) == ("mail", "", "5")


def test_runs_of_a_campaign_without_a_definition_are_cancelled(run: Run, store: Store) -> None:
    with store.begin() as conn:
        now = store.now(conn)
        campaigns.save(conn, now, "new", [CampaignSpec("letters", "new", "none")])
        for campaign in ("old_letters", "letters"):
            monday = runs.ensure(conn, now, campaign, "monday")
            runs.begin_attempt(conn, now, monday, f"{campaign}-1", owner_is_over=True)
            monday = runs.ensure(conn, now, campaign, "monday")
            runs.move(conn, now, monday, RunStatus.PAUSED, actor="run")
    [left] = json.loads(run("status", "--json").output)["leftovers"]
    assert left["do"] == "tidegate runs cancel old_letters"
    assert "To clear it: tidegate runs cancel old_letters" in " ".join(run("status").output.split())
    assert "name a run of it" in run("runs", "cancel", "letters").output
    would = run("runs", "cancel", "old_letters", "--dry-run").output
    assert would == "would be cancelled: old_letters/monday\n"
    assert run("runs", "cancel", "old_letters").output == "cancelled: old_letters/monday\n"
    assert json.loads(run("status", "--json").output)["leftovers"] == []
    run("runs", "cancel", "letters/monday", "--actor", "ana")
    with store.read() as conn:
        for campaign in ("old_letters", "letters"):
            monday = runs.find(conn, campaign, "monday")
            assert monday is not None
            assert monday.status is RunStatus.CANCELLED
    again = run("runs", "cancel", "letters/monday")
    assert (again.exit_code, "letters/monday is cancelled" in again.output) == (1, True)


@pytest.mark.usefixtures("old")
def test_a_location_at_work_or_unknown_is_not_forgotten(run: Run) -> None:
    refused = run("store", "forget", "new", "--yes")
    assert (refused.exit_code, "the gate of new is running" in refused.output) == (1, True)
    unknown = run("store", "forget", "olf", "--yes")
    assert (unknown.exit_code, "did you mean old?" in unknown.output) == (1, True)
    assert len(json.loads(run("status", "--json").output)["campaigns"]) == 2
