"""Text that people give is data, whatever is in it: in paths, bodies, headers, logs and pages."""

import json
import logging
from collections.abc import Iterator
from urllib.parse import quote

import httpx
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagster_tidegate.store import history, tokens
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.tokens import Role
from dagster_tidegate.text import MAX_NAME, MAX_REASON, checked
from tests.integration.api import api_on_port, app_of, in_process
from tests.support.databases import both_databases
from tests.support.examples import share_of_examples

KEPT = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "'; DROP TABLE holds; --",
    "1 OR 1=1",
    "{{7*7}} ${7*7} %s %n",
    "[link=file:///etc/passwd]rich[/link] [red]markup[/red]",
    "=HYPERLINK(\"http://evil.example\")",
    "../../../../etc/passwd",
    "grün 漢字 🌊 עברית",
    "\\x1b[31m \\u202e",
    "null",
    "x" * MAX_REASON,
]  # fmt: skip
REFUSED = [
    "",
    "   ",
    "a\x00b",
    "a\nlevel=INFO forged=true",
    "a\r\nSet-Cookie: x=1",
    "\x1b[2Jcleared",
    "right \u202e left",
    "\u2066isolate\u2069",
    "zero\u200bwidth",
    "line\u2028separator",
    "\x85next line",
    "\x7f",
    "x" * (max(MAX_NAME, MAX_REASON) + 1),
    "half \ud83d of a pair",
]
HOLD = "/api/v1/holds"


pytestmark = pytest.mark.database_time


@pytest.fixture
def client(store: Store) -> Iterator[httpx.Client]:
    with in_process(app_of(store)) as client:
        yield client


@pytest.fixture
def client_on_port(store: Store) -> Iterator[httpx.Client]:
    with api_on_port(store) as asked:
        yield asked.client


def hold(client: httpx.Client, reason: str, target: str = "instantly") -> httpx.Response:
    # As JSON may have it: httpx itself refuses half of a surrogate pair.
    sent = {"target_kind": "service", "target_name": target, "reason": reason}
    return client.post(HOLD, content=json.dumps(sent), headers={"Content-Type": "application/json"})


def is_data(answer: httpx.Response) -> None:
    """An answer that no browser takes for a page."""
    assert answer.headers["content-type"] in ("application/json", "application/problem+json")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def name_with(text: str) -> str:
    """A name with a text in it; a slash would name a part of a service."""
    return text[:500].replace("/", "|")


@both_databases
def test_text_is_kept_and_given_back_as_it_is(client: httpx.Client, store: Store) -> None:
    for text in KEPT:
        name = name_with(text)
        placed = hold(client, text, target=name)
        assert placed.status_code == 200, placed.text
        is_data(placed)
        listed = client.get(HOLD).json()["items"][0]
        assert (listed["reason"], listed["target_name"]) == (text, name)
        (event,) = client.get("/api/v1/events", params={"name": name}).json()["items"]
        assert (event["reason"], event["after"]["reason"]) == (text, text)
    with store.read() as conn:
        rows = conn.execute(sa.select(t.holds).order_by(t.holds.c.id)).all()
        assert [row.reason for row in rows] == KEPT
        assert [e.name for e in history.read(conn, limit=99)] == [
            f"service {name_with(text)}" for text in KEPT
        ]


def test_text_that_can_deceive_is_refused(client: httpx.Client, store: Store) -> None:
    for text in REFUSED:
        for answer in (hold(client, text), hold(client, "tests", target=text)):
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), text
            is_data(answer)
            assert len(answer.content) < 10_000
    with store.read() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(t.holds)).scalar() == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/services/{}"),
        ("POST", "/services/{}/release"),
        ("GET", "/campaigns/{}"),
        ("POST", "/campaigns/{}/release"),
        ("GET", "/campaigns/outreach/runs/{}"),
        ("POST", "/campaigns/outreach/runs/{}/cancel"),
        ("GET", "/reports/services/{}"),
        ("GET", "/reports/outages/{}"),
        ("GET", "/reports?since={}"),
        ("GET", "/events?name={}"),
        ("GET", "/holds?cursor={}"),
    ],
)
def test_any_name_in_a_url_is_answered(client: httpx.Client, method: str, path: str) -> None:
    for text in [*KEPT, *REFUSED]:
        name = quote(text, safe="", errors="surrogatepass")
        answer = client.request(method, "/api/v1" + path.format(name))
        assert answer.status_code in (200, 404, 405, 413, 422), (text, answer.text)
        is_data(answer)


@pytest.mark.parametrize("size", [10_000, 900_000])
def test_a_long_text_is_refused_and_not_repeated(client: httpx.Client, size: int) -> None:
    answer = hold(client, "x" * size)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert len(answer.content) < 10_000


@pytest.mark.parametrize("size", [1_000_000, 5_000_000])
def test_a_megabyte_is_not_read(client_on_port: httpx.Client, size: int) -> None:
    try:
        answer = hold(client_on_port, "x" * size)
    except (httpx.WriteError, httpx.ReadError):
        return  # the server had answered and closed before all was sent
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_deep_json_is_refused(client: httpx.Client) -> None:
    for sent in ("[" * 100_000, '{"reason":' * 50_000, "{", "\xff", '{"reason": NaN}'):
        headers = {"Content-Type": "application/json"}
        answer = client.post(HOLD, content=sent.encode("latin-1"), headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid")


@both_databases
@settings(
    max_examples=share_of_examples(2),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(reason=st.text(max_size=MAX_REASON + 5))
def test_any_reason_is_kept_or_refused(client: httpx.Client, reason: str) -> None:
    try:
        expected = checked(reason, "reason", MAX_REASON)
    except ValueError:
        expected = None
    answer = hold(client, reason)
    if expected is None:
        assert answer.status_code == 422
    else:
        assert answer.json()["hold"]["reason"] == expected


def test_no_text_forges_a_line_of_the_log(
    client_on_port: httpx.Client, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    client = client_on_port
    caplog.set_level(logging.INFO)
    forged = "x\r\nERROR forged"
    client.get(f"/api/v1/services/{quote(forged, safe='')}")
    client.get("/", headers={"Accept": "text/html"}, params={"q": forged})
    with store.begin() as conn:
        tokens.create(conn, store.now(conn), "ana", Role.VIEWER, actor="tests")
    client.get("/api/v1/holds", headers={"Authorization": "Bearer " + "x" * 50})
    assert any("uvicorn" in record.name for record in caplog.records)
    assert not [line for line in caplog.messages if "\n" in line or "\r" in line]


def test_the_name_of_a_token_is_data_in_the_page(client: httpx.Client, store: Store) -> None:
    name = "<script>alert('ana & bo')</script>"
    with store.begin() as conn:
        secret = tokens.create(conn, store.now(conn), name, Role.VIEWER, actor="tests")[1]
    client.post("/login", data={"token": secret})
    page = client.get("/login").text
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;ana &amp; bo&#39;)" in page
