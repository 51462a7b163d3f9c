"""Starts the sandbox, Dagster's webserver and its daemon, and stays until told to stop."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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


def commands(workspace: Path, port: int, sandbox_port: int) -> dict[str, list[str]]:
    """Return the command of each process, all with this interpreter."""
    return {
        "sandbox": [
            sys.executable, "-m", "dagster_tidegate.cli", "sandbox", "serve",
            "--port", str(sandbox_port),
        ],
        "webserver": [
            sys.executable, "-m", "dagster_webserver", "--host", LOOPBACK, "--port", str(port),
            "--workspace", str(workspace), "--dagster-log-level", "warning",
            "--code-server-log-level", "warning",
        ],
        "daemon": daemon_command(workspace),
    }  # fmt: skip


def daemon_command(workspace: Path) -> list[str]:
    """Return the command of Dagster's daemon."""
    return [
        sys.executable, "-m", "dagster._daemon", "run",
        "--workspace", str(workspace), "--log-level", "warning",
    ]  # fmt: skip


def run(
    workspace: Path,
    *,
    port: int,
    sandbox_port: int,
    ready: Callable[[Addresses], None],
    tell: Callable[[str], None],
    with_parent: bool = False,
) -> None:
    """Run the deployment until SIGINT, SIGTERM or SIGHUP.

    Args:
        workspace: The project's `workspace.yaml`; its `dagster.yaml` is beside it.
        port: Port of Dagster's webserver.
        sandbox_port: Port of the sandbox.
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
        web, sandbox = f"http://{LOOPBACK}:{port}", f"http://{LOOPBACK}:{sandbox_port}"
        os.environ["DAGSTER_HOME"] = str(home)
        os.environ["TIDEGATE_SANDBOX_URL"] = sandbox
        _upgrade_store()

        def gone() -> bool:
            return stopped.is_set() or (with_parent and os.getppid() != parent)

        with Children(home / LOGS, keep_open=lock) as children:
            for name, command in commands(workspace, port, sandbox_port).items():
                children.start(name, command, cwd=workspace.parent)
            for name, condition in (
                ("sandbox", lambda: answers(f"{sandbox}/_stats")),
                ("webserver", lambda: answers(f"{web}/server_info")),
                ("daemon", lambda: all_well(web)),
            ):
                children.wait_until(
                    lambda condition=condition: gone() or condition(),
                    timeout_s=READY_TIMEOUT_S,
                    waiting_for=name,
                )
            if not gone():
                ready(Addresses(web, sandbox, home, children.logs, time.monotonic() - began))
            while not gone():
                children.check()
                stopped.wait(LOOK_EVERY_S)
            tell("stopping")


def _upgrade_store() -> None:
    store = Store(default_url())
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
