"""Every role times every operation, as the OpenAPI document lists them: a new one is tested too."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from dagster_tidegate.holds import EVERYTHING, HoldSource, Target, TargetKind
from dagster_tidegate.settings import ServeSettings
from dagster_tidegate.store import breakers, campaigns, holds, runs, tokens
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.tokens import Role
from dagster_tidegate.web.access.identity import Identity
from dagster_tidegate.web.api.app import create_app
from dagster_tidegate.web.middleware.stack import guarded
from dagster_tidegate.web.path_router import PUBLIC
from tests.integration.api import document
from tests.integration.served import MAX_S, served
from tests.support.sqlite_stores import new_sqlite_url

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SETTINGS = ServeSettings(requests_per_address=100_000, requests_per_token=100_000)
DOCUMENT = document()
OPERATIONS = [
    (method.upper(), path)
    for path, operations in DOCUMENT["paths"].items()
    for method in operations
]
OWNED, PARTITION = "outreach", "leads-1"
# They answer what a campaign would do, and change nothing.
ONLY_ASKS = {("POST", "/api/v1/campaigns/{campaign}/start/validate")}
BODIES: dict[str, Any] = {
    "NewHold": {"reason": "tests"},
    "NewHoldOnTarget": {
        "reason": "tests",
        "target_kind": "campaign_run",
        "target_name": f"{OWNED}/{PARTITION}",
    },
    "NewRun": {"partition": "leads-2"},
    "KeepClosed": {"reason": "tests"},
    "RetryRecords": {"reason": "tests"},
    "SkipRecords": {"reason": "tests"},
    "Repaired": {"reason": "tests"},
}


def operation(method: str, path: str) -> dict[str, Any]:
    return DOCUMENT["paths"][path][method.lower()]


def role_of(method: str, path: str) -> Role | None:
    """The role that the document declares; None where it says that none is needed."""
    declared = operation(method, path).get("security", [])
    found = {scope for each in declared for scopes in each.values() for scope in scopes}
    return Role(found.pop()) if found else None


def address(path: str) -> str:
    values = {
        "service": "instantly",
        "campaign": OWNED,
        "partition": PARTITION,
        "hold": "1",
        "outage": "1",
    }
    return path.format(**values)


def body(method: str, path: str) -> Any:
    described = operation(method, path).get("requestBody")
    if described is None:
        return None
    schema = described["content"]["application/json"]["schema"]
    named = [each for each in [schema, *schema.get("anyOf", [])] if "$ref" in each]
    return BODIES.get(named[0]["$ref"].rpartition("/")[2], {}) if named else {}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(new_sqlite_url(tmp_path_factory.mktemp("roles") / "tidegate.db"))
    spec = CampaignSpec(
        name=OWNED,
        location="here",
        catch_up="none",
        ops={"send": "instantly"},
        owners=frozenset({"ana", "an owner who only looks"}),
    )
    with store.begin() as conn:
        breakers.ensure(conn, NOW, ["instantly"])
        campaigns.save(conn, NOW, "here", [spec])
        runs.create(conn, NOW, OWNED, PARTITION, actor="tests")
        target = Target(TargetKind.CAMPAIGN, OWNED)
        holds.place(conn, NOW, target, source=HoldSource.OPERATOR, reason="tests", actor="tests")
    yield store
    store.dispose()


WHO = {
    "vi": Role.VIEWER,
    "an owner who only looks": Role.VIEWER,
    "ana": Role.OPERATOR,
    "bo": Role.OPERATOR,
    "root": Role.ADMIN,
}


@pytest.fixture(scope="module")
def secrets(store: Store) -> dict[str, str]:
    with store.begin() as conn:
        return {
            name: tokens.create(conn, store.now(conn), name, role, actor="tests")[1]
            for name, role in WHO.items()
        }


@pytest.fixture(scope="module")
def client(store: Store, secrets: dict[str, str]) -> Iterator[httpx.Client]:
    assert secrets  # a server that knows of no token yet learns of the first a moment later
    app = guarded(create_app(store, settings=SETTINGS), store, SETTINGS)
    with served(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=MAX_S) as made:
        yield made


class BehindNoGuard:
    """Lets everybody in as whom they say to be, so that the routes alone decide."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = dict(scope.get("headers", [])).get(b"x-name", b"").decode()
        if name:
            scope.setdefault("state", {})["identity"] = Identity(name, WHO[name], 1)
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def bare(store: Store) -> Iterator[httpx.Client]:
    app = BehindNoGuard(create_app(store, settings=SETTINGS))
    with served(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=MAX_S) as made:
        yield made


def ask(
    client: httpx.Client, method: str, path: str, headers: dict[str, str], **kwargs: Any
) -> tuple[int, dict[str, Any]]:
    """The status of an answer, and of a problem what it says; a stream is not waited for."""
    kwargs.setdefault("json", body(method, path))
    with client.stream(method, address(path), headers=headers, **kwargs) as answer:
        if answer.headers.get("content-type") != "application/problem+json":
            return answer.status_code, {}
        answer.read()
        return answer.status_code, answer.json()


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_operation_declares_its_role(method: str, path: str) -> None:
    role = role_of(method, path)
    if path in PUBLIC:
        assert (method, role) == ("GET", None)
    elif method == "GET":
        assert role is Role.VIEWER
    else:
        assert role in (Role.OPERATOR, Role.ADMIN)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_without_a_token_nobody_is_let_in(client: httpx.Client, method: str, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer tdg_wrong"}, {"X-Tidegate-Actor": "root"}):
        status, problem = ask(client, method, path, headers)
        if path in PUBLIC:
            assert status in (200, 503)
        else:
            assert (status, problem["code"]) == (401, "unauthenticated")


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_a_role_does_what_it_may_and_nothing_else(
    client: httpx.Client,
    bare: httpx.Client,
    secrets: dict[str, str],
    method: str,
    path: str,
    who: str,
) -> None:
    needed = role_of(method, path) or Role.VIEWER
    guarded = ask(client, method, path, {"Authorization": f"Bearer {secrets[who]}"})
    # Nor does anybody get past a route that forgot its guard.
    for status, problem in (guarded, ask(bare, method, path, {"X-Name": who})):
        assert status != 401
        if not WHO[who].allows(needed):
            assert (status, problem["code"]) == (403, "forbidden")
            assert (problem["role"], problem["needed"]) == (WHO[who], needed)
        else:
            assert problem.get("needed") is None
            assert status < 500 or problem["code"] == "dagster_unavailable"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        each
        for each in OPERATIONS
        if role_of(*each) is Role.OPERATOR
        and any(part in each[1] for part in ("{campaign}", "/holds", "/campaigns/", "keep-closed"))
        and each not in ONLY_ASKS
    ],
)
def test_only_owners_and_administrators_steer_a_campaign(
    client: httpx.Client, secrets: dict[str, str], store: Store, method: str, path: str
) -> None:
    def seen() -> list[Any]:
        with store.read() as conn:
            tables = (t.holds, t.campaign_runs, t.services)
            return [list(conn.execute(table.select())) for table in tables]

    before = seen()
    status, problem = ask(client, method, path, {"Authorization": f"Bearer {secrets['bo']}"})
    assert (status, problem["code"]) == (403, "forbidden")
    assert "ana" in problem["owners"]
    assert seen() == before
    for who in ("ana", "root"):
        status, _ = ask(client, method, path, {"Authorization": f"Bearer {secrets[who]}"})
        assert status != 403


def test_a_hold_on_what_campaigns_share_is_for_every_operator(
    client: httpx.Client, secrets: dict[str, str]
) -> None:
    headers = {"Authorization": f"Bearer {secrets['bo']}"}
    for kind, name in (("service", "instantly"), ("everything", "")):
        sent = {"target_kind": kind, "target_name": name, "reason": "storm"}
        placed = client.post("/api/v1/holds", json=sent, headers=headers)
        assert placed.status_code == 200, placed.text
        number = placed.json()["hold"]["id"]
        assert placed.json()["hold"]["actor"] == "bo"
        freed = client.post(f"/api/v1/holds/{number}/release", headers=headers)
        assert freed.status_code == 200
        assert freed.json()["released_by"] == "bo"


def test_only_administrators_release_by_force(
    client: httpx.Client, secrets: dict[str, str], store: Store
) -> None:
    with store.begin() as conn:
        for target in (Target(TargetKind.SERVICE, "instantly"), EVERYTHING):
            hold = holds.place(
                conn, NOW, target, source=HoldSource.OPERATOR, reason="tests", actor="tests"
            )
    for path in ("/services/instantly/release", f"/holds/{hold.id}/release"):
        for who, status in (("ana", 403), ("root", 200)):
            headers = {"Authorization": f"Bearer {secrets[who]}"}
            answer = client.post(f"/api/v1{path}", json={"force": True}, headers=headers)
            assert answer.status_code == status, answer.text


def test_what_is_no_operation_needs_a_token_too(
    client: httpx.Client, secrets: dict[str, str]
) -> None:
    for path in ("/api/v1/openapi.json", "/docs", "/api/v1/nothing", "/", "/metrics"):
        assert client.get(path).status_code == 401
    headers = {"Authorization": f"Bearer {secrets['vi']}"}
    assert client.get("/api/v1/openapi.json", headers=headers).status_code == 200
