"""Budgets: a campaign pauses when one is used up and resumes after it; who spent what is shown."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, generate_latest

from dagster_tidegate import BreakerResource, Budget, ServiceConfig, pool
from dagster_tidegate.breaker.errors import BreakerOpenError, Denied, Throttled
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.cli import main
from dagster_tidegate.control import situation
from dagster_tidegate.gate.budgets import EVERY_S, BudgetCheck
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import budgets
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import Store
from dagster_tidegate.telemetry.collector import FleetCollector
from dagster_tidegate.testing import Service, assert_paused
from dagster_tidegate.web.pages.services import service_page
from tests.support.clock import Clock

LEADS = [{"email": f"{n}@example.org"} for n in range(8)]
"""Records of the campaign."""
ACCOUNT: dict[str, Any] = {"left": 0.0, "hangs": False}


def left() -> float:
    """What the account has left."""
    if ACCOUNT["hangs"]:
        threading.Event().wait(30)
    if ACCOUNT["left"] is None:
        raise ConnectionError("unreachable")
    return ACCOUNT["left"]


LEFT = f"{__name__}:left"


@pytest.fixture(autouse=True)
def account() -> None:
    ACCOUNT.update(left=0.0, hangs=False)


def policy(**budget: object) -> ServicePolicy:
    return ServicePolicy(
        name="apollo",
        budget=Budget(**{"amount": 5, **budget}),  # type: ignore[arg-type] -- its fields
        jitter=0,
        probe_timeout_s=0.2,
    )


@pytest.fixture
def fleets(store: Store) -> Iterator[list[Fleet]]:  # noqa: ARG001 -- closed before the store is
    made: list[Fleet] = []
    yield made
    for fleet in made:
        fleet.close()


def spend(fleet: Fleet, amount: float, campaign: str = "outreach") -> None:
    fleet.state.campaign = campaign
    fleet.breaker("apollo").spend(amount)
    fleet.flush(final=True)


def refused(fleet: Fleet) -> str | None:
    """Call the service; return why not."""
    try:
        fleet.breaker("apollo").call(str)
    except BreakerOpenError as error:
        return error.reason
    return None


def test_a_campaign_pauses_when_its_budget_is_used_up_and_goes_on_the_next_day() -> None:
    clock, apollo = Clock(), Service()
    breakers = BreakerResource.in_memory(
        [ServiceConfig(name="apollo", budget=Budget(5, timezone="Europe/Berlin"))], clock=clock
    )

    @dg.op(pool=pool("apollo"))
    def enrich(context: dg.OpExecutionContext, breakers: BreakerResource) -> list[str]:
        records = breakers.records(context, LEADS, key="email")
        return records.map(lambda each: breakers.breaker("apollo").call(apollo, each.key))

    @dg.job(partitions_def=dg.StaticPartitionsDefinition(["march"]))
    def outreach() -> None:
        enrich()

    run: dict[str, Any] = {
        "resources": {"breakers": breakers},
        "partition_key": "march",
        "raise_on_error": False,
    }
    assert_paused(outreach.execute_in_process(**run), "apollo")
    assert len(apollo.done) == 5
    status = breakers.fleet.breaker("apollo").status
    assert status.throttled_until == datetime(2026, 3, 1, 23, tzinfo=UTC)
    clock.time = datetime(2026, 3, 1, 23, 0, 1, tzinfo=UTC)
    breakers.fleet.breaker("apollo").close()  # as the canary of the gate does
    assert outreach.execute_in_process(**run).success
    assert sorted(key for (key,) in apollo.done) == sorted(lead["email"] for lead in LEADS)
    breakers.fleet.flush(final=True)
    with breakers.store.read() as conn:
        spent = [(each.campaign, each.amount) for each in budgets.history(conn, "apollo", 9)]
    assert spent == [("outreach", 3), ("outreach", 5)]


def test_a_budget_raised_in_the_code_goes_on(store: Store, fleets: list[Fleet]) -> None:
    fleets += [Fleet(SqlBackend(store), [policy()])]
    assert [refused(fleets[0]) for _ in range(6)][-1] == (
        "its budget of 5 credits per day is used up"
    )
    check = BudgetCheck()
    assert check(store, fleets[0]) == []
    fleets += [Fleet(SqlBackend(store), [policy(amount=7)])]
    assert BudgetCheck()(store, fleets[1]) == ["the budget of apollo is no longer used up"]
    assert [refused(fleets[1]) for _ in range(2)] == [None, None]
    assert refused(fleets[1]) == "its budget of 7 credits per day is used up"


def test_a_service_that_throttles_by_itself_is_left_alone_while_its_budget_lasts(
    store: Store, fleets: list[Fleet]
) -> None:
    fleet = Fleet(SqlBackend(store), [policy()])
    fleets.append(fleet)
    with pytest.raises((Throttled, BreakerOpenError)):
        fleet.breaker("apollo").call(Service(Throttled("its budget of calls is used up")), "x")
    assert fleet.breaker("apollo").status.throttled_until
    assert BudgetCheck()(store, fleet) == []
    assert fleet.breaker("apollo").status.state is BreakerState.OPEN


def test_what_the_service_has_left_ends_and_lifts_a_denial(
    store: Store, clock: Clock, fleets: list[Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(SqlBackend(store), [policy(balance=LEFT)])
    fleets.append(fleet)
    now = [0.0]
    monkeypatch.setattr("dagster_tidegate.gate.budgets.time.monotonic", lambda: now[0])
    check = BudgetCheck()
    ACCOUNT["left"] = 1
    assert check(store, fleet) == []
    assert [refused(fleet), refused(fleet)] == [
        None,
        "its budget of 5 credits per day is used up",
    ], "somebody else has used up the account"
    ACCOUNT["left"] = 3
    assert check(store, fleet) == [], "it is not asked again so soon"
    now[0] += EVERY_S
    assert check(store, fleet) == ["the budget of apollo is no longer used up"]
    with pytest.raises((Denied, BreakerOpenError)):
        fleet.breaker("apollo").call(Service(Denied("no credits")), "x")
    assert fleet.breaker("apollo").status.is_denied
    ACCOUNT["left"] = None
    now[0] += EVERY_S
    assert check(store, fleet) == [], "it does not answer"
    ACCOUNT["left"] = 100
    now[0] += EVERY_S
    clock.advance(60)
    assert check(store, fleet) == ["apollo has 100 left: a trial call is made"]
    assert refused(fleet) is None
    assert fleet.breaker("apollo").status.state is BreakerState.CLOSED


def test_a_service_that_does_not_say_what_is_left_holds_nobody_up(
    store: Store, fleets: list[Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleets.append(Fleet(SqlBackend(store), [policy(balance=LEFT)]))
    ACCOUNT["hangs"] = True
    monkeypatch.setattr("dagster_tidegate.gate.budgets.EVERY_S", 0.0)
    check, before = BudgetCheck(), threading.active_count()
    for _ in range(3):
        assert check(store, fleets[0]) == []
    assert threading.active_count() <= before + 2, "one waits; the other may be a watcher"


def test_what_is_left_may_be_asked_by_a_url(store: Store, fleets: list[Fleet]) -> None:
    class Credits(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/credits"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"data": {"left": 2.5}}')

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Credits) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/credits#/data/left"
        asked = policy(balance=url).model_copy(update={"probe_timeout_s": 20})
        fleets.append(Fleet(SqlBackend(store), [asked]))
        BudgetCheck()(store, fleets[0])
        server.shutdown()
    with store.read() as conn:
        assert budgets.read(conn, store.now(conn))["apollo"].left == 2.5


def test_people_see_who_used_how_much(
    store: Store, store_url: str, clock: Clock, fleets: list[Fleet]
) -> None:
    fleets.append(Fleet(SqlBackend(store), [policy()]))
    spend(fleets[0], 1.5)
    spend(fleets[0], 0.25, "invoices")
    with store.read() as conn:
        fleet = situation.read(conn, clock())
        page = service_page(conn, fleet, "apollo", None)
    assert str(page.budget) == ("1.75 of 5 credits spent today; resets at 2026-03-02 00:00:00 UTC")
    assert fleet.budgets["apollo"].campaigns == {"outreach": 1.5, "invoices": 0.25}
    registry = CollectorRegistry()
    registry.register(FleetCollector(store))
    metrics = generate_latest(registry).decode()
    assert (
        'tidegate_budget_spent{campaign="outreach",service="apollo",unit="credits"} 1.5' in metrics
    )
    assert 'tidegate_budget_left{service="apollo",unit="credits"} 3.25' in metrics
    # The commands read the time of day.
    arguments = ["budgets", "apollo", "--url", store_url]
    said = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
    assert [(each["campaign"], each["amount"]) for each in json.loads(said.stdout)] == [
        ("outreach", 1.5),
        ("invoices", 0.25),
    ]
    assert "apollo" in CliRunner().invoke(main, ["budgets", "--url", store_url]).stdout
    unknown = CliRunner().invoke(main, ["budgets", "maps", "--url", store_url])
    assert unknown.exit_code == 1
    assert "no service 'maps' has a budget; those that have one: apollo" in unknown.stderr
