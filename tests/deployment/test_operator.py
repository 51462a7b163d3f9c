"""An operator in an outage, with the command line, the API and a deployment that is real."""

import json
from contextlib import ExitStack
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import httpx
from click.testing import CliRunner

from dagster_tidegate.cli import main as tidegate
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import heartbeats, holds, runs
from demo.__main__ import main as demo
from demo.drill.deployment import Deployment, start_deployment
from demo.up import dagster_web
from tests.integration.api import Api
from tests.support.polling import wait_until

ROOT = Path(__file__).parents[2]
MAX_S = 300.0


class Operator:
    """Runs commands as an operator does, in the project's directory."""

    def __init__(self, scene: Deployment) -> None:
        self.scene = scene

    def run(self, *arguments: str, expect: int | None = 0) -> str:
        command = demo if arguments[0] == "sandbox" else tidegate
        done = CliRunner().invoke(command, arguments, env=self.scene.env)
        assert expect in (None, done.exit_code), done.output
        return done.stdout

    def json(self, *arguments: str, expect: int | None = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", expect=expect))

    def findings(self) -> set[str]:
        found = self.json("doctor", expect=None)["findings"]
        return {finding["code"] for finding in found}

    def gate_has_ticked(self) -> bool:
        with self.scene.store.read() as conn:
            return {beat.part for beat in heartbeats.read(conn)} == set(heartbeats.PARTS)

    def status_of(self, name: str) -> RunStatus | None:
        with self.scene.store.read() as conn:
            run = runs.find(conn, *name.split("/"))
        return None if run is None else run.status

    def holds(self) -> set[str]:
        with self.scene.store.read() as conn:
            return {hold.target.name for hold in holds.live(conn, self.scene.store.now(conn))}


def test_an_outage_is_seen_explained_and_steered(tmp_path: Path) -> None:
    with ExitStack() as stack:
        workspace = ROOT / "workspace.yaml"
        scene = stack.enter_context(start_deployment(workspace, tmp_path, store_url=None))
        operator = Operator(scene)

        # A healthy deployment has no finding, as soon as each sensor has had a tick.
        wait_until(operator.gate_has_ticked, "the gate has ticked")
        wait_until(lambda: not operator.findings(), "no finding", every_s=2)

        operator.run("sandbox", "leads", str(scene.leads / "people.csv"), "--count", "30")
        # The service goes down under a run of the one campaign that needs it alone, which pauses.
        operator.run("sandbox", "slow", "millionverifier", "--latency", "1")
        partition = dagster_web.recent_partition(scene.web, "list_hygiene")
        day_before = str(date.fromisoformat(partition) - timedelta(days=1))
        started = operator.json("start", "list_hygiene", "--partition", partition)
        name = f"list_hygiene/{partition}"
        wait_until(lambda: operator.status_of(name) is RunStatus.PROCESSING, f"{name} is at work")
        operator.run("sandbox", "fail", "millionverifier")
        wait_until(lambda: operator.status_of(name) is RunStatus.PAUSED, f"{name} is paused")
        why = operator.json("why", name)
        assert [hold["target_name"] for hold in why["holds"]] == ["millionverifier"]
        assert operator.json("why", started["dagster_run"])["holds"] == why["holds"]
        assert operator.json("why", "account_digest")["paused"] is False
        refused = operator.json("start", "list_hygiene", "--partition", day_before, expect=3)
        assert refused["refusal"] == "held"

        # The server of the Dagster UI says the same over its API.
        client = stack.enter_context(httpx.Client(base_url=scene.web, timeout=MAX_S))
        client.headers["X-Tidegate-Actor"] = "ana"
        api = Api(client)
        assert {"list_hygiene", "outreach"} == set(api.get("/queue")["paused_campaigns"])
        [waiting] = [s for s in api.get("/queue")["services"] if s["service"] == "millionverifier"]
        assert (waiting["state"], waiting["runs"]["paused"]) != ("closed", 0)
        shown = api.get(f"/campaigns/list_hygiene/runs/{partition}")
        assert (shown["status"], shown["why"]["holds"][0]["source"]) == ("paused", "breaker")
        body = {"partition": day_before}
        assert api.post("/campaigns/list_hygiene/start", body, expect=409)["code"] == "held"
        assert not api.get("/health/gate")["stale"]

        # A hold of the operator's own outlives the recovery.
        api.post("/campaigns/list_hygiene/hold", {"reason": "check the list first"})
        operator.run("sandbox", "heal")
        wait_until(lambda: "millionverifier" not in operator.holds(), "millionverifier is back")
        why = operator.json("why", name)
        assert [hold["reason"] for hold in why["holds"]] == ["check the list first"]
        plan = operator.run("release", "campaign", "list_hygiene", "--dry-run")
        assert "campaign list_hygiene resumes; 1 paused run will resume" in plan
        [listed] = operator.json("campaigns", "--status", "paused")
        assert listed["name"] == "list_hygiene"

        assert len(api.post("/campaigns/list_hygiene/release")["released"]) == 1
        wait_until(lambda: operator.status_of(name) is RunStatus.COMPLETED, f"{name} completes")
        shown = operator.json("runs", "show", name)
        assert [attempt["outcome"] for attempt in shown["attempts"]] == ["paused", "completed"]
        assert (shown["in_doubt"], shown["failed_count"]) == ([], 0)
        told = [e["to_status"] for e in operator.json("history", name, "--kind", "campaign_run")]
        assert told.index("paused") < told.index("completed")
        released, placed = api.get("/events", name="list_hygiene", kind="hold")["items"]
        assert [(e["actor"], e["to_status"]) for e in (placed, released)] == [
            ("ana", "placed"),
            ("ana", "released"),
        ]

        # A run that the API starts is cancelled by it, between two records.
        operator.run("sandbox", "slow", "millionverifier", "--latency", "1")
        started = api.post("/campaigns/list_hygiene/start", body, expect=202)
        name = f"list_hygiene/{day_before}"
        wait_until(lambda: operator.status_of(name) is RunStatus.PROCESSING, f"{name} is at work")
        answer = api.client.post(
            f"/api/v1/campaigns/{started['name'].replace('/', '/runs/')}/cancel"
        )
        assert answer.status_code == 202, answer.text
        wait_until(lambda: operator.status_of(name) is RunStatus.CANCELLED, f"{name} is cancelled")
        assert api.get(f"/campaigns/list_hygiene/runs/{day_before}")["in_doubt"] == []
