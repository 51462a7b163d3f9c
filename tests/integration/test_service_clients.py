"""The clients of the services, against the sandbox, each call through a real breaker."""

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pytest

from dagster_tidegate import BreakerOpenError
from dagster_tidegate.breaker.verdicts import VerdictKind
from demo.sandbox.answers import SERVICES
from demo.sandbox.client import SandboxClient
from demo.sandbox.faults import Fault, Mode
from resources.client import InvalidResponseError
from resources.deployment import build_resources

LEAD = {"email": "zoë@acme.example", "first_name": "Zoë", "last_name": "Ω", "company": "Acme"}


@pytest.fixture
def clients(sandbox: SandboxClient, sqlite_url: str, tmp_path: Path) -> Iterator[Any]:
    resources = build_resources(
        sandbox_url=sandbox.url, leads=tmp_path, home=tmp_path, store_url=sqlite_url
    )
    with ExitStack() as stack:
        yield stack.enter_context(dg.build_resources(resources))


def test_each_client_gets_what_it_asks_for(clients: Any, sandbox: SandboxClient):
    person = clients.apollo.match(LEAD, idempotency_key="k")
    assert person.organization.name == "Acme"
    assert clients.millionverifier.verify("a@b.example", idempotency_key="k") == "ok"
    assert clients.millionverifier.verify("a@invalid.example", idempotency_key="l") == "invalid"
    news = clients.perplexity.news("Acme", idempotency_key="k")
    assert news.startswith("Acme ")
    text = clients.openai.write("Be brief.", news, idempotency_key="k")
    assert news in text
    assert clients.instantly.add_lead({**LEAD, "text": text}, campaign="c", idempotency_key="k")
    assert sandbox.effects("instantly") == {"c/zoë@acme.example": 1}
    assert all("k" in sandbox.keys(service) for service in SERVICES)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(mode=Mode.OUTAGE), httpx.HTTPStatusError),
        (Fault(mode=Mode.WRONG), InvalidResponseError),
    ],
)
def test_failures_of_a_service_open_its_breaker_and_no_other(
    clients: Any, sandbox: SandboxClient, fault: Fault, error: type[Exception]
):
    sandbox.place("openai", fault)
    for n in range(4):
        with pytest.raises(error):
            clients.openai.write("Be brief.", "Acme", idempotency_key=str(n))
    with pytest.raises(BreakerOpenError) as opened:
        clients.openai.write("Be brief.", "Acme", idempotency_key="4")
    assert isinstance(opened.value.__cause__, error)
    for _ in range(3):
        with pytest.raises(BreakerOpenError, match="openai"):
            clients.openai.write("Be brief.", "Acme", idempotency_key="x")
    assert sandbox.stats()["openai"]["calls"] == 5
    assert clients.perplexity.news("Acme", idempotency_key="k")


@pytest.mark.parametrize(
    ("service", "case", "cause"),
    [
        ("openai", "rate-limited", VerdictKind.THROTTLED),
        ("openai", "dead-key", VerdictKind.DENIED),
        ("millionverifier", "no-credits", VerdictKind.DENIED),  # a 200
    ],
)
def test_one_answer_that_throttles_or_denies_is_enough(
    clients: Any, sandbox: SandboxClient, service: str, case: str, cause: VerdictKind
):
    sandbox.place(service, Fault(mode=Mode.ANSWER, case=case))
    calls = {
        "openai": lambda: clients.openai.write("Be brief.", "Acme", idempotency_key="k"),
        "millionverifier": lambda: clients.millionverifier.verify("a@b.c", idempotency_key="k"),
    }
    for _ in range(3):
        with pytest.raises(BreakerOpenError, match=service):
            calls[service]()
    assert clients.openai.breakers.breaker(service).status.cause is cause
    assert sandbox.stats()[service]["calls"] == 1


def test_a_call_that_takes_too_long_fails(clients: Any, sandbox: SandboxClient):
    sandbox.place("millionverifier", Fault(mode=Mode.SLOW, latency_s=30))
    with pytest.raises(httpx.ReadTimeout):
        clients.millionverifier.verify("a@b.example", idempotency_key="k")


def test_a_request_that_the_service_refuses_opens_nothing(clients: Any):
    for n in range(8):
        with pytest.raises(httpx.HTTPStatusError, match="400"):
            clients.millionverifier.verify("", idempotency_key=str(n))


def test_a_wrong_answer_says_what_was_wrong(clients: Any, sandbox: SandboxClient):
    sandbox.place("apollo", Fault(mode=Mode.WRONG))
    with pytest.raises(InvalidResponseError, match="apollo responded 200 to api/v1/people/match"):
        clients.apollo.match(LEAD, idempotency_key="k")


def test_half_of_the_calls_failing_is_an_outage_too(clients: Any, sandbox: SandboxClient):
    sandbox.place("millionverifier", Fault(mode=Mode.SHARE, share=0.5))

    def verify_all() -> None:
        for n in range(100):
            with suppress(httpx.HTTPStatusError):
                clients.millionverifier.verify(f"{n}@b.example", idempotency_key=str(n))

    with pytest.raises(BreakerOpenError, match="millionverifier is open"):
        verify_all()
    assert sandbox.stats()["millionverifier"]["calls"] <= 40
