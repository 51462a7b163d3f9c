"""Campaign runs over the API: what is in the store, with no Dagster beside it."""

import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from urllib.parse import quote

import pytest

from dagster_tidegate.control import operations
from dagster_tidegate.dagster_api.launch import WorkspaceLauncher
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.statuses import UNFINISHED, RunStatus
from dagster_tidegate.store import breakers, campaigns, heartbeats, holds, idempotency, runs
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.text import MAX_NAME, MAX_PART
from tests.integration.api import Api, api
from tests.support.clock import Clock
from tests.support.databases import both_databases

ODD = ["a/b", "a/start", "ü ☃", "50%", "a?b#c", "x&y=z", "..", "a//b", "'; DROP TABLE holds; --"]


@pytest.fixture
def asked(store: Store) -> Iterator[Api]:
    with store.begin() as conn:
        now = store.now(conn)
        breakers.ensure(conn, now, ["openai"])
        spec = CampaignSpec("digest", "here", "none", priority=3, ops={"write": "openai"})
        campaigns.save(conn, now, "here", [spec])
    with api(store) as asked:
        yield asked


def found(store: Store, partition: str = "mon") -> CampaignRun:
    with store.read() as conn:
        run = runs.find(conn, "digest", partition)
    assert run is not None
    return run


def set_status(store: Store, status: RunStatus, partition: str = "mon") -> None:
    """Bring a campaign run to a status, by the moves that are allowed."""
    ways = {
        RunStatus.PENDING: [],
        RunStatus.PROCESSING: [RunStatus.PROCESSING],
        RunStatus.PAUSED: [RunStatus.PAUSED],
        RunStatus.COMPLETED: [RunStatus.PROCESSING, RunStatus.COMPLETED],
        RunStatus.FAILED: [RunStatus.PROCESSING, RunStatus.FAILED],
        RunStatus.CANCELLED: [RunStatus.CANCELLED],
    }
    with store.begin() as conn:
        runs.ensure(conn, store.now(conn), "digest", partition)
    for step in ways[status]:
        with store.begin() as conn:
            run = runs.find(conn, "digest", partition)
            assert run is not None
            assert runs.move(conn, store.now(conn), run, step, actor="tests")


def test_a_campaign_run_is_created_and_waits_for_its_start(asked: Api, store: Store) -> None:
    made = asked.post("/campaigns/digest/runs", {"partition": "mon"}, expect=201)
    run = found(store)
    assert (run.status, run.waits_for_start, run.priority) == (RunStatus.PENDING, True, 3)
    assert made["waits_for_start"]
    again = asked.post("/campaigns/digest/runs", {"partition": "mon"}, expect=409)
    assert again["code"] == "campaign_run_exists"
    [why] = asked.get("/campaigns/digest/runs/mon")["why"]["obstacles"][:1]
    assert why["kind"] == "not_started"
    verdict = asked.post("/campaigns/digest/start/validate", {"partition": "mon"})
    assert (verdict["can_start"], verdict["refusal"]) == (True, None)
    [event] = asked.get("/events", name="digest/mon")["items"]
    assert (event["kind"], event["actor"], event["to_status"]) == (
        "campaign_run", "ana", "pending",
    )  # fmt: skip
    # Nobody has to ask Dagster for what it was never told of.
    assert asked.post("/campaigns/digest/runs/mon/cancel", expect=202)["status"] == "cancelled"
    assert found(store).status is RunStatus.CANCELLED


def test_a_creation_takes_effect_once_per_key(asked: Api, store: Store) -> None:
    key = {"Idempotency-Key": "x"}
    made = asked.post("/campaigns/digest/runs", {"partition": "mon"}, expect=201, headers=key)
    again = asked.post("/campaigns/digest/runs", {"partition": "mon"}, expect=201, headers=key)
    assert again == made
    with store.read() as conn:
        assert runs.counts(conn) == {"digest": {RunStatus.PENDING: 1}}


@both_databases
def test_a_key_is_claimed_by_one_and_taken_over_from_who_died(
    asked: Api, store: Store, clock: Clock
) -> None:
    def create(_number: int) -> int:
        answer = asked.client.post(
            "/api/v1/campaigns/digest/runs",
            json={"partition": "mon"},
            headers={"Idempotency-Key": "together"},
        )
        return answer.status_code

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(create, range(8)))
    assert 201 in answers
    assert answers <= {201, 409}  # 409: the first was under way
    assert create(0) == 201
    with store.begin() as conn:  # as if the first had died before it answered
        conn.execute(t.idempotency_keys.update().values(status=None, body=None))
    headers = {"Idempotency-Key": "together"}
    body = {"partition": "mon"}
    problem = asked.post("/campaigns/digest/runs", body, expect=409, headers=headers)
    assert problem["code"] == "idempotency_key_in_use"
    clock.advance(121)
    problem = asked.post("/campaigns/digest/runs", body, expect=409, headers=headers)
    assert problem["code"] == "campaign_run_exists"  # it was done, and is not done twice


@both_databases
def test_a_server_that_dies_before_it_answers_creates_no_run(
    asked: Api, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, key = {"partition": "mon"}, {"Idempotency-Key": "x"}
    with monkeypatch.context() as dying:
        dying.setattr(idempotency, "answer", None)
        asked.post("/campaigns/digest/runs", body, expect=500, headers=key)
    with store.read() as conn:
        assert runs.counts(conn) == {}
    asked.post("/campaigns/digest/runs", body, expect=201, headers=key)


@both_databases
def test_a_partition_may_have_any_name(asked: Api, store: Store) -> None:
    paths = {name: {quote(name, safe=""), quote(name, safe="/")} for name in ODD}
    paths[".."] = {"%2E%2E"}  # clients take two dots for a step up
    for partition in ODD:
        asked.post("/campaigns/digest/runs", {"partition": partition}, expect=201)
    for partition, path in ((name, path) for name in ODD for path in paths[name]):
        run = f"/campaigns/digest/runs/{path}"
        assert asked.get(run)["partition"] == partition
        asked.post(f"{run}/pause", {"reason": "look"})
        with store.read() as conn:
            [hold] = holds.live(conn, store.now(conn))
        assert hold.target == Target(TargetKind.CAMPAIGN_RUN, f"digest/{partition}")
        assert asked.get(run)["why"]["paused"]
        assert len(asked.post(f"{run}/resume")["released"]) == 1


@both_databases
def test_names_may_be_as_long_as_the_database_can_keep_them(asked: Api) -> None:
    longest = "x" * MAX_PART
    asked.post("/campaigns/digest/runs", {"partition": longest}, expect=201)
    asked.post(f"/campaigns/digest/runs/{longest}/pause", {"reason": "look"})
    asked.post("/campaigns/digest/runs", {"partition": longest + "x"}, expect=422)
    body = {"target_kind": "campaign_run", "reason": "storm"}
    asked.post("/holds", {**body, "target_name": f"digest/{'x' * (MAX_NAME - 7)}"})
    asked.post("/holds", {**body, "target_name": f"digest/{'x' * (MAX_NAME - 6)}"}, expect=422)
    for kind in ("service", "campaign"):
        body = {"target_kind": kind, "reason": "storm"}
        asked.post("/holds", {**body, "target_name": longest})
        problem = asked.post("/holds", {**body, "target_name": longest + "x"}, expect=422)
        assert f"the name of a {kind} has at most 512 characters" in problem["detail"]
        asked.get(f"/{kind}s/{longest}x", expect=422)


def test_a_campaign_run_shows_how_far_it_is_and_what_went_wrong(
    asked: Api, store: Store, clock: Clock
) -> None:
    with store.begin() as conn:
        now = store.now(conn)
        run = runs.ensure(conn, now, "digest", "mon")
        runs.begin_attempt(conn, now, run, "dagster-1", owner_is_over=True)
        values = {"campaign_run": run.id, "op": "write", "attempt": 1, "at": now}
        conn.execute(
            t.ledger.insert(),
            [
                {**values, "key": "k1", "status": "done", "position": 0, "error": None},
                {**values, "key": "k2", "status": "failed", "position": 1, "error": "no such"},
                {**values, "key": "k3", "status": "started", "position": 2, "error": None},
            ],
        )
        conn.execute(
            t.progress.insert().values(
                campaign_run=run.id, op="write", done=1, failed=1, total=10, rate=2.0,
                position=2, series=1, exact=True, updated_at=now,
            )
        )  # fmt: skip
    shown = asked.get("/campaigns/digest/runs/mon")
    assert (shown["status"], shown["attempt"]) == ("processing", 1)
    assert [each["dagster_run"] for each in shown["attempts"]] == ["dagster-1"]
    [at] = shown["progress"]
    assert (at["done"], at["failed"], at["total"], at["seconds_left"]) == (1, 1, 10, 4.0)
    assert (shown["in_doubt"], shown["in_hand_count"], shown["failed_count"]) == ([], 1, 1)
    assert shown["failed"][0]["error"] == "no such"
    stats = asked.get("/campaigns/digest/stats")
    assert stats["runs"]["processing"] == 1
    assert stats["records"] == {"done": 1, "failed": 1, "total": 10}
    assert (stats["attempts"], stats["records_per_second"]) == ({"running": 1}, 2.0)
    clock.advance(61)  # nothing was heard of it, as where its process stands still
    [listed] = asked.get("/campaigns/digest/runs")["items"]
    for each in (listed, asked.get("/campaigns/digest/runs/mon")):
        [at] = each["progress"]
        assert (at["records_per_second"], at["seconds_left"]) == (None, None)
    assert asked.get("/campaigns/digest/stats")["records_per_second"] == 0
    queue = asked.get("/queue")
    [service] = queue["services"]
    assert (service["service"], service["records_left"]) == ("openai", 8)
    assert service["runs"] == {"pending": 0, "processing": 1, "paused": 0}

    # Its end leaves the record in hand in doubt.
    set_to = found(store)
    with store.begin() as conn:
        assert runs.move(conn, clock.advance(1), set_to, RunStatus.PAUSED, actor="tests")
    shown = asked.get("/campaigns/digest/runs/mon")
    assert [record["key"] for record in shown["in_doubt"]] == ["k3"]
    asked.post("/campaigns/digest/hold", {"reason": "look"})
    assert asked.get("/queue")["paused_campaigns"] == ["digest"]


def test_what_is_in_doubt_and_in_hand_is_counted_beyond_the_limit(asked: Api, store: Store) -> None:
    with store.begin() as conn:
        now = store.now(conn)
        run = runs.ensure(conn, now, "digest", "mon")
        for number, keys in {1: ["k1", "k2", "k3"], 2: ["k4", "k5"]}.items():
            runs.begin_attempt(conn, now, run, f"dagster-{number}", owner_is_over=True)
            values = {"campaign_run": run.id, "op": "write", "attempt": number, "at": now}
            entries = [{**values, "key": key, "status": "started", "position": 0} for key in keys]
            conn.execute(t.ledger.insert(), entries)
    shown = asked.get("/campaigns/digest/runs/mon", limit=1)
    assert [record["key"] for record in shown["in_doubt"]] == ["k1"]
    assert (shown["in_doubt_count"], shown["in_hand_count"]) == (3, 2)


def test_only_what_is_not_over_can_be_paused(asked: Api, store: Store) -> None:
    for status in RunStatus:
        set_status(store, status, partition=status)
        over = status not in UNFINISHED
        path = f"/campaigns/digest/runs/{status}/pause"
        answer = asked.post(path, {"reason": "look"}, expect=400 if over else 200)
        if over:
            assert answer["code"] == "not_pausable"
            assert status in answer["detail"]
        else:
            assert asked.post(path, {"reason": "look"}) == answer
    with store.read() as conn:
        held = {hold.target.name for hold in holds.live(conn, store.now(conn))}
    assert held == {"digest/pending", "digest/processing", "digest/paused"}


def test_a_resume_says_what_else_holds_it(asked: Api, store: Store) -> None:
    set_status(store, RunStatus.PAUSED)
    asked.post("/campaigns/digest/hold", {"reason": "new copy"})
    asked.post("/campaigns/digest/runs/mon/pause", {"reason": "look"})
    would = asked.post("/campaigns/digest/runs/mon/resume", dry_run=True)
    [effect] = would["campaigns"]
    assert [hold["reason"] for hold in effect["still_held_by"]] == ["new copy"]
    released = asked.post("/campaigns/digest/runs/mon/resume")
    assert [hold["reason"] for hold in released["released"]] == ["look"]
    assert [hold["reason"] for hold in released["still_held_by"]] == ["new copy"]
    assert asked.post("/campaigns/digest/runs/mon/resume")["released"] == []
    why = asked.get("/campaigns/digest/runs/mon")["why"]
    assert [hold["reason"] for hold in why["holds"]] == ["new copy"]


def test_a_resume_of_some_assets_says_only_what_holds_these(asked: Api, store: Store) -> None:
    ops = {"a": "openai", "b": "apollo"}
    assets = {"a": frozenset({"letters"}), "b": frozenset({"leads"})}
    with store.begin() as conn:
        now = store.now(conn)
        breakers.ensure(conn, now, ["apollo", "openai"])
        spec = CampaignSpec("assets", "there", "none", ops=ops, assets=assets)
        campaigns.save(conn, now, "there", [spec])
        run = runs.ensure(conn, now, "assets", "mon", ["letters"])
    asked.post("/services/apollo/hold", {"reason": "quota"})
    path = f"/campaigns/assets/runs/{quote(run.partition, safe='')}/resume"
    assert asked.post(path)["still_held_by"] == []
    assert not asked.get(path.removesuffix("/resume"))["why"]["paused"]


def test_a_start_is_refused_with_the_holds(asked: Api, store: Store) -> None:
    asked.post("/campaigns/digest/runs", {"partition": "mon"}, expect=201)
    asked.post("/campaigns/digest/hold", {"reason": "new copy"})
    for path, body in [
        ("/campaigns/digest/start", {"partition": "mon"}),
        ("/campaigns/digest/runs/mon/start", None),
    ]:
        keyed = {"Idempotency-Key": "monday"}
        assert asked.post(path, body, expect=409, headers=keyed)["code"] == "held"
        problem = asked.post(path, body, expect=409)
        assert problem["code"] == "held"
        assert [hold["reason"] for hold in problem["holds"]] == ["new copy"]
    verdict = asked.post("/campaigns/digest/start/validate", {"partition": "mon"})
    assert (verdict["can_start"], verdict["refusal"]) == (False, "held")
    asked.post("/campaigns/digest/release")
    set_status(store, RunStatus.PROCESSING, "tue")
    problem = asked.post("/campaigns/digest/runs/tue/start", expect=409)
    assert problem["code"] == "under_way"


def test_without_code_locations_nothing_starts_or_ends_and_nothing_is_changed(
    asked: Api, store: Store
) -> None:
    asked.post("/campaigns/digest/runs", {"partition": "mon"}, expect=201)
    set_status(store, RunStatus.PROCESSING, "tue")
    before = found(store), found(store, "tue")
    for path in ("mon/start", "tue/cancel"):
        problem = asked.post(f"/campaigns/digest/runs/{path}", expect=503)
        assert problem["code"] == "dagster_unavailable"
        assert "--workspace" in problem["detail"]
    assert (found(store), found(store, "tue")) == before


def test_a_stale_gate_is_told(asked: Api, store: Store, clock: Clock) -> None:
    assert asked.get("/health/gate")["stale"]
    with store.begin() as conn:
        for part in ("breaker", "pause", "resume"):
            heartbeats.beat(conn, store.now(conn), location="here", part=part, summary="fine")
    assert not asked.get("/health/gate")["stale"]
    clock.advance(timedelta(minutes=2).total_seconds())
    health = asked.get("/health/gate")
    assert health["stale"]
    assert "here is stale" in health["text"]
    assert all(part["stale"] for part in health["parts"])


@both_databases
def test_of_a_pause_and_an_end_at_the_same_moment_the_database_lets_one_be_first(
    asked: Api, store: Store
) -> None:
    """Where the end was first nothing is held; where the pause was, the end finds its hold."""
    orders = set()
    for number in range(12):
        partition = f"p{number}"
        set_status(store, RunStatus.PROCESSING, partition)
        ready = threading.Barrier(2)

        def end(partition: str = partition, ready: threading.Barrier = ready) -> bool:
            run = found(store, partition)
            ready.wait(60)
            with store.begin() as conn:
                assert runs.move(conn, store.now(conn), run, RunStatus.COMPLETED, actor="dagster")
                held = holds.live(conn, store.now(conn))
                return any(hold.target.name == run.name for hold in held)

        def pause(partition: str = partition, ready: threading.Barrier = ready) -> int:
            ready.wait(60)
            answer = asked.client.post(
                f"/api/v1/campaigns/digest/runs/{partition}/pause", json={"reason": "look"}
            )
            return answer.status_code

        with ThreadPoolExecutor(2) as pool:
            ended, paused = pool.submit(end), pool.submit(pause)
            found_hold, status = ended.result(60), paused.result(60)
        with store.read() as conn:
            live = {hold.target.name for hold in holds.live(conn, store.now(conn))}
        assert found(store, partition).status is RunStatus.COMPLETED
        assert status == (200 if f"digest/{partition}" in live else 400)
        assert found_hold == (status == 200)
        orders.add(status)
    assert orders <= {200, 400}


@both_databases
def test_a_pause_waits_for_an_end_that_is_being_written(asked: Api, store: Store) -> None:
    set_status(store, RunStatus.PROCESSING)
    run = found(store)
    with ThreadPoolExecutor(1) as pool:
        with store.begin() as conn:
            assert runs.move(conn, store.now(conn), run, RunStatus.COMPLETED, actor="dagster")
            paused = pool.submit(
                asked.post, "/campaigns/digest/runs/mon/pause", {"reason": "look"}, 400
            )
        assert paused.result(60)["code"] == "not_pausable"
    with store.read() as conn:
        assert not holds.live(conn, store.now(conn))


def test_what_has_ended_can_t_be_cancelled(store: Store) -> None:
    with store.begin() as conn:
        now = store.now(conn)
        campaigns.save(conn, now, "here", [CampaignSpec("digest", "here", "none")])
    for status in (RunStatus.COMPLETED, RunStatus.FAILED):
        set_status(store, status, partition=status)
        with api(store, workspace=_no_runs) as with_code:
            problem = with_code.post(f"/campaigns/digest/runs/{status}/cancel", expect=409)
        assert problem["code"] == "transition_not_allowed"
        assert found(store, status).status is status


class _no_runs:
    """A Dagster that has no run of anything."""

    def terminate(self, *_: object) -> list[str]:
        return []


def test_a_run_that_dagster_knows_nothing_of_is_cancelled_in_the_store(store: Store) -> None:
    with store.begin() as conn:
        now = store.now(conn)
        campaigns.save(conn, now, "here", [CampaignSpec("digest", "here", "none")])
    with api(store, workspace=_no_runs) as asked:
        for status in UNFINISHED:
            set_status(store, status, partition=status)
            shown = asked.post(f"/campaigns/digest/runs/{status}/cancel", expect=202)
            assert shown["status"] == "cancelled"
            again = asked.post(f"/campaigns/digest/runs/{status}/cancel", expect=202)
            assert again["status"] == "cancelled"
            told = asked.get("/events", name=f"digest/{status}", kind="cancel")["items"]
            assert [event["actor"] for event in told] == ["ana"]


def test_a_read_only_server_changes_nothing(store: Store) -> None:
    with store.begin() as conn:
        now = store.now(conn)
        target = Target(TargetKind.EVERYTHING)
        holds.place(conn, now, target, source=HoldSource.OPERATOR, reason="x", actor="bo")
    with api(store, read_only=True) as asked:
        assert asked.get("/holds")["items"]
        problem = asked.post("/holds/1/release", expect=403)
        assert problem["code"] == "read_only"
        assert asked.get("/holds/1")["released_at"] is None


@both_databases
def test_a_cancel_while_it_is_launched_ends_what_was_launched(store: Store) -> None:
    spec = CampaignSpec("digest", "here", "none")
    ended: list[str] = []

    class Code(WorkspaceLauncher):
        def __init__(self) -> None:
            pass

        def check(self, job: str, partition: str | None, location: str | None = None) -> None:
            pass

        def launch(self, job: str, **_: object) -> str:
            operations.cancel(store, None, found(store), actor="bo")
            return f"run of {job}"

        def launch_marked(self, job: str, *_: object, **__: object) -> str:
            raise AssertionError(f"nobody asked for records of {job}")

        def terminate(self, job: str, partition: str, assets: Collection[str] = ()) -> list[str]:
            assert assets == ()
            ended.append(f"{job}/{partition}")
            return ended

    with pytest.raises(operations.ChangedMeanwhileError, match="cancelled while"):
        operations.start(store, Code(), spec, "mon", actor="ana")
    assert ended == ["digest/mon"]
    assert found(store).status is RunStatus.CANCELLED
