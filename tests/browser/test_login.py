"""A browser logs in, sees the Dagster UI, and changes things in it only as its role allows."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, Response, expect

from dagster_tidegate.store import history, schema, tokens
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.tokens import Role

MAX_S = 240
JOB = """
import dagster as dg


@dg.op
def say() -> None: ...


@dg.job
def hello() -> None:
    say()


defs = dg.Definitions(jobs=[hello])
"""
PAGE = "/locations/definitions.py/jobs/hello"
# As the UI sends it, with the session of the browser.
SEND_MUTATION = """async () => {
  const answer = await fetch("/graphql", {
    method: "POST",
    headers: {"Content-Type": "application/json"},
    body: JSON.stringify({query: "mutation { reloadWorkspace { __typename } }"}),
  });
  return [answer.status, (await answer.json()).code];
}"""


@dataclass
class Server:
    """A running `tidegate serve`, and a token for each role."""

    url: str
    store: Store
    secrets: dict[Role, str]

    def changes(self) -> list[tuple[str, str, str | None]]:
        """What was changed in the Dagster UI, by whom, from where."""
        with self.store.read() as conn:
            found = history.read(conn, kinds=[EventKind.DAGSTER_UI], limit=100)
        return [(each.name, each.actor, each.address) for each in found]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "definitions.py").write_text(JOB)
    (tmp_path / "workspace.yaml").write_text("load_from:\n  - python_file: definitions.py\n")
    (tmp_path / "dagster.yaml").write_text("telemetry:\n  enabled: false\nnux:\n  enabled: false\n")
    store = Store(f"sqlite:///{tmp_path / 'tidegate.db'}")
    schema.upgrade(store)
    with store.begin() as conn:
        now = store.now(conn)
        made = {
            role: tokens.create(conn, now, f"a {role}", role, actor="tests")[1] for role in Role
        }
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("tidegate"), "serve", "--port", "0"],
            cwd=tmp_path,
            env={**os.environ, "DAGSTER_HOME": str(tmp_path), "TIDEGATE_STORE_URL": ""},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + MAX_S
        while (told := re.search(r"^serving (\S+),", log.read_text(), re.MULTILINE)) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield Server(told[1], store, made)
    finally:
        process.terminate()
        process.wait(MAX_S)
        store.dispose()


def log_in(page: Page, server: Server, role: Role) -> None:
    page.goto(server.url + PAGE)
    expect(page).to_have_url(re.compile("/login"))
    page.get_by_label("Token").fill(server.secrets[role])
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(re.compile(f"{re.escape(server.url + PAGE)}/?$"))


def test_a_viewer_sees_dagsters_pages_and_an_operator_uses_them(
    server: Server, page: Page, tmp_path: Path
) -> None:
    refused: list[Response] = []
    page.on("response", lambda answer: refused.append(answer) if answer.status >= 400 else None)
    launchpad = page.get_by_role("tab", name="Launchpad")

    page.goto(f"{server.url}/login")
    page.get_by_label("Token").fill("tdg_wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("unknown")
    page.screenshot(path=tmp_path / "login.png")
    refused.clear()

    log_in(page, server, Role.VIEWER)
    expect(launchpad).to_be_disabled()
    page.screenshot(path=tmp_path / "viewer.png")
    assert [answer.url for answer in refused] == []
    assert page.evaluate(SEND_MUTATION) == [403, "forbidden"]
    assert server.changes() == []
    page.goto(f"{server.url}/login")
    expect(page.get_by_text("Logged in as a viewer, viewer.")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    refused.clear()

    log_in(page, server, Role.OPERATOR)
    expect(launchpad).to_be_enabled()
    launchpad.click()
    page.get_by_role("button", name="Launch Run").first.click()
    expect(page).to_have_url(re.compile("/runs/"))
    page.screenshot(path=tmp_path / "operator.png")
    assert [answer.url for answer in refused] == []
    changed = [(by, address) for what, by, address in server.changes() if "launch" in what]
    assert changed == [("a operator", "127.0.0.1")]
