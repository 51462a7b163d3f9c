"""`tidegate serve` as a process: the API and the Dagster UI on one port, or the API alone."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from dagster_tidegate.cli import main
from dagster_tidegate.store import schema
from dagster_tidegate.store.database import Store
from demo.up.ports import free
from tests.support.sqlite_stores import new_sqlite_url

MAX_S = 120.0
DEFINITIONS = """
import dagster as dg

@dg.job
def nothing():
    pass

defs = dg.Definitions(jobs=[nothing])
"""
WORKSPACE = "load_from: [{python_file: {relative_path: definitions.py, working_directory: .}}]"
QUERY = {"query": "{ workspaceOrError { ... on Workspace { locationEntries { loadStatus } } } }"}
MUTATION = {"query": 'mutation { deleteRun(runId: "x") { __typename } }'}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "definitions.py").write_text(DEFINITIONS)
    (tmp_path / "workspace.yaml").write_text(WORKSPACE)
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setenv("TIDEGATE_STORE_URL", new_sqlite_url(home / "tidegate.db"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Serving:
    """A server in a process of its own."""

    def __init__(self, project: Path, command: list[str]) -> None:
        self.log = project / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=project,
                env=os.environ,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        self.said = ""

    def address(self) -> str:
        """Wait until it says where it serves."""
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        found = re.search(r"serving (\S+),", self.said)
        assert found is not None, self.said + self.log.read_text()
        return found[1]

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(MAX_S)


@pytest.fixture
def serve(project: Path) -> Iterator[Callable[..., Serving]]:
    started: list[Serving] = []

    def serve(*options: str) -> Serving:
        command = ["dagster_tidegate.cli", "serve", "--port", "0", *options]
        started.append(Serving(project, command))
        return started[-1]

    yield serve
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


def test_the_api_and_dagsters_pages_are_on_one_port_and_read_only_for_both(
    serve: Callable[..., Serving],
) -> None:
    serving = serve("--path-prefix", "/dg", "--read-only")
    address = serving.address()
    assert address.endswith("/dg")
    with httpx.Client(base_url=address, timeout=MAX_S) as client:
        assert client.get("/api/v1/health/ready").json() == {"status": "ready"}
        assert client.get("/api/v1/openapi.json").json()["servers"] == [{"url": "/dg"}]
        assert "dagster_webserver_version" in client.get("/server_info").json()
        assert client.get("/").text.startswith("<!DOCTYPE html>")
        assert client.get("/runs").text.startswith("<!DOCTYPE html>")
        entries = client.post("/graphql", json=QUERY).json()["data"]["workspaceOrError"]
        assert entries == {"locationEntries": [{"loadStatus": "LOADED"}]}
        assert client.get("/api/v1/nowhere").json()["code"] == "not_found"
        assert client.get("/apiary").text.startswith("<!DOCTYPE html>")  # Dagster's to answer
        assert client.get("/metrics").status_code == 200
        refused = client.post("/api/v1/campaigns/nothing/hold", json={"reason": "x"})
        assert refused.json()["code"] == "read_only"
        assert "UnauthorizedError" in client.post("/graphql", json=MUTATION).text
    assert serving.stop(signal.SIGTERM) == 0


def test_alone_and_read_only_the_api_shows_and_changes_nothing(
    serve: Callable[..., Serving],
) -> None:
    serving = serve("--api-only", "--read-only")
    with httpx.Client(base_url=serving.address(), timeout=MAX_S) as client:
        assert client.get("/api/v1/holds").json()["items"] == []
        body = {"target_kind": "everything", "reason": "x"}
        assert client.post("/api/v1/holds", json=body).json()["code"] == "read_only"
        assert client.get("/server_info").json()["code"] == "not_found"
        with client.stream("GET", "/api/v1/events/stream") as stream:
            assert stream.status_code == 200
            # An open stream does not keep it from ending.
            assert serving.stop(signal.SIGINT) == 0


def test_another_server_can_run_the_api(project: Path) -> None:
    port = free()
    options = ["--factory", "dagster_tidegate.web.api.asgi:app", "--port", str(port)]
    serving = Serving(project, ["uvicorn", *options])
    try:
        transport = httpx.HTTPTransport(retries=100)
        with httpx.Client(transport=transport, timeout=MAX_S) as client:
            answer = client.get(f"http://127.0.0.1:{port}/api/v1/health/ready")
        assert answer.json() == {"status": "ready"}
    finally:
        serving.process.kill()
        serving.process.wait()


def test_what_keeps_it_from_serving_is_said_in_one_line(project: Path) -> None:
    def refused(*options: str) -> str:
        result = CliRunner().invoke(main, ["serve", *options])
        assert result.exit_code == 1, result.output
        return result.stderr

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port} can't be used" in refused("--api-only", "--port", port)
    assert "tidegate tokens create" in refused("--api-only", "--host", "0.0.0.0")
    (project / "workspace.yaml").write_text("load_from: 3")
    assert "can't be read as a workspace" in refused("--port", "0")
    (project / "workspace.yaml").unlink()
    assert "--api-only works without one" in refused("--port", "0")
    store = Store(f"sqlite:///{project / 'home' / 'tidegate.db'}")
    schema.downgrade(store, "0002")
    assert "tidegate store upgrade" in refused("--api-only")
