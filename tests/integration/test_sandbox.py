"""The sandbox as a process, over HTTP."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagster_tidegate.breaker.answers import Answer
from dagster_tidegate.breaker.judge import judge
from dagster_tidegate.breaker.profiles import load
from dagster_tidegate.breaker.verdicts import VerdictKind
from demo.sandbox.answers import SERVICES
from demo.sandbox.cases import CASES, PlayedAnswer
from demo.sandbox.client import SandboxClient, SandboxError
from demo.sandbox.command import sandbox as command
from demo.sandbox.faults import Fault, Mode
from demo.sandbox.server import PortTakenError, listen
from tests.support.examples import share_of_examples
from tests.support.polling import wait_until

LEADS = "/instantly/api/v2/leads"


@pytest.fixture
def client(sandbox: SandboxClient) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=sandbox.url) as client:
        yield client


def add(client: httpx.Client, email: str, key: str | None = None) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post(LEADS, json={"email": email, "campaign": "dach"}, headers=headers)


def test_an_outage_refuses_calls_and_health_until_healed(
    sandbox: SandboxClient, client: httpx.Client
):
    sandbox.place("instantly", Fault(mode=Mode.OUTAGE, status=502, retry_after_s=7))
    refused = add(client, "ann@acme.example")
    assert (refused.status_code, refused.headers["Retry-After"]) == (502, "7")
    assert client.get("/instantly/health").status_code == 502
    assert client.get("/openai/health").status_code == 200
    assert sandbox.effects("instantly") == {}
    assert sandbox.heal("instantly")
    assert client.get("/instantly/health").status_code == 200
    assert add(client, "ann@acme.example").status_code == 200
    assert sandbox.effects("instantly") == {"dach/ann@acme.example": 1}
    assert sandbox.stats()["instantly"]["by_status"] == {"200": 1, "502": 1}


def test_a_rate_limit_is_429_with_retry_after(sandbox: SandboxClient, client: httpx.Client):
    sandbox.place("instantly", Fault(mode=Mode.RATE_LIMIT))
    refused = add(client, "ann@acme.example")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")


def test_calls_beyond_a_limit_are_refused_and_take_no_effect(
    sandbox: SandboxClient, client: httpx.Client
):
    sandbox.place("instantly", Fault(mode=Mode.LIMIT, calls=1, per_s=600))
    permitted, refused = add(client, "ann@acme.example"), add(client, "bob@acme.example")
    assert (permitted.status_code, permitted.headers["X-RateLimit-Remaining"]) == (200, "0")
    assert refused.status_code == 429
    assert 590 < int(refused.headers["Retry-After"]) <= 600
    assert client.get("/instantly/health").status_code == 200
    assert sandbox.stats()["instantly"]["over_limit"] == 1
    assert sandbox.effects("instantly") == {"dach/ann@acme.example": 1}


def test_a_slow_call_takes_effect_though_nobody_waits_for_the_answer(
    sandbox: SandboxClient, client: httpx.Client
):
    sandbox.place("instantly", Fault(mode=Mode.SLOW, latency_s=30))
    with pytest.raises(httpx.ReadTimeout):
        client.post(LEADS, json={"email": "a@b.example", "campaign": "dach"}, timeout=0.2)
    assert sandbox.effects("instantly") == {"dach/a@b.example": 1}


def test_a_wrong_answer_is_200_without_what_was_asked_for(
    sandbox: SandboxClient, client: httpx.Client
):
    sandbox.place("instantly", Fault(mode=Mode.WRONG))
    answers = [add(client, f"{n}@b.example") for n in range(2)]
    assert {answer.status_code for answer in answers} == {200}
    assert not any('"email"' in answer.text for answer in answers)


SERVICE_VERDICTS = {
    "no-credits": VerdictKind.DENIED,
    "day-used": VerdictKind.THROTTLED,
    "dead-key": VerdictKind.DENIED,
    "no-plan": VerdictKind.DENIED,
    "rate-limited": VerdictKind.THROTTLED,
    "maintenance": VerdictKind.THROTTLED,
    "pending": VerdictKind.PENDING,
    "invalid": VerdictKind.REJECTED,
    "internal-error": VerdictKind.FAILURE,
    "overloaded": VerdictKind.FAILURE,
    "page": VerdictKind.FAILURE,
    "redirect": VerdictKind.FAILURE,
    "cut-off": VerdictKind.FAILURE,
    "one-record": VerdictKind.FAILURE,
}


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("case", CASES)
def test_every_service_plays_every_verdict(
    sandbox: SandboxClient, client: httpx.Client, case: str, service: str
):
    keys = ["ann@"] if case == "one-record" else None
    after = 9 if case == "rate-limited" else None
    sandbox.place(service, Fault(mode=Mode.ANSWER, case=case, keys=keys, retry_after_s=after))
    response = client.get(f"/{service}/x?email=ann@acme.example")
    now = datetime.now(UTC)
    answer = Answer.of(response, now)
    assert answer is not None
    verdict = judge(answer, load(service))
    assert verdict.kind is SERVICE_VERDICTS[case]
    if verdict.kind is VerdictKind.THROTTLED:
        assert verdict.until is not None
        left_s = (verdict.until - now).total_seconds()
        assert left_s == pytest.approx({"day-used": 15733, "maintenance": 120}.get(case, 9), abs=2)
    assert sandbox.effects(service) == {}


def test_one_record_alone_fails(sandbox: SandboxClient, client: httpx.Client):
    sandbox.place("instantly", Fault(mode=Mode.ANSWER, case="one-record", keys=["ann@acme"]))
    assert add(client, "ann@acme.example").status_code == 500
    assert add(client, "bob@acme.example").status_code == 200
    assert client.get("/instantly/health").status_code == 200
    sandbox.place("instantly", Fault(mode=Mode.OUTAGE, status=503, keys=["k7"]))
    assert add(client, "ann@acme.example", key="k7").status_code == 503
    assert add(client, "ann@acme.example", key="k8").status_code == 200


def test_a_used_up_day_ends_by_itself_and_says_when(sandbox: SandboxClient, client: httpx.Client):
    sandbox.place("apollo", Fault(mode=Mode.ANSWER, case="day-used", retry_after_s=0.5))
    used = client.post("/apollo/api/v1/people/match", json={"email": "a@b.example"})
    assert (used.status_code, used.headers["retry-after"]) == (429, "1")
    assert client.get("/apollo/health").status_code == 200

    def again() -> bool:
        response = client.post("/apollo/api/v1/people/match", json={"email": "a@b.example"})
        return response.status_code == 200

    wait_until(again)


def test_a_given_answer_is_sent_as_it_is(sandbox: SandboxClient, client: httpx.Client):
    played = PlayedAnswer(
        status=429, headers={"ratelimit": '"default";r=0;t=45'}, body={"error": None}
    )
    sandbox.place("instantly", Fault(mode=Mode.ANSWER, answer=played, takes_effect=True))
    response = add(client, "ann@acme.example")
    assert (response.status_code, response.json()) == (429, {"error": None})
    assert response.headers["ratelimit"] == '"default";r=0;t=45'
    assert sandbox.effects("instantly") == {"dach/ann@acme.example": 1}
    answer = client.post("/_control/openai", json={"mode": "answer"})
    assert answer.json()["error"] == "mode answer requires a case or an answer, and not both"
    answer = client.post("/_control/openai", json={"mode": "answer", "case": "one-record"})
    assert answer.json()["error"].startswith("case one-record requires keys")


def test_half_of_the_calls_fail(sandbox: SandboxClient, client: httpx.Client):
    sandbox.place("instantly", Fault(mode=Mode.SHARE, share=0.5))
    statuses = [add(client, f"{n}@b.example").status_code for n in range(10)]
    assert statuses.count(503) == 5


def test_keys_and_calls_tell_what_arrived(sandbox: SandboxClient, client: httpx.Client):
    add(client, "ann@acme.example", "k1")
    between = datetime.now(UTC)
    add(client, "ann@acme.example", "k1")
    assert sandbox.keys("instantly") == {"k1": {"arrivals": 2, "effects": 1, "repeats": 1}}
    (call,) = sandbox.calls(since=between, service="instantly")
    assert call["idempotency_key"] == "k1"
    assert datetime.fromisoformat(call["at"]) >= between
    assert len(sandbox.calls()) == 2


def test_bad_orders_are_refused_and_say_what_would_be_right(
    sandbox: SandboxClient, client: httpx.Client
):
    with pytest.raises(SandboxError, match="there are apollo, millionverifier"):
        sandbox.heal("gmail")
    answer = client.post("/_control/openai", json={"mode": "slow", "share": 1})
    assert answer.status_code == 422
    assert answer.json()["error"] == "mode slow does not use share; it uses for_s, keys, latency_s"
    assert client.get("/_calls?since=2026-03-01T09:00:00").status_code == 422
    assert client.get("/_calls?limit=-1").status_code == 422
    assert client.post(LEADS, content=b"x" * 1_100_000).status_code == 413


@settings(
    max_examples=share_of_examples(2),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    path=st.sampled_from(
        [f"/{service}/{endpoint}" for service, (endpoint, _, _) in SERVICES.items()]
        + ["/_control/openai"]
    ),
    body=st.one_of(
        st.binary(max_size=50),
        st.fixed_dictionaries(
            {},
            optional={
                name: st.one_of(st.none(), st.text(max_size=9), st.lists(st.integers()))
                for name in ("email", "campaign", "first_name", "messages", "model", "mode")
            },
        ).map(lambda body: httpx.Request("POST", "http://x", json=body).content),
        st.sampled_from([b'{"email": "a@\\ud800"}', b'{"first_name": NaN, "email": "a@b"}']),
    ),
)
def test_no_request_breaks_the_server(client: httpx.Client, path: str, body: bytes):
    assert client.post(path, content=body).status_code < 500


def test_a_taken_port_is_named(sandbox: SandboxClient):
    port = httpx.URL(sandbox.url).port
    assert port is not None
    with pytest.raises(PortTakenError, match=f"port {port} of 127.0.0.1 .* --port"):
        listen(port)


def test_the_command_steers_a_running_sandbox(sandbox: SandboxClient, client: httpx.Client):
    def tidegate(*words: str) -> str:
        result = CliRunner().invoke(command, [*words, "--url", sandbox.url])
        assert result.exit_code == 0, result.output
        return result.output

    assert "openai: rate_limit until 20" in tidegate(
        "fail", "openai", "--rate-limit", "--retry-after", "9", "--for", "60"
    )
    refused = client.get("/openai/health")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "9")
    assert tidegate("limit", "openai", "--calls", "9", "--per", "60").startswith("openai: limit")
    assert tidegate("slow", "openai", "--latency", "0.01").startswith(
        "openai: slow until 'python -m demo"
    )
    assert client.get("/openai/health").status_code == 200
    assert re.search(r"openai +slow +0", tidegate("stats"))
    assert tidegate("fail", "apollo", "--as", "no-credits").startswith("apollo: no-credits until")
    assert re.search(r"apollo +no-credits +0", tidegate("stats"))
    assert tidegate("heal", "apollo") == "apollo: recovered\n"
    assert tidegate("heal") == "openai: recovered\n"
    assert tidegate("heal", "apollo") == "apollo: was healthy\n"
    add(client, "ann@acme.example")
    counts = json.loads(tidegate("stats", "--json", "--reset"))
    assert counts["instantly"]["calls"] == 1
    assert sandbox.stats()["instantly"]["calls"] == 0


def test_ctrl_c_ends_the_sandbox_quietly():
    process = subprocess.Popen(
        [sys.executable, "-m", "demo", "sandbox", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with SandboxClient(process.stdout.readline().split()[1]) as control:
        control.wait_until_up()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
