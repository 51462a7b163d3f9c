"""Starts the sandbox, Dagster's webserver and its daemon, and stays until told to stop."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from dagster_tidegate.instance import Dagster
from dagster_tidegate.store import schema
from dagster_tidegate.store.database import Store, default_url
from dagster_tidegate.up import home as homes
from dagster_tidegate.up.children import Children
from dagster_tidegate.up.dagster_web import all_well, answers
from dagster_tidegate.up.ports import LOOPBACK, require_free

READY_TIMEOUT_S = 120.0
LOOK_EVERY_S = 0.5
# Not "logs": Dagster sends what is in DAGSTER_HOME/logs to its telemetry server, and removes it,
# also where telemetry is switched off in dagster.yaml (dagster/_core/telemetry_upload.py).
LOGS = Path("tidegate", "logs")


@dataclass(frozen=True)
class Addresses:
    """Where a running deployment is found.

    Attributes:
        web: URL of Dagster's webserver.
        sandbox: URL of the sandbox.
        home: The DAGSTER_HOME.
        logs: Directory with a log file of each process.
        started_in_s: How long it took to get ready, seconds.
    """

    web: str
    sandbox: str
    home: Path
    logs: Path
    started_in_s: float


def daemon_command(workspace: Path) -> list[str]:
    """Return the command of Dagster's daemon, with this interpreter."""
    return [
        sys.executable, "-m", "dagster._daemon", "run",
        "--workspace", str(workspace), "--log-level", "warning",
    ]  # fmt: skip


def start(
    children: Children,
    workspace: Path,
    *,
    port: int,
    sandbox_port: int,
    sandbox_options: Sequence[str] = (),
    env: Mapping[str, str],
    given_up: Callable[[], bool] = lambda: False,
) -> None:
    """Start the three processes and wait until each answers.

    Args:
        children: Whose children they become.
        workspace: The project's `workspace.yaml`.
        port: Port of Dagster's webserver.
        sandbox_port: Port of the sandbox.
        sandbox_options: More options of `tidegate sandbox serve`.
        env: Their environment; it has DAGSTER_HOME and where the sandbox is.
        given_up: Whether to wait no longer.

    Raises:
        ChildDiedError: If a process ended by itself.
        NotReadyError: If a process was not ready in time.
        LocationError: If a code location can't be loaded.
    """
    make_dagster_storage(Path(env["DAGSTER_HOME"]))
    web, sandbox = address(port), address(sandbox_port)
    commands = {
        "sandbox": [
            sys.executable, "-m", "dagster_tidegate.cli", "sandbox", "serve",
            "--port", str(sandbox_port), *sandbox_options,
        ],
        "webserver": [
            sys.executable, "-m", "dagster_webserver", "--host", LOOPBACK, "--port", str(port),
            "--workspace", str(workspace), "--dagster-log-level", "warning",
            "--code-server-log-level", "warning",
        ],
        "daemon": daemon_command(workspace),
    }  # fmt: skip
    for name, command in commands.items():
        children.start(name, command, env=env, cwd=workspace.parent)
    for name, ready in (
        ("sandbox", lambda: answers(f"{sandbox}/_stats")),
        ("webserver", lambda: answers(f"{web}/server_info")),
        ("daemon", lambda: all_well(web)),
    ):
        children.wait_until(
            lambda ready=ready: given_up() or ready(),
            timeout_s=READY_TIMEOUT_S,
            waiting_for=name,
        )


def make_dagster_storage(home: Path) -> None:
    """Make the databases of Dagster's embedded default in a DAGSTER_HOME.

    Dagster does so when they are first used, and processes that do it at the same moment get in
    each other's way ("Version table 'alembic_version' has more than one head present").
    """
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.get_runs_count()
        dagster = Dagster(instance)
        dagster.triggers()
        dagster.pools()


def address(port: int) -> str:
    """Return the URL of a server of this deployment."""
    return f"http://{LOOPBACK}:{port}"


def run(
    workspace: Path,
    *,
    port: int,
    sandbox_port: int,
    latency_s: float,
    ready: Callable[[Addresses], None],
    tell: Callable[[str], None],
    with_parent: bool = False,
) -> None:
    """Run the deployment until SIGINT, SIGTERM or SIGHUP.

    Args:
        workspace: The project's `workspace.yaml`; its `dagster.yaml` is beside it.
        port: Port of Dagster's webserver.
        sandbox_port: Port of the sandbox.
        latency_s: How long the sandbox takes to answer, in seconds.
        ready: Called once everything answers.
        tell: Told what a person should know meanwhile.
        with_parent: Also stop when the process that started this one ends.

    Raises:
        HomeError: If DAGSTER_HOME can't be used, or another deployment uses it.
        PortTakenError: If a port is taken.
        ChildDiedError: If a process ended by itself.
        NotReadyError: If a process was not ready in time.
        LocationError: If a code location can't be loaded.
    """
    began = time.monotonic()
    parent = os.getppid()
    home = homes.prepare(workspace.parent)
    with _stop_signals() as stopped, homes.lock(home, tell) as lock:
        require_free(port, user="Dagster's webserver", option="--port")
        require_free(sandbox_port, user="the sandbox", option="--sandbox-port")
        os.environ["DAGSTER_HOME"] = str(home)
        os.environ["TIDEGATE_SANDBOX_URL"] = address(sandbox_port)
        upgrade_store(default_url())

        def gone() -> bool:
            return stopped.is_set() or (with_parent and os.getppid() != parent)

        with Children(home / LOGS, keep_open=lock) as children:
            start(
                children,
                workspace,
                port=port,
                sandbox_port=sandbox_port,
                sandbox_options=("--latency", str(latency_s)),
                env=os.environ,
                given_up=gone,
            )
            if not gone():
                took = time.monotonic() - began
                ready(Addresses(address(port), address(sandbox_port), home, children.logs, took))
            while not gone():
                children.check()
                stopped.wait(LOOK_EVERY_S)
            tell("stopping")


def upgrade_store(url: str) -> None:
    """Make the store ready for this version."""
    store = Store(url)
    try:
        schema.upgrade(store)
    finally:
        store.dispose()


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Yield an event that is set by the signals that ask a process to stop."""
    stopped = threading.Event()
    asking = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = {number: signal.signal(number, lambda *_: stopped.set()) for number in asking}
    try:
        yield stopped
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
