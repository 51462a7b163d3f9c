"""The report of an outage on the command line and over the API."""

import json
import re
from datetime import timedelta

import pytest

from dagster_tidegate.breaker import state_machine as machine
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind
from dagster_tidegate.store import breakers
from dagster_tidegate.store.database import Store
from tests.integration.api import api
from tests.integration.conftest import Run

pytestmark = pytest.mark.database_time
DOWN = Verdict(VerdictKind.FAILURE, reason="503 x5", answer="<b>try</b> later")


@pytest.fixture
def outage(store: Store) -> int:
    """The id of the event that ended an outage of `mail` of ten minutes."""
    with store.begin() as conn:
        opened_at = store.now(conn) - timedelta(minutes=20)
        breakers.ensure(conn, opened_at, ["mail", "maps"])
        before = breakers.read_one(conn, "mail")
        opened = machine.opened(before, ServicePolicy(name="mail"), opened_at, DOWN, 0.0)
        breakers.change(conn, opened_at, before, opened, actor="worker-1")
        closed_at = opened_at + timedelta(minutes=10)
        closed = machine.closed(opened, closed_at)
        breakers.change(conn, closed_at, opened, closed, actor="worker-1")
    with api(store) as client:
        events = client.get("/events", name="mail", kind="service")["items"]
        return events[0]["id"]


def test_the_command_reports_an_outage_as_markdown(run: Run, outage: int) -> None:
    done = run("report", "--outage", str(outage))
    assert done.exit_code == 0, done.output
    assert done.output.startswith("# Outage of mail")
    assert "Lasted: 10 min" in done.output
    assert "\\<b\\>try" in done.output


@pytest.mark.usefixtures("outage")
def test_the_command_reports_a_service_and_all_services(run: Run) -> None:
    of_mail = run("report", "--service", "mail")
    assert of_mail.output.count("# Outage of mail") == 1
    assert "# Outages of mail" in of_mail.output
    of_all = run("report").output
    assert "| mail " in of_all
    assert "| maps " in of_all


def test_an_empty_period_is_told_in_times_for_people(run: Run) -> None:
    result = run("report", "--since", "2030-01-01T00:00Z")
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert re.search(r"from 2030-01-01 00:00:00 UTC to \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC is", said)


def test_the_command_prints_what_the_api_answers(run: Run, store: Store, outage: int) -> None:
    printed = json.loads(run("report", "--outage", str(outage), "--json").output)
    with api(store) as client:
        answer = client.get(f"/reports/outages/{outage}")
        assert client.get("/reports/services/mail")["summary"]["outages"] == 1
        by_name = {each["service"]: each for each in client.get("/reports")["services"]}
    assert (printed["seconds"], printed["reason"]) == (600, "503 x5")
    assert (answer["seconds"], answer["reason"]) == (600, "503 x5")
    assert by_name["mail"]["mttr_s"] == 600
    assert by_name["maps"]["outages"] == 0


@pytest.mark.usefixtures("outage")
def test_what_does_not_exist_is_refused_with_what_to_do(run: Run, store: Store) -> None:
    unknown = run("report", "--service", "mial")
    assert (unknown.exit_code, "did you mean mail?" in unknown.output) == (1, True)
    assert "see 'tidegate report --service" in run("report", "--outage", "99999").output
    assert run("report", "--outage", "1", "--since", "2h").exit_code == 2
    assert run("report", "--since", "2h", "--until", "2020-01-01T00:00Z").exit_code == 2
    with api(store) as client:
        assert client.get("/reports/outages/99999", expect=404)["code"] == "outage_not_found"
        assert client.get("/reports/services/mial", expect=404)["code"] == "service_not_found"
        since = "2030-01-01T00:00:00Z"
        assert client.get("/reports", expect=422, since=since)["code"] == "invalid"
