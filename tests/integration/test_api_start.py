"""Starting and cancelling over the API, with a real Dagster instance and a real code server."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster import DagsterRunStatus

from dagster_tidegate.control.operations import ACTOR_TAG
from dagster_tidegate.dagster_api import UnreachableError
from dagster_tidegate.dagster_api.lineage import request_key
from dagster_tidegate.dagster_api.workspace import Server, Workspace
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import runs
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.runs import CampaignRun
from tests.integration.api import Api, api
from tests.integration.gate_deployment import LOCATION, Deployment


@pytest.fixture(scope="module")
def asked(deployed: Deployment) -> Iterator[Api]:
    with api(deployed.store, workspace=Server(deployed.workspace).workspace) as asked:
        yield asked


def found(deployed: Deployment, partition: str) -> CampaignRun:
    with deployed.store.read() as conn:
        run = runs.find(conn, "letters", partition)
    assert run is not None
    return run


def put(
    deployed: Deployment, partition: str, status: RunStatus, *, waits_for_start: bool = False
) -> CampaignRun:
    """Return a campaign run, which is in a status without having been there."""
    changed = {"status": status, "waits_for_start": waits_for_start, "reason": None}
    with deployed.store.begin() as conn:
        run = runs.ensure(conn, deployed.store.now(conn), "letters", partition)
        table = t.campaign_runs
        conn.execute(table.update().where(table.c.id == run.id).values(**changed))
    return found(deployed, partition)


def completed(deployed: Deployment, partition: str) -> None:
    deployed.until(lambda: found(deployed, partition).status is RunStatus.COMPLETED)


def forget_answer(deployed: Deployment, run_id: str) -> None:
    """Forget the answer to a start, as if its server had died before, and its key were free."""
    c = t.idempotency_keys.c
    with deployed.store.begin() as conn:
        before = deployed.store.now(conn) - timedelta(minutes=3)
        [key] = [
            row.key
            for row in conn.execute(sa.select(c.key, c.body).where(c.status == 202))
            if row.body["dagster_run"] == run_id
        ]
        killed = t.idempotency_keys.update().where(c.key == key)
        conn.execute(killed.values(status=None, body=run_id, at=before))


def test_a_created_run_starts_once_and_completes(asked: Api, deployed: Deployment) -> None:
    asked.post("/campaigns/letters/runs", {"partition": "a"}, expect=201)
    with deployed.store.read() as conn:
        created = runs.find(conn, "letters", "a")
    assert created is not None
    assert deployed.dagster.runs_of(created) == []

    def start(_number: int) -> int:
        return asked.client.post("/api/v1/campaigns/letters/runs/a/start").status_code

    with ThreadPoolExecutor(4) as pool:
        answers = sorted(pool.map(start, range(4)))
    assert answers == [202, 409, 409, 409]
    [run] = deployed.dagster.runs_of(found(deployed, "a"))
    assert run.status is DagsterRunStatus.QUEUED
    assert run.tags["tidegate/started_by"] == "ana"
    [event] = asked.get("/events", name="letters/a", kind="start")["items"]
    assert (event["actor"], event["reason"]) == ("ana", f"Dagster run {run.run_id}")
    assert not found(deployed, "a").waits_for_start
    completed(deployed, "a")

    # Over, it may be started again, and does everything again.
    again = asked.post("/campaigns/letters/start", {"partition": "a"}, expect=202)
    assert again["name"] == "letters/a"
    assert found(deployed, "a").status is RunStatus.PENDING
    deployed.until(lambda: deployed.status(again["dagster_run"]).value == "SUCCESS")
    completed(deployed, "a")
    assert len(deployed.calls()) == 20


def test_one_that_is_held_waits_in_the_queue_and_is_cancelled_there(
    asked: Api, deployed: Deployment
) -> None:
    asked.post("/campaigns/letters/hold", {"reason": "new copy"})
    deployed.gate()
    problem = asked.post("/campaigns/letters/start", {"partition": "b"}, expect=409)
    assert problem["code"] == "held"
    key = {"Idempotency-Key": "b-1"}
    body = {"partition": "b", "queue": True}
    started = asked.post("/campaigns/letters/start", body, expect=202, headers=key)
    assert asked.post("/campaigns/letters/start", body, expect=202, headers=key) == started
    assert len(deployed.dagster.runs_of(found(deployed, "b"))) == 1
    deployed.gate()
    deployed.dequeue()
    assert deployed.status(started["dagster_run"]) is DagsterRunStatus.QUEUED

    cancelled = asked.post("/campaigns/letters/runs/b/cancel", expect=202)
    assert cancelled["status"] == "cancelled"
    assert deployed.status(started["dagster_run"]) is DagsterRunStatus.CANCELED
    asked.post("/campaigns/letters/release")
    for _ in range(3):
        deployed.gate()
        deployed.dequeue()
    assert found(deployed, "b").status is RunStatus.CANCELLED


def test_a_paused_run_is_cancelled_and_does_not_resume(asked: Api, deployed: Deployment) -> None:
    started = asked.post("/campaigns/letters/start", {"partition": "c"}, expect=202)
    deployed.gate()
    asked.post("/campaigns/letters/runs/c/pause", {"reason": "look first"})
    deployed.until(lambda: found(deployed, "c").status is RunStatus.PAUSED)
    assert deployed.status(started["dagster_run"]) is DagsterRunStatus.CANCELED
    shown = asked.get("/campaigns/letters/runs/c")
    assert [attempt["outcome"] for attempt in shown["attempts"]] == ["paused"]
    asked.post("/campaigns/letters/runs/c/cancel", expect=202)
    asked.post("/campaigns/letters/runs/c/resume")
    for _ in range(3):
        deployed.gate()
        deployed.dequeue()
    assert found(deployed, "c").status is RunStatus.CANCELLED
    # What the gate had asked for just before comes too late.
    tags = {"dagster/run_key": request_key(found(deployed, "c").id, 99)}
    late = deployed.launch("letters", "c", tags=tags)
    deployed.until(lambda: deployed.status(late) is DagsterRunStatus.CANCELED)
    assert found(deployed, "c").status is RunStatus.CANCELLED
    again = asked.post("/campaigns/letters/runs/c/start", expect=202)
    deployed.until(lambda: deployed.status(again["dagster_run"]) is DagsterRunStatus.SUCCESS)
    completed(deployed, "c")


def test_a_campaign_without_partitions_starts_without_one(asked: Api, deployed: Deployment) -> None:
    started = asked.post("/campaigns/postcard/start", expect=202)
    assert started["name"] == f"postcard/{started['dagster_run']}"
    deployed.until(lambda: deployed.status(started["dagster_run"]) is DagsterRunStatus.SUCCESS)


def test_a_start_whose_server_died_before_it_answered_is_not_repeated(
    asked: Api, deployed: Deployment
) -> None:
    headers = {"Idempotency-Key": "once"}
    started = asked.post("/campaigns/postcard/start", expect=202, headers=headers)
    forget_answer(deployed, started["dagster_run"])
    again = asked.post("/campaigns/postcard/start", expect=202, headers=headers)
    assert again["dagster_run"] == started["dagster_run"]
    deployed.until(lambda: deployed.status(started["dagster_run"]) is DagsterRunStatus.SUCCESS)
    told = asked.get("/events", name=started["name"], kind="start")["items"]
    assert len(told) == 1


def test_what_the_code_does_not_have_is_refused_and_leaves_nothing(
    asked: Api, deployed: Deployment
) -> None:
    for path, body, says in [
        ("/campaigns/letters/start", None, "has partitions: specify one"),
        ("/campaigns/letters/start", {"partition": "aa"}, "did you mean a"),
        ("/campaigns/postcard/start", {"partition": "a"}, "has no partitions: omit the partition"),
        ("/campaigns/letters/start/validate", {"partition": "aa"}, "did you mean a"),
        ("/campaigns/letters/runs", {"partition": "aa"}, "did you mean a"),
    ]:
        problem = asked.post(path, body, expect=422)
        assert (problem["code"], says in problem["detail"]) == ("not_launchable", True), problem
    with deployed.store.read() as conn:
        assert runs.find(conn, "letters", "aa") is None


@pytest.mark.parametrize("queued", [True, False])
def test_a_launch_that_fails_leaves_the_run_as_it_was(
    asked: Api, deployed: Deployment, monkeypatch: pytest.MonkeyPatch, queued: bool
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise UnreachableError("the code server went away")

    before = {
        "a": put(deployed, "a", RunStatus.COMPLETED),
        "b": put(deployed, "b", RunStatus.CANCELLED),
        "d": put(deployed, "d", RunStatus.PENDING, waits_for_start=True),
    }
    with monkeypatch.context() as broken:
        if queued:
            broken.setattr(dg.DagsterInstance, "submit_run", fail)
        else:
            broken.setattr(Workspace, "launch", fail)
        for partition in before:
            body = {"partition": partition}
            problem = asked.post("/campaigns/letters/start", body, expect=503)
            assert problem["code"] == "dagster_unavailable"
    for partition, run in before.items():
        after = found(deployed, partition)
        assert (after.status, after.waits_for_start) == (run.status, run.waits_for_start)
        unfinished = [r for r in deployed.dagster.runs_of(after) if not r.is_finished]
        assert unfinished == []
    assert "the code server went away" in str(found(deployed, "d").reason)
    told = asked.get("/events", name="letters/d")["items"]
    assert any("the code server went away" in str(event["reason"]) for event in told)
    asked.post("/campaigns/letters/runs/a/start", expect=202)
    completed(deployed, "a")


def test_what_a_person_launches_in_dagster_waits_for_no_start(
    asked: Api, deployed: Deployment
) -> None:
    asked.post("/campaigns/letters/hold", {"reason": "new copy"})
    deployed.gate()
    asked.post("/campaigns/letters/runs", {"partition": "e"}, expect=201)
    assert found(deployed, "e").waits_for_start
    launched = deployed.launch("letters", "e")
    # Before the gate has seen it, too.
    asked.post("/campaigns/letters/runs/e/cancel", expect=202)
    assert deployed.status(launched) is DagsterRunStatus.CANCELED
    with deployed.store.begin() as conn:
        run = found(deployed, "e")
        runs.move(conn, deployed.store.now(conn), run, RunStatus.PENDING, actor="tests")
        conn.execute(t.campaign_runs.update().values(waits_for_start=True))
    deployed.launch("letters", "e")
    deployed.gate()
    assert not found(deployed, "e").waits_for_start
    asked.post("/campaigns/letters/runs/e/cancel", expect=202)
    asked.post("/campaigns/letters/release")


def test_a_start_that_died_before_the_queue_blocks_nothing(
    asked: Api, deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """The process is gone."""

    def die(*_: object, **__: object) -> str:
        raise Killed

    paused = asked.post("/campaigns/letters/start", {"partition": "f"}, expect=202)
    deployed.gate()
    asked.post("/campaigns/letters/runs/f/pause", {"reason": "look first"})
    deployed.until(lambda: found(deployed, "f").status is RunStatus.PAUSED)
    assert deployed.status(paused["dagster_run"]) is DagsterRunStatus.CANCELED
    code = Workspace(deployed.workspace.create_request_context())
    with monkeypatch.context() as broken:
        broken.setattr(dg.DagsterInstance, "submit_run", die)
        broken.setattr(dg.DagsterInstance, "report_run_canceled", die)
        with pytest.raises(Killed):
            code.launch("letters", partition="f", tags={ACTOR_TAG: "ana"}, location=LOCATION)
    asked.post("/campaigns/letters/runs/f/resume")
    completed(deployed, "f")


def test_a_start_whose_server_died_before_the_launch_is_launched_when_it_is_repeated(
    asked: Api, deployed: Deployment
) -> None:
    def starts() -> int:
        return len(asked.get("/events", name="letters/f", kind="start")["items"])

    before = starts()
    for number, meanwhile in enumerate((None, "the gate gives it up")):
        headers, body = {"Idempotency-Key": f"f-{number}"}, {"partition": "f"}
        started = asked.post("/campaigns/letters/start", body, expect=202, headers=headers)
        run_id = started["dagster_run"]
        deployed.instance.delete_run(run_id)
        forget_answer(deployed, run_id)
        assert found(deployed, "f").status is RunStatus.PENDING
        assert asked.post("/campaigns/letters/start", body, expect=409)["code"] == "under_way"
        if meanwhile:
            with deployed.store.begin() as conn:
                now, run = deployed.store.now(conn), found(deployed, "f")
                runs.move(conn, now, run, RunStatus.CANCELLED, actor="dagster", reason=meanwhile)
        again = asked.post("/campaigns/letters/start", body, expect=202, headers=headers)
        assert again["dagster_run"] == run_id
        assert deployed.status(run_id) is DagsterRunStatus.QUEUED
        completed(deployed, "f")
    assert starts() == before + 3  # what the gate gave up was requested once more


def test_a_launch_that_fails_is_in_the_audit_log(
    asked: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise UnreachableError("the code server went away")

    with monkeypatch.context() as broken:
        broken.setattr(Workspace, "launch", fail)
        asked.post("/campaigns/postcard/start", expect=503)
    [failed, requested, *_] = asked.get("/events", kind="start")["items"]
    assert (failed["to_status"], requested["to_status"]) == ("failed", "requested")
    assert "the code server went away" in failed["reason"]


def test_a_service_shows_its_policy(asked: Api) -> None:
    mail = asked.get("/services/mail")
    assert mail["policies"][LOCATION]["consecutive_failures"] == 2
    assert "letters" in mail["campaigns"]
