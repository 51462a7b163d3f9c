"""Holds over the API: what is asked for is then in the database."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.holds import Hold
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import breakers, campaigns, history, holds, idempotency, runs
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.history import Event
from tests.integration.api import Api, api
from tests.support.clock import Clock
from tests.support.databases import both_databases
from tests.support.denied import deny

SHAPES = [
    CampaignSpec("digest", "here", "none", ops={"write": "openai", "find": "apollo"}),
    CampaignSpec("finder", "here", "none", ops={"find": "apollo"}),
    CampaignSpec("outreach", "here", "latest", priority=5, ops={"send": "instantly@outreach"}),
]


@pytest.fixture
def asked(store: Store) -> Iterator[Api]:
    with store.begin() as conn:
        now = store.now(conn)
        breakers.ensure(conn, now, ["apollo", "instantly", "openai"])
        campaigns.save(conn, now, "here", SHAPES)
        for partition in ("mon", "tue"):
            runs.create(conn, now, "digest", partition, actor="gate")
    with api(store) as asked:
        yield asked


def live(store: Store) -> dict[str, Hold]:
    with store.read() as conn:
        return {str(hold.target): hold for hold in holds.live(conn, store.now(conn))}


def last_event(store: Store) -> Event:
    with store.read() as conn:
        return history.read(conn, limit=1)[0]


@pytest.mark.parametrize("kind", ["service", "campaign"])
def test_what_is_held_is_paused_until_it_is_released(asked: Api, store: Store, kind: str) -> None:
    path, name = {
        "service": ("/services/openai", "openai"),
        "campaign": ("/campaigns/digest", "digest"),
    }[kind]
    answer = asked.post(f"{path}/hold", {"reason": "quota", "for_seconds": 7200})
    held = live(store)[f"{kind} {name}"]
    assert (held.reason, held.actor, held.id) == ("quota", "ana", answer["hold"]["id"])
    assert held.expires_at == held.placed_at + timedelta(hours=2)
    event = last_event(store)
    assert (event.kind, event.to_status, event.actor) == ("hold", "placed", "ana")
    assert event.address == "127.0.0.1"
    assert asked.get("/campaigns/digest")["why"]["paused"]
    assert not asked.get("/campaigns/finder")["why"]["paused"]

    released = asked.post(f"{path}/release")
    assert [hold["id"] for hold in released["released"]] == [held.id]
    assert released["released"][0]["released_by"] == "ana"
    assert live(store) == {}
    assert asked.get("/campaigns/digest")["status"] == "running"
    assert asked.get(f"/holds/{held.id}")["released_at"] is not None


def test_holding_and_releasing_again_is_harmless(asked: Api, store: Store) -> None:
    first = asked.post("/campaigns/digest/hold", {"reason": "new copy"})
    assert asked.post("/campaigns/digest/hold", {"reason": "new copy"}) == first
    changed = asked.post("/campaigns/digest/hold", {"reason": "newer copy"})
    assert changed["hold"]["id"] == first["hold"]["id"]
    assert live(store)["campaign digest"].reason == "newer copy"
    asked.post("/campaigns/digest/release")
    assert asked.post("/campaigns/digest/release")["released"] == []


def test_a_dry_run_says_what_it_would_do_and_changes_nothing(asked: Api, store: Store) -> None:
    before = last_event(store)
    would = asked.post("/services/apollo/hold", {"reason": "quota"}, dry_run=True)
    assert would["dry_run"]
    assert [each["campaign"] for each in would["campaigns"]] == ["digest", "finder"]
    assert all(each["held_after"] for each in would["campaigns"])
    for path in ("hold", "release"):
        body = {"reason": "quota"} if path == "hold" else None
        assert asked.post(f"/services/apollo/campaigns/{path}", body, dry_run=True)["dry_run"]
    run = asked.post("/campaigns/digest/runs/mon/pause", {"reason": "look"}, dry_run=True)
    assert [each["run"] for each in run["campaigns"]] == ["digest/mon"]
    assert live(store) == {}
    assert last_event(store) == before

    asked.post("/services/apollo/hold", {"reason": "quota"})
    asked.post("/campaigns/digest/hold", {"reason": "new copy"})
    would = asked.post("/services/apollo/release", dry_run=True)
    digest, finder = would["campaigns"]
    assert [hold["reason"] for hold in digest["still_held_by"]] == ["new copy"]
    assert (digest["held_after"], finder["held_after"]) == (True, False)
    assert set(live(store)) == {"service apollo", "campaign digest"}


def test_all_campaigns_that_need_a_service_are_held_and_released_together(
    asked: Api, store: Store
) -> None:
    answer = asked.post("/services/apollo/campaigns/hold", {"reason": "audit"})
    assert {hold["target_name"] for hold in answer["holds"]} == {"digest", "finder"}
    assert set(live(store)) == {"campaign digest", "campaign finder"}
    answer = asked.post("/services/apollo/campaigns/release")
    assert {hold["target_name"] for hold in answer["released"]} == {"digest", "finder"}
    assert live(store) == {}


def test_anything_can_be_held_and_a_hold_released_by_its_number(asked: Api, store: Store) -> None:
    for kind, name in [
        ("everything", ""),
        ("service", "not called yet"),
        ("campaign_run", "digest/next month"),
    ]:
        body = {"target_kind": kind, "target_name": name, "reason": "storm"}
        hold = asked.post("/holds", body)["hold"]
        assert (hold["target_kind"], hold["target_name"]) == (kind, name)
    assert set(live(store)) == {
        "everything", "service not called yet", "campaign run digest/next month"
    }  # fmt: skip
    listed = asked.get("/holds")["items"]
    assert len(listed) == 3
    assert asked.get("/holds", target_kind="everything")["items"] == listed[-1:]
    for hold in listed:
        released = asked.post(f"/holds/{hold['id']}/release")
        assert released["released_by"] == "ana"
        assert asked.post(f"/holds/{hold['id']}/release") == released
    assert live(store) == {}


def test_a_breakers_hold_needs_force_which_closes_the_breaker(asked: Api, store: Store) -> None:
    fleet = Fleet(SqlBackend(store), [ServicePolicy(name="openai")])
    try:
        for release in ("/services/openai/release", "/holds/{}/release"):
            fleet.breaker("openai").open()
            path = release.format(live(store)["service openai"].id)
            problem = asked.post(path, expect=409)
            assert problem["code"] == "held_by_breaker"
            assert "opened by hand" in problem["detail"]
            assert live(store)
            asked.post(path, {"force": True})
            assert fleet.refresh().services["openai"].state is BreakerState.CLOSED
            assert live(store) == {}
    finally:
        fleet.close()


def test_a_breaker_is_kept_closed_until_its_expiry_or_until_it_may_trip_again(
    asked: Api, store: Store, clock: Clock
) -> None:
    path = "/services/openai/keep-closed"
    body = {"reason": "429s are expected", "for_seconds": 3600}
    fleet = Fleet(SqlBackend(store), [ServicePolicy(name="openai")])
    try:
        fleet.breaker("openai").open()
        would = asked.send("PUT", path, body, dry_run=True)
        assert (would["dry_run"], would["service"]["state"]) == (True, "closed")
        assert [each["campaign"] for each in would["campaigns"]] == ["digest"]
        [digest] = would["campaigns"]
        assert (digest["held_before"], digest["held_after"]) == (True, False)
        assert set(live(store)) == {"service openai"}
        kept = asked.send("PUT", path, body)
        assert (kept["dry_run"], kept["campaigns"]) == (False, None)
        service = kept["service"]
        assert (service["state"], service["kept_closed_by"]) == ("closed", "ana")
        until = clock().replace(microsecond=0) + timedelta(hours=1)
        assert service["kept_closed_until"] == until.isoformat().replace("+00:00", "Z")
        assert live(store) == {}
        # Again with another expiry, then without.
        assert asked.send("PUT", path, {**body, "for_seconds": 60})["service"]["kept_closed_until"]
        forever = asked.send("PUT", path, {"reason": "429s are expected"})["service"]
        assert (forever["kept_closed_by"], forever["kept_closed_until"]) == ("ana", None)
        asked.send("DELETE", path, dry_run=True)
        assert asked.get("/services/openai")["kept_closed_by"] == "ana"
        for _ in range(2):  # the second time is harmless
            assert asked.send("DELETE", path)["service"]["kept_closed_by"] is None
        fleet.refresh()
        fleet.breaker("openai").open()
        assert set(live(store)) == {"service openai"}
    finally:
        fleet.close()
    over = {"reason": "x", "expires_at": "2020-01-01T00:00:00Z"}
    assert asked.send("PUT", path, over, expect=422)["code"] == "invalid"
    assert asked.send("PUT", path, {}, expect=422)["code"] == "invalid"
    for method in ("PUT", "DELETE"):
        wrong = "/services/opnai/keep-closed"
        problem = asked.send(method, wrong, body if method == "PUT" else None, expect=404)
        assert problem["code"] == "service_not_found"
        assert "did you mean openai" in problem["detail"]


def test_what_is_not_there_is_404_with_what_would_be_right(asked: Api, store: Store) -> None:
    for path, code, says in [
        ("/services/opnai/hold", "service_not_found", "did you mean openai"),
        ("/campaigns/digst/hold", "campaign_not_found", "did you mean digest"),
        ("/campaigns/digest/runs/mo/pause", "campaign_run_not_found", "did you mean mon"),
        ("/services/opnai/campaigns/hold", "service_not_found", "did you mean openai"),
        ("/holds/99/release", "hold_not_found", "there is no hold 99"),
    ]:
        body = None if path.endswith("release") else {"reason": "x"}
        problem = asked.post(path, body, expect=404)
        assert (problem["code"], says in problem["detail"]) == (code, True), problem
    assert live(store) == {}


def test_a_hold_that_can_t_be_meant_is_refused_and_says_where(asked: Api, store: Store) -> None:
    far = "2099-01-01T00:00:00"
    for body, where in [
        ({}, "body.reason"),
        ({"reason": " "}, "body.reason"),
        ({"reason": "a\nb"}, "body.reason"),
        ({"reason": "\u202eevil"}, "body.reason"),
        ({"reason": "a\0b"}, "body.reason"),
        ({"reason": "x" * 1001}, "body.reason"),
        ({"reason": 7}, "body.reason"),
        ({"reason": "x", "for_seconds": 0}, "body.for_seconds"),
        ({"reason": "x", "for_seconds": "60"}, "body.for_seconds"),
        ({"reason": "x", "for_seconds": 10**20}, "body.for_seconds"),
        ({"reason": "x", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"reason": "x", "expires_at": far}, "body.expires_at"),
        ({"reason": "x", "expires_at": 4102444800}, "body.expires_at"),
        ({"reason": "x", "expires_at": "9999-12-31T23:59:59-14:00"}, "body.expires_at"),
        ({"reason": "x", "until": "tomorrow"}, "body.until"),
        ({"reason": "x", "for_seconds": 60, "expires_at": f"{far}Z"}, "not both"),
    ]:
        problem = asked.post("/campaigns/digest/hold", body, expect=422)
        assert (problem["code"], where in problem["detail"]) == ("invalid", True), problem
    for kind, name in [
        ("everything", "x"),
        ("service", ""),
        ("campaign_run", "digest"),
        ("campaign", "a\nb"),
        ("campaign", "digest/mon"),
    ]:
        target = {"target_kind": kind, "target_name": name, "reason": "x"}
        assert asked.post("/holds", target, expect=422)["code"] == "invalid"
    assert live(store) == {}


@both_databases
def test_an_idempotency_key_makes_a_request_take_effect_once(
    asked: Api, store: Store, clock: Clock
) -> None:
    body = {"target_kind": "everything", "reason": "storm", "for_seconds": 600}
    key = {"Idempotency-Key": "3f0c"}
    first = asked.client.post("/api/v1/holds", json=body, headers=key)
    asked.post("/holds/1/release")
    again = asked.client.post("/api/v1/holds", json=body, headers=key)
    assert (again.status_code, again.json()) == (200, first.json())
    assert (first.headers.get("Idempotency-Replayed"), live(store)) == (None, {})
    assert again.headers["Idempotency-Replayed"] == "true"
    other = asked.post("/holds", {**body, "reason": "flood"}, expect=422, headers=key)
    assert other["code"] == "idempotency_key_reused"
    # It is the key of who sent it.
    asked.post("/holds", body, headers={**key, "X-Tidegate-Actor": "bo"})
    assert live(store)["everything"].actor == "bo"
    clock.advance(24 * 3600 + 1)
    asked.post("/holds", {**body, "reason": "flood"}, headers=key)
    assert live(store)["everything"].reason == "flood"


@both_databases
def test_a_server_that_dies_before_it_answers_leaves_neither_hold_nor_key(
    asked: Api, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"target_kind": "everything", "reason": "storm"}
    key = {"Idempotency-Key": "3f0c"}
    with monkeypatch.context() as dying:
        dying.setattr(idempotency, "answer", None)
        asked.post("/holds", body, expect=500, headers=key)
    assert live(store) == {}
    first = asked.post("/holds", body, headers=key)
    asked.post(f"/holds/{first['hold']['id']}/release")
    assert asked.post("/holds", body, headers=key) == first
    assert live(store) == {}


def test_a_refused_request_may_be_sent_again_with_its_key(asked: Api, store: Store) -> None:
    body = {"target_kind": "everything", "reason": "x", "expires_at": "2020-01-01T00:00:00Z"}
    for _ in range(2):
        problem = asked.post("/holds", body, expect=422, headers={"Idempotency-Key": "k"})
        assert problem["code"] == "invalid"
    assert live(store) == {}


@both_databases
def test_lists_are_cut_into_pages_that_miss_nothing(asked: Api, store: Store) -> None:
    with store.begin() as conn:
        now = store.now(conn)
        for number in range(7):
            runs.create(conn, now, "finder", f"p{number}", actor="gate")
    for path, name in [
        ("/campaigns", "name"),
        ("/services", "name"),
        ("/campaigns/finder/runs", "partition"),
        ("/events", "id"),
    ]:
        whole = [each[name] for each in asked.get(path, limit=1000)["items"]]
        found, cursor = [], {}
        while True:
            page = asked.get(path, limit=2, **cursor)
            found += [each[name] for each in page["items"]]
            assert len(page["items"]) <= 2
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert (found, len(found) > 2) == (whole, True), path
    foreign = asked.get("/campaigns", limit=2)["next_cursor"]
    for cursor in (foreign, "nonsense", "e30", "☃"):
        assert asked.get("/events", expect=422, cursor=cursor)["code"] == "invalid"


def test_lists_are_filtered(asked: Api, store: Store) -> None:
    asked.post("/campaigns/digest/hold", {"reason": "x"})
    with store.begin() as conn:
        now = store.now(conn)
        run = runs.find(conn, "digest", "mon")
        assert run is not None
        runs.move(conn, now, run, RunStatus.PAUSED, actor="gate")
    paused = asked.get("/campaigns", status="paused")["items"]
    assert [each["name"] for each in paused] == ["digest"]
    assert len(asked.get("/campaigns", service="apollo")["items"]) == 2
    assert [
        r["partition"] for r in asked.get("/campaigns/digest/runs", status="paused")["items"]
    ] == ["mon"]
    assert {e["kind"] for e in asked.get("/events", kind="hold")["items"]} == {"hold"}
    about = asked.get("/events", name="digest/mon")["items"]
    assert [event["to_status"] for event in about] == ["paused", "pending"]
    assert asked.get("/campaigns", expect=422, status="sleeping")["code"] == "invalid"


def test_a_part_of_a_service_is_held_and_released_like_a_service(asked: Api, store: Store) -> None:
    part = "/services/openai/batch"
    with store.begin() as conn:
        now = store.now(conn)
        breakers.ensure(conn, now, ["openai/batch"])
        spec = CampaignSpec("nightly", "there", "none", ops={"write": "openai/batch"})
        campaigns.save(conn, now, "there", [spec])
    assert asked.get(part)["campaigns"] == ["nightly"]
    assert asked.get("/services/openai")["campaigns"] == ["digest", "nightly"]

    asked.post(f"{part}/hold", {"reason": "quota"})
    assert list(live(store)) == ["service openai/batch"]
    assert asked.get("/campaigns/nightly")["why"]["paused"]
    assert not asked.get("/campaigns/digest")["why"]["paused"]
    assert asked.get(f"{part}/history")["items"][0]["name"] == "service openai/batch"
    asked.post(f"{part}/release")
    assert live(store) == {}

    asked.post("/services/openai/hold", {"reason": "quota"})
    assert asked.get("/campaigns/nightly")["why"]["paused"]
    asked.post("/services/openai/release")

    asked.send("PUT", f"{part}/keep-closed", {"reason": "ours"})
    assert asked.get(part)["kept_closed_by"] == "ana"
    assert asked.get("/services/openai")["kept_closed_by"] is None
    asked.send("DELETE", f"{part}/keep-closed")

    answer = asked.post(f"{part}/campaigns/hold", {"reason": "audit"})
    assert [hold["target_name"] for hold in answer["holds"]] == ["nightly"]
    answer = asked.post(f"{part}/campaigns/release")
    assert [hold["target_name"] for hold in answer["released"]] == ["nightly"]


def test_a_repaired_service_is_tried_and_any_other_is_refused(asked: Api, store: Store) -> None:
    deny(store, "apollo")
    shown = asked.get("/services/apollo")
    assert (shown["state"], shown["cause"], shown["answer"]) == ("open", "denied", "invalid key")
    assert (shown["not_probed_before"], shown["why"]["retry_at"]) == (None, None)
    assert shown["remedy"] == "tidegate services repaired apollo"
    assert shown["why"]["holds"][0]["remedy"] == shown["remedy"]

    path = "/services/apollo/repaired"
    would = asked.post(path, dry_run=True)
    assert (would["dry_run"], would["service"]["state"]) == (True, "half_open")
    assert asked.get("/services/apollo")["state"] == "open"
    assert asked.post(path, {"reason": "new key"})["service"]["state"] == "half_open"
    event = last_event(store)
    assert (event.name, event.to_status) == ("apollo", "half_open")
    assert (event.reason, event.actor) == ("new key", "ana")

    again = asked.post(path, expect=409)
    assert (again["code"], "is half open" in again["detail"]) == ("not_denied", True)
    assert asked.post("/services/openai/repaired", expect=409)["code"] == "not_denied"
    assert asked.post("/services/opnai/repaired", expect=404)["code"] == "service_not_found"


def test_a_maintenance_window_is_added_and_removed(asked: Api, store: Store) -> None:
    body = {"cron": "0 2 * * SUN", "duration_s": 7200, "reason": "their upgrade"}
    for dry_run in ("true", "false"):
        answer = asked.post("/services/openai/windows", body, dry_run=dry_run)
        [added] = answer["windows"]
        assert (added["service"], added["location"], added["timezone"]) == ("openai", "", "UTC")
        coming = asked.get("/services/openai")["windows"]
        assert [window["cron"] for window in coming] == ["0 2 * * SUN"] * (dry_run == "false")
    event = last_event(store)
    assert (event.kind, event.name, event.to_status) == ("window", "openai", "added")
    wrong = {**body, "cron": "0 25 * * *"}
    problem = asked.post("/services/openai/windows", wrong, expect=422)
    assert "not a cron expression" in problem["detail"]
    [removed] = asked.send("DELETE", "/services/openai/windows")["windows"]
    assert removed["reason"] == "their upgrade"
    assert asked.send("DELETE", "/services/openai/windows")["windows"] == []
    assert asked.get("/services/openai")["windows"] == []
