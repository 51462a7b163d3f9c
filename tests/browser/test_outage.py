"""What an operator sees in Dagster's UI during an outage and after it, in a real browser."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from demo.sandbox.client import SandboxClient
from demo.sandbox.faults import Fault, Mode
from demo.sandbox.leads import write_lead_file
from demo.up.ports import free
from tests.browser.dagster_pages import AFTER, DURING, look

PROJECT = Path(__file__).parents[2]
RUNS = "{runsOrError(limit: 100) {... on Runs {results {runId status tags {key value}}}}}"
MAX_S = 300
# One file more than dagster.yaml lets in at a time.
FILES, LEADS = 4, 50


class Deployment:
    """A running `python -m demo up` with its sandbox."""

    def __init__(self, home: Path) -> None:
        port, sandbox_port = free(), free()
        leads = home / "leads"
        leads.mkdir()
        for seed in range(FILES):
            write_lead_file(leads / f"leads-{seed}.csv", LEADS, seed=seed)
        self.url = f"http://127.0.0.1:{port}"
        self.sandbox = SandboxClient(f"http://127.0.0.1:{sandbox_port}")
        self.log = home / "up.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "demo", "up", "--latency", "0.05"),
                    *("--port", str(port), "--sandbox-port", str(sandbox_port)),
                ],
                cwd=PROJECT,
                env={**os.environ, "DAGSTER_HOME": str(home), "DEMO_LEADS": str(leads)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.wait_for(lambda: "Tidegate is up" in self.log.read_text(), "the start")

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + MAX_S
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"no sign of {what}\n{self.log.read_text()}")
            time.sleep(0.5)

    def runs(self) -> list[tuple[str, str, Mapping[str, str]]]:
        """The runs, the newest first: id, status and tags."""
        answer: dict[str, Any] = httpx.post(
            f"{self.url}/graphql", json={"query": RUNS}, trust_env=False, timeout=60
        ).json()
        return [
            (run["runId"], run["status"], {tag["key"]: tag["value"] for tag in run["tags"]})
            for run in answer["data"]["runsOrError"]["results"]
        ]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self.sandbox.close()


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path)
    yield deployment
    deployment.stop()


def begin_outage(deployment: Deployment) -> dict[str, str]:
    """Let instantly fail; returns the ids of a run that has paused and of one that waits for it."""
    deployment.sandbox.place("instantly", Fault(mode=Mode.OUTAGE))
    ids: dict[str, str] = {}

    def all_wait() -> bool:
        runs = deployment.runs()
        for run in runs:
            run_id, status, tags = run
            if is_paused(run):
                ids["paused"] = run_id
            if status == "QUEUED" and "tidegate/queued_for" in tags:
                ids["queued"] = run_id
        return len(ids) == 2 and not in_progress(deployment)

    deployment.wait_for(all_wait, "a paused run, and one that waits in the queue")
    return ids


def is_paused(run: tuple[str, str, Mapping[str, str]]) -> bool:
    _, status, tags = run
    return status == "CANCELED" and tags.get("tidegate/state") == "paused"


def test_an_outage_is_seen_in_the_ui_and_leaves_no_trace_in_it(
    deployment: Deployment, page: Page, tmp_path: Path
) -> None:
    ids = begin_outage(deployment)

    # The runs page finds what is paused, and says why.
    page.goto(f"{deployment.url}/runs?q%5B0%5D=tag%3Atidegate%2Fstate%3Dpaused")
    expect(page.get_by_text("tidegate/service: instantly").first).to_be_visible()
    expect(page.get_by_text("Canceled").first).to_be_visible()
    page.screenshot(path=tmp_path / "paused.png")

    # The runs say why they are paused or wait; so do the service and its check.
    look(page, deployment.url, DURING, tmp_path, **ids)

    # What has not started waits in the queue, since the pools let nothing through.
    page.goto(f"{deployment.url}/runs?q%5B0%5D=status%3AQUEUED")
    # One, or two while a canary is among them.
    expect(page.get_by_text(re.compile(r"Queued \([12]\)")).first).to_be_visible()
    page.screenshot(path=tmp_path / "queue.png")
    # It is 1 while a canary waits for its turn.
    deployment.wait_for(lambda: limit_of_instantly(deployment, page) == "0", "a pool at 0")
    page.screenshot(path=tmp_path / "pools.png")

    # The trigger of outreach stands still; the schedules of the others run.
    page.goto(f"{deployment.url}/automation")
    expect(switch(page, "new_lead_files")).not_to_be_checked()
    expect(switch(page, "list_hygiene_schedule")).to_be_checked()
    expect(switch(page, "account_digest_schedule")).to_be_checked()
    page.screenshot(path=tmp_path / "automation.png")

    # Well again, all of it comes back by itself.
    deployment.sandbox.heal("instantly")
    deployment.wait_for(lambda: all_done(deployment), "all runs having ended well")
    deployment.wait_for(lambda: no_limits(deployment, page), "pools without a limit")
    look(page, deployment.url, AFTER, tmp_path)
    page.goto(f"{deployment.url}/automation")
    expect(switch(page, "new_lead_files")).to_be_checked()
    page.goto(f"{deployment.url}/runs?q%5B0%5D=tag%3Atidegate%2Fstate%3Dpaused")
    expect(page.get_by_text("tidegate/state: paused")).to_have_count(0)
    page.screenshot(path=tmp_path / "after.png")


def in_progress(deployment: Deployment) -> bool:
    return any(status in ("STARTING", "STARTED") for _, status, _ in deployment.runs())


def all_done(deployment: Deployment) -> bool:
    latest: dict[str, str] = {}
    for _, status, tags in deployment.runs():
        latest.setdefault(tags["dagster/partition"], status)
    return set(latest.values()) == {"SUCCESS"}


def limit_of_instantly(deployment: Deployment, page: Page) -> str:
    """The limit of the pool `instantly`, as the pools page shows it."""
    page.goto(f"{deployment.url}/deployment/concurrency")
    return row(page, "instantly").get_by_text(re.compile(r"^\d+$")).first.inner_text()


def no_limits(deployment: Deployment, page: Page) -> bool:
    """Whether the pools page shows no limit, as before the outage."""
    page.goto(f"{deployment.url}/deployment/concurrency")
    none = page.get_by_text("No pool limits have been configured")
    none.or_(row(page, "instantly")).first.wait_for()
    return none.is_visible()


def row(page: Page, name: str) -> Locator:
    """A row of one of the UI's tables."""
    return page.locator("[class*=VirtualizedTable_row]").filter(has_text=name)


def switch(page: Page, name: str) -> Locator:
    """The switch beside a schedule or sensor; the box before it selects the row."""
    boxes = row(page, name).get_by_role("checkbox")
    expect(boxes).to_have_count(2)
    return boxes.last
