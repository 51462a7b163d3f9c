"""What the API answers when something is wrong: a problem, and no secret."""

import json
from collections.abc import Iterator

import pytest
from starlette.requests import Request

from dagster_tidegate.dagster_api import LaunchError, UnreachableError
from dagster_tidegate.store import schema
from dagster_tidegate.store.database import Store
from dagster_tidegate.web.api import app as apps
from dagster_tidegate.web.api.problems import Code, problem_of
from dagster_tidegate.web.api.routes import queue
from tests.integration.api import Api, api

SECRET = "hunter2"


@pytest.fixture
def asked(sqlite_url: str) -> Iterator[Api]:
    store = Store(sqlite_url)
    with api(store) as asked:
        yield asked
    store.dispose()


def test_what_is_nowhere_is_a_problem(asked: Api) -> None:
    assert asked.get("/nowhere", expect=404)["code"] == "not_found"
    assert asked.get("/campaigns/", expect=404)["code"] == "not_found"
    answer = asked.client.delete("/api/v1/holds")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert "GET" in answer.headers["allow"]


def test_a_body_that_can_t_be_read_is_a_problem(asked: Api) -> None:
    for content, kind in [
        (b"{", "application/json"),
        (b"\xff\xfe", "application/json"),
        (b'{"reason": "\\ud800", "target_kind": "everything"}', "application/json"),
        (b"[" * 20_000, "application/json"),
        (b'{"reason": "x", "target_kind": "everything"}', "text/plain"),
        (b"null", "application/json"),
        (b"", "application/json"),
    ]:
        headers = {"content-type": kind}
        answer = asked.client.post("/api/v1/holds", content=content, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), content[:40]
        assert answer.headers["content-type"] == "application/problem+json"
        json.dumps(answer.json()).encode()


def test_what_is_wrong_with_a_value_is_said_in_words_for_people(asked: Api) -> None:
    problem = asked.get("/events", expect=422, since="2026-03-01T18:00:00")
    assert problem["detail"] == "query.since: the time has no time zone: use 2026-03-01T18:00:00Z"


def test_a_mistyped_parameter_changes_nothing(asked: Api) -> None:
    hold = {"target_kind": "everything", "reason": "storm"}
    problem = asked.post("/holds", hold, expect=422, dryrun=True)
    assert problem["detail"] == "query.dryrun: no such parameter; did you mean dry_run?"
    assert problem["errors"][0]["where"] == "query.dryrun"
    problem = asked.get("/campaigns", expect=422, page=2)
    assert problem["detail"].endswith("known: cursor, limit, service, status")
    assert asked.get("/holds")["items"] == []


def test_a_wrong_method_is_not_told_of_its_parameters(asked: Api) -> None:
    problem = asked.get("/campaigns/none/runs/monday/pause", expect=404, dry_run=True)
    assert problem["code"] == "campaign_not_found"


def test_the_probe_of_a_load_balancer_may_have_parameters_of_its_own(asked: Api) -> None:
    for path in ("live", "ready", "gate", "alerts"):
        asked.get(f"/health/{path}", _=1234)
    assert asked.client.get("/metrics?_=1234").status_code == 200


def test_a_body_without_its_content_type_says_which_header_is_missing(asked: Api) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}  # as curl -d sends it
    body = b'{"reason": "x", "target_kind": "everything"}'
    answer = asked.client.post("/api/v1/holds", content=body, headers=headers)
    assert answer.json()["detail"] == (
        "the request has the content type application/x-www-form-urlencoded: send JSON, with the "
        "header 'Content-Type: application/json'"
    )


def test_a_fault_tells_the_log_and_nobody_else(
    asked: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise KeyError(SECRET)

    monkeypatch.setattr(queue.campaign_stats, "unfinished", fail)
    problem = asked.get("/queue", expect=500)
    assert problem["code"] == "internal"
    assert SECRET not in str(problem)
    assert SECRET in caplog.text


def test_a_store_that_is_away_is_503_and_its_address_is_not_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Store(f"postgresql://tidegate:{SECRET}@127.0.0.1:1/store?connect_timeout=1")
    with api(store) as asked:
        assert asked.get("/health/live") == {"status": "live"}
        for path in ("/health/ready", "/health/gate", "/campaigns", "/events/stream"):
            answer = asked.client.get(f"/api/v1{path}")
            assert answer.status_code == 503, path
            assert answer.json()["code"] == "store_unavailable"
            assert int(answer.headers["retry-after"]) > 0
            assert SECRET not in answer.text
            assert "127.0.0.1" not in answer.text
    assert SECRET not in caplog.text


def test_a_store_of_another_schema_is_not_ready(empty_store_url: str) -> None:
    store = Store(empty_store_url)
    with api(store) as asked:
        problem = asked.get("/health/ready", expect=503)
        assert "tidegate store upgrade" in problem["detail"]
        schema.upgrade(store)
        assert asked.get("/health/ready") == {"status": "ready"}
    store.dispose()


def test_the_document_names_what_every_operation_answers(asked: Api) -> None:
    document = asked.get("/openapi.json")
    assert document["info"]["version"]
    assert apps.PREFIX + "/holds" in document["paths"]


def test_a_page_and_the_api_name_a_refusal_alike() -> None:
    request = Request({"type": "http"})
    assert problem_of(request, LaunchError("no such partition")).code is Code.NOT_LAUNCHABLE
    unreachable = problem_of(request, UnreachableError("the code server went away"))
    assert unreachable.code is Code.DAGSTER_UNAVAILABLE
    assert unreachable.headers == {"Retry-After": "5"}
