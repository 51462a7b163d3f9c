"""`python -m demo up` as a person runs it: a process, and what becomes of its children.

Where only the processes matter, the children are stand-ins.
"""

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import runs, schema, tokens
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.store.tokens import Role
from demo.sandbox.client import SandboxClient
from demo.sandbox.leads import write_lead_file
from demo.up.ports import free
from tests.support.polling import wait_until
from tests.support.python_path import QUICK_RUNS

ROOT = Path(__file__).parents[2]

DEFINITIONS = """
import dagster as dg

@dg.job
def nothing():
    pass

defs = dg.Definitions(jobs=[nothing])
"""
WORKSPACE = "load_from: [{python_file: {relative_path: definitions.py, working_directory: .}}]"
READY = "Tidegate is up"
LAST_LINE = "everything resumes where it stopped"
TIMEOUT_S = 240


class Up:
    """A running `python -m demo up`."""

    def __init__(self, project: Path, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=project,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.family: list[psutil.Process] = []
        self.said = ""

    def wait_until_ready(self) -> "Up":
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if LAST_LINE in line:
                break
        assert READY in self.said, self.said
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        return self

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        assert self.process.stdout is not None
        self.said += self.process.stdout.read()
        return self.process.wait(TIMEOUT_S)

    def left_over(self) -> list[psutil.Process]:
        """Return those of its children, and theirs, that do not end."""
        return psutil.wait_procs(self.family, timeout=20)[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "definitions.py").write_text(DEFINITIONS)
    (tmp_path / "workspace.yaml").write_text(WORKSPACE)
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}")
    return tmp_path


@pytest.fixture
def up(project: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DAGSTER_HOME", "TIDEGATE_STORE_URL", "DEMO_SANDBOX_URL")
    }
    environment["PYTHONPATH"] = str(ROOT)  # no more: these are the processes of a user

    def start(
        *options: str,
        home: Path | None = None,
        under: tuple[str, ...] = (),
        module: str = "demo",
        **variables: str,
    ) -> Up:
        ours = variables if home is None else {**variables, "DAGSTER_HOME": str(home)}
        if "--port" not in options:
            options = (*options, "--port", str(free()), "--sandbox-port", str(free()))
        command = [*under, sys.executable, "-m", module, "up", *options]
        started.append(Up(project, command, environment | ours))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()
        for process in each.left_over():
            process.kill()


@pytest.fixture
def quick_up(up: Callable[..., Up]) -> Callable[..., Up]:
    """Like `up`, with stand-ins for the sandbox, the webserver and the daemon."""
    return partial(up, module="tests.deployment.stand_ins")


def test_up_starts_everything_and_ctrl_c_stops_everything(up, project: Path):
    running = up().wait_until_ready()
    for name in ("Dagster", "Sandbox"):
        (address,) = re.findall(rf"{name} +(http://127\.0\.0\.1:\d+)", running.said)
        path = "/server_info" if name == "Dagster" else "/_stats"
        assert urllib.request.urlopen(address + path).status == 200
    home = project / ".tidegate" / "home"
    assert (home / "dagster.yaml").samefile(project / "dagster.yaml")
    assert (home / "tidegate.db").exists()
    assert {path.name for path in (home / "tidegate" / "logs").iterdir()} == {
        "sandbox.log",
        "webserver.log",
        "daemon.log",
    }

    second = up()
    assert second.wait() == 1
    assert f"in use by another 'python -m demo up', pid {running.process.pid}" in second.said

    taken = re.findall(r"Dagster +http://127\.0\.0\.1:(\d+)", running.said)[0]
    other = up("--port", taken, home=project / "other")
    assert other.wait() == 1
    assert f"port {taken}" in other.said
    assert "--port" in other.said

    assert len(running.family) >= 5  # guard, sandbox, webserver, daemon, their code servers
    running.signal(signal.SIGINT)
    assert running.wait() == 0
    assert running.left_over() == []


def test_stopped_in_the_middle_of_a_campaign_it_goes_on_at_the_next_start(up, tmp_path: Path):
    """Where a token is asked for, it has one of its own meanwhile."""
    leads, home = tmp_path / "leads", tmp_path / "home"
    leads.mkdir()
    home.mkdir()
    store = Store(f"sqlite:///{home / 'tidegate.db'}")
    schema.upgrade(store)
    with store.begin() as conn:
        tokens.create(conn, store.now(conn), "ana", Role.VIEWER, actor="tests")
    write_lead_file(leads / "people.csv", 150)
    port, sandbox_port = free(), free()

    def start() -> Up:
        return up(
            *("--workspace", str(ROOT / "workspace.yaml"), "--latency", "0.05"),
            *("--port", str(port), "--sandbox-port", str(sandbox_port)),
            home=home,
            DEMO_LEADS=str(leads),
            PYTHONPATH=os.pathsep.join([*QUICK_RUNS, str(ROOT)]),
        ).wait_until_ready()

    running = start()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/services")
    assert refused.value.code == 401
    with SandboxClient(f"http://127.0.0.1:{sandbox_port}") as sandbox:
        wait_until(lambda: sandbox.stats()["apollo"]["effects"] > 20)
    running.signal(signal.SIGINT)
    assert running.wait() == 0
    assert running.left_over() == []
    assert campaign_run(store).status is RunStatus.PAUSED

    running = start()
    wait_until(lambda: campaign_run(store).status is RunStatus.COMPLETED)
    assert campaign_run(store).attempt == 2
    with SandboxClient(f"http://127.0.0.1:{sandbox_port}") as sandbox:
        # The sandbox was started anew: what it has not seen, the first attempt had done.
        assert 0 < sandbox.stats()["apollo"]["effects"] < 130
        assert sandbox.stats()["instantly"]["effects"] == 150
    running.signal(signal.SIGINT)
    assert running.wait() == 0
    with store.read() as conn:
        live = [token.name for token in tokens.read(conn) if token.revoked_at is None]
    assert live == ["ana"]
    store.dispose()


def campaign_run(store: Store) -> CampaignRun:
    with store.read() as conn:
        found = runs.find(conn, "outreach", "people")
    assert found is not None
    return found


def test_killed_it_leaves_no_child_and_the_next_takes_over(quick_up):
    killed = quick_up().wait_until_ready()
    killed.signal(signal.SIGKILL)
    killed.wait()

    following = quick_up().wait_until_ready()
    assert f"from pid {killed.process.pid}, which has ended" in following.said
    assert killed.left_over() == []
    following.signal(signal.SIGTERM)
    assert following.wait() == 0
    assert following.left_over() == []


def test_killed_together_with_its_guard_it_leaves_no_child(quick_up):
    running = quick_up().wait_until_ready()
    (guard,) = (p for p in running.family if "demo.up.guard" in p.cmdline())
    guard.suspend()
    running.signal(signal.SIGKILL)
    guard.kill()
    assert running.left_over() == []


def test_a_child_that_dies_is_named_and_stops_the_others(quick_up):
    running = quick_up().wait_until_ready()
    (sandbox,) = (p for p in running.family if "sandbox" in p.cmdline())
    sandbox.kill()
    assert running.wait() == 1
    assert "sandbox ended by signal SIGKILL" in running.said
    assert "sandbox.log" in running.said
    assert running.left_over() == []


def test_a_code_location_that_does_not_load_is_told_with_its_error(up, project: Path):
    (project / "definitions.py").write_text("import no_such_module")
    running = up()
    assert running.wait() == 1
    assert "No module named 'no_such_module'" in running.said


def test_it_stops_with_what_started_it_when_told_to(quick_up):
    shell = quick_up("--with-parent", under=("sh", "-c", '"$@" & wait', "sh")).wait_until_ready()
    shell.process.kill()
    shell.wait()
    assert shell.left_over() == []


def test_a_relative_dagster_home_is_refused(up):
    running = up(home=Path("relative"))
    assert running.wait() == 1
    assert "DAGSTER_HOME is 'relative'; it must be an absolute path" in running.said
