"""Every change is written down: who, from where, and what it was before and became."""

from collections.abc import Iterator
from typing import Any

import pytest

from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.store import breakers, campaigns, holds, runs, tokens
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.tokens import Role
from tests.integration.api import Api, api
from tests.support.databases import both_databases

PARTITION = "leads-1"


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = Store(store_url)
    spec = CampaignSpec("outreach", "here", "none", ops={"send": "instantly"})
    with store.begin() as conn:
        now = store.now(conn)
        breakers.ensure(conn, now, ["instantly"])
        campaigns.save(conn, now, "here", [spec])
        runs.create(conn, now, "outreach", PARTITION, waits_for_start=True, actor="tests")
    yield store
    store.dispose()


@pytest.fixture
def server(store: Store) -> Iterator[Api]:
    with store.begin() as conn:
        secret = tokens.create(conn, store.now(conn), "root", Role.ADMIN, actor="tests")[1]
    with api(store) as found:
        found.client.headers["Authorization"] = f"Bearer {secret}"
        yield found


def newest(server: Api) -> dict[str, Any]:
    return server.get("/events", limit=1)["items"][0]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/holds", {"target_kind": "everything", "reason": "storm"}),
        ("/services/instantly/hold", {"reason": "storm"}),
        ("/services/instantly/campaigns/hold", {"reason": "storm"}),
        ("/campaigns/outreach/hold", {"reason": "storm"}),
        (f"/campaigns/outreach/runs/{PARTITION}/pause", {"reason": "storm"}),
    ],
)
def test_a_hold_is_written_down_when_it_is_placed_changed_and_released(
    server: Api, path: str, body: dict[str, Any]
) -> None:
    server.post(path, body)
    placed = newest(server)
    assert (placed["actor"], placed["address"]) == ("root", "127.0.0.1")
    assert (placed["to_status"], placed["before"]) == ("placed", None)
    as_placed = placed["after"]
    assert (as_placed["actor"], as_placed["reason"], as_placed["source"]) == (
        *("root", "storm"),
        "operator",
    )
    server.post(path, {**body, "reason": "flood", "for_seconds": 60})
    changed = newest(server)
    assert (changed["to_status"], changed["before"]) == ("changed", as_placed)
    assert changed["after"]["reason"] == "flood"
    assert changed["after"]["expires_at"] is not None
    server.post(f"/holds/{as_placed['hold']}/release")
    released = newest(server)
    assert (released["to_status"], released["actor"]) == ("released", "root")
    assert (released["address"], released["before"]) == ("127.0.0.1", changed["after"])


def test_a_release_by_force_says_whose_hold_it_was(server: Api, store: Store) -> None:
    with store.begin() as conn:
        target = Target(TargetKind.SERVICE, "instantly")
        now = store.now(conn)
        holds.place(conn, now, target, source=HoldSource.BREAKER, reason="503 x5", actor="breaker")
        conn.execute(
            t.services.update().values(state="open", generation=1, opened_at=now, reason="503 x5")
        )
    server.post("/services/instantly/release", {"force": True})
    told = {each["kind"]: each for each in server.get("/events", limit=2)["items"]}
    hold, service = told["hold"], told["service"]
    assert (hold["to_status"], hold["actor"]) == ("released_by_force", "root")
    assert (hold["before"]["actor"], hold["before"]["reason"]) == ("breaker", "503 x5")
    assert (service["from_status"], service["to_status"]) == ("open", "closed")
    assert {each["address"] for each in told.values()} == {"127.0.0.1"}
    assert service["actor"] == "root"


@both_databases
def test_a_campaign_run_that_is_created_and_cancelled_is_written_down(server: Api) -> None:
    server.post("/campaigns/outreach/runs", {"partition": "leads-2"}, expect=201)
    created = newest(server)
    assert (created["name"], created["actor"]) == ("outreach/leads-2", "root")
    assert created["address"] == "127.0.0.1"
    server.post("/campaigns/outreach/runs/leads-2/cancel", expect=202)
    told = server.get("/events", name="outreach/leads-2", limit=2)["items"]
    assert {(each["actor"], each["address"]) for each in told} == {("root", "127.0.0.1")}
    assert (told[0]["from_status"], told[0]["to_status"]) == ("pending", "cancelled")


def test_a_dry_run_and_a_refusal_leave_no_trace(server: Api) -> None:
    before = newest(server)["id"]
    server.post("/holds", {"target_kind": "everything", "reason": "storm"}, dry_run=True)
    server.post("/holds", {"target_kind": "everything", "reason": " "}, expect=422)
    server.post("/services/nothing/release", expect=404)
    assert newest(server)["id"] == before


def test_who_keeps_a_breaker_closed_over_the_api_is_written_down(server: Api) -> None:
    path = "/services/instantly/keep-closed"
    server.send("PUT", path, {"reason": "429s are expected", "for_seconds": 60})
    server.send("DELETE", path)
    ended, began = server.get("/events", limit=2)["items"]
    assert (began["actor"], began["reason"]) == ("root", "429s are expected")
    assert (began["before"], began["address"]) == (None, "127.0.0.1")
    assert began["after"]["kept_closed_by"] == "root"
    assert began["after"]["kept_closed_until"] is not None
    assert (ended["actor"], ended["before"], ended["after"]) == ("root", began["after"], None)


def test_who_keeps_a_breaker_closed_is_written_down(server: Api, store: Store) -> None:
    with store.begin() as conn:
        breakers.keep_closed(conn, store.now(conn), "instantly", actor="ana")
        breakers.let_trip(conn, store.now(conn), "instantly", actor="bo")
    ended, began = server.get("/events", limit=2)["items"]
    kept = {"kept_closed_by": "ana", "kept_closed_until": None}
    assert (began["before"], began["after"], began["address"]) == (None, kept, None)
    assert (ended["before"], ended["after"], ended["actor"]) == (kept, None, "bo")
