"""Campaigns: the store has those of each code location as last defined."""

from dataclasses import replace

from dagster_tidegate.store import campaigns, heartbeats
from dagster_tidegate.store.campaigns import CampaignSpec, Trigger
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.takeovers import TakeoverKind
from tests.support.clock import Clock


def test_campaigns_are_kept_as_they_are_and_those_of_other_locations_stay(
    store: Store, clock: Clock
):
    trigger = Trigger(TakeoverKind.SCHEDULE, "nightly", "selector", runs_by_default=True)
    letters = CampaignSpec("letters", "here", "all", 3, {"send": "mail"}, (trigger,))
    digest = CampaignSpec("digest", "here", "none")
    other = CampaignSpec("other", "there", "latest", ops={"ask": "maps"})
    with store.begin() as conn:
        campaigns.save(conn, clock(), "there", [other])
        campaigns.save(conn, clock(), "here", [letters, digest])
        assert campaigns.read(conn) == [digest, letters, other]
        changed = replace(letters, ops={"send": "mail+maps"}, triggers=())
        campaigns.save(conn, clock(), "here", [changed])
        assert campaigns.read(conn) == [changed, other]
        campaigns.save(conn, clock(), "here", [])
        assert campaigns.read(conn) == [other]


def test_what_an_adopted_pool_stands_for_is_kept_and_known_to_all_locations(
    store: Store, clock: Clock
):
    here = CampaignSpec(
        "letters",
        "here",
        "none",
        ops={"a": "api"},
        adopted={"api": frozenset({"mail", "crm"})},
        assets={"a": frozenset({"one", "two:check"})},
    )
    there = CampaignSpec("trips", "there", "none", ops={"a": "api", "b": "maps"})
    with store.begin() as conn:
        campaigns.save(conn, clock(), "here", [here])
        campaigns.save(conn, clock(), "there", [there])
        assert campaigns.read(conn) == [here, there]
        rows = conn.execute(campaigns.ADOPTED).mappings()
        assert campaigns.by_pool(rows) == {"api": {"mail", "crm"}}
    assert here.services(["mail", "maps"]) == {"mail"}


def test_ops_whose_paths_are_long_and_begin_alike_are_kept(store: Store, clock: Clock) -> None:
    level = "level_" + "x" * 100
    paths = {f"{'.'.join([level] * 6)}.{op}": "mail" for op in ("send", "load")}
    with store.begin() as conn:
        campaigns.save(conn, clock(), "here", [CampaignSpec("letters", "here", "none", ops=paths)])
        [spec] = campaigns.read(conn)
    assert len(spec.ops) == 2
    assert set(spec.ops.values()) == {"mail"}


def test_a_campaign_has_owners_and_a_location_can_be_forgotten(store: Store, clock: Clock) -> None:
    spec = CampaignSpec("letters", "here", "none", owners=frozenset({"ana", "bo"}))
    with store.begin() as conn:
        campaigns.save(conn, clock(), "here", [spec])
        heartbeats.beat(conn, clock(), location="here", part=heartbeats.PAUSE, summary="ok")
        assert campaigns.find(conn, "letters") == spec
        assert campaigns.find(conn, "digest") is None
        assert campaigns.defined_at(conn) == {"here": clock()}
        assert campaigns.forget(conn, clock(), "here", actor="ana") == ["letters"]
        assert campaigns.read(conn) == []
        assert heartbeats.read(conn) == []
