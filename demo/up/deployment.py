"""Starts the sandbox, Dagster's webserver and its daemon, and runs until stopped."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import dagster as dg
from sqlalchemy.exc import SQLAlchemyError

from dagster_tidegate.dagster_api.workspace import make_storage
from dagster_tidegate.holds import EVERYTHING, HoldSource
from dagster_tidegate.store import holds, schema, tokens
from dagster_tidegate.store.database import Store, locate
from dagster_tidegate.store.tokens import Role
from demo.up import dagster_web
from demo.up import home as homes
from demo.up.children import Children
from demo.up.guard import GRACE_S
from demo.up.ports import LOOPBACK, require_free

READY_TIMEOUT_S = 300.0  # a busy machine takes minutes
POLL_INTERVAL_S = 0.5
PAUSE_TIMEOUT_S = 5.0
PROJECT = Path(__file__).resolve().parents[2]
TOKEN_LIFETIME = timedelta(days=30)
ACTOR = "demo up"
"""The actor of its changes in the audit log."""
# Not "logs": Dagster uploads the contents of DAGSTER_HOME/logs as telemetry and deletes them,
# even if telemetry is disabled in dagster.yaml (dagster/_core/telemetry_upload.py).
LOGS = Path("tidegate", "logs")


@dataclass(frozen=True)
class Addresses:
    """Addresses and directories of a running deployment.

    Attributes:
        web: URL of Dagster's UI and of the API.
        sandbox: URL of the sandbox.
        home: The DAGSTER_HOME.
        logs: Directory with one log file per process.
        started_in_s: Startup time, in seconds.
    """

    web: str
    sandbox: str
    home: Path
    logs: Path
    started_in_s: float


def daemon_command(workspace: Path) -> list[str]:
    """Return the command that runs Dagster's daemon with this interpreter."""
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
    token: str | None = None,
) -> None:
    """Start the three processes and wait until they respond.

    Args:
        children: The group that they join.
        workspace: The project's `workspace.yaml`.
        port: Port of Dagster's webserver.
        sandbox_port: Port of the sandbox.
        sandbox_options: More options of `python -m demo sandbox serve`.
        env: Their environment, with DAGSTER_HOME and DEMO_SANDBOX_URL.
        given_up: Returns whether to stop waiting.
        token: An API token, if the store has any.

    Raises:
        ChildDiedError: If a process exited.
        NotReadyError: If a process was not ready in time.
        LocationError: If a code location failed to load.
    """
    # `python -m demo` is not installed: children find it where this process did.
    path = filter(None, (str(PROJECT), env.get("PYTHONPATH")))
    env = {**env, "PYTHONPATH": os.pathsep.join(path)}
    make_dagster_storage(Path(env["DAGSTER_HOME"]))
    web, sandbox = address(port), address(sandbox_port)
    commands = {
        "sandbox": [
            sys.executable, "-m", "demo", "sandbox", "serve",
            "--port", str(sandbox_port), *sandbox_options,
        ],
        "webserver": [
            sys.executable, "-m", "dagster_tidegate.cli", "serve", "--host", LOOPBACK,
            "--port", str(port), "--workspace", str(workspace),
        ],
        "daemon": daemon_command(workspace),
    }  # fmt: skip
    for name, command in commands.items():
        children.start(name, command, env=env, cwd=workspace.parent)
    for name, ready in (
        ("sandbox", lambda: dagster_web.answers(f"{sandbox}/_stats")),
        ("webserver", lambda: dagster_web.answers(f"{web}/server_info")),
        ("daemon", lambda: dagster_web.all_healthy(web, token)),
    ):
        children.wait_until(
            lambda ready=ready: given_up() or ready(),
            timeout_s=READY_TIMEOUT_S,
            waiting_for=name,
        )


def make_dagster_storage(home: Path) -> None:
    """Create Dagster's SQLite databases in a DAGSTER_HOME."""
    with dg.DagsterInstance.from_config(str(home)) as instance:
        make_storage(instance)


def address(port: int) -> str:
    """Return the URL of a local server."""
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

    Running work then pauses, for up to `PAUSE_TIMEOUT_S` seconds, and resumes at the next start.
    A second signal skips the pause.

    Args:
        workspace: The project's `workspace.yaml`; its `dagster.yaml` is beside it.
        port: Port of Dagster's webserver.
        sandbox_port: Port of the sandbox.
        latency_s: Latency of the sandbox, in seconds.
        ready: Called once everything responds.
        tell: Receives messages for the user.
        with_parent: Also stop when the parent process ends.

    Raises:
        HomeError: If DAGSTER_HOME can't be used, or another deployment uses it.
        PortTakenError: If a port is in use.
        ChildDiedError: If a process exited.
        NotReadyError: If a process was not ready in time.
        LocationError: If a code location failed to load.
    """
    began = time.monotonic()
    parent = os.getppid()
    home = homes.prepare(workspace.parent)
    with _stop_signals() as (stopped, at_once), homes.lock(home, tell) as lock:
        require_free(port, user="Dagster's webserver", option="--port")
        require_free(sandbox_port, user="the sandbox", option="--sandbox-port")
        os.environ["DAGSTER_HOME"] = str(home)
        os.environ["DEMO_SANDBOX_URL"] = address(sandbox_port)
        # Dagster's pages then link to Tidegate's.
        os.environ.setdefault("TIDEGATE_PUBLIC_URL", address(port))
        upgrade_store(locate()[0])

        def gone() -> bool:
            return stopped.is_set() or (with_parent and os.getppid() != parent)

        with Children(home / LOGS, keep_open=lock) as children, _token() as token:
            start(
                children,
                workspace,
                port=port,
                sandbox_port=sandbox_port,
                sandbox_options=("--latency", str(latency_s)),
                env=os.environ,
                given_up=gone,
                token=token,
            )
            if gone():
                return
            took = time.monotonic() - began
            ready(Addresses(address(port), address(sandbox_port), home, children.logs, took))
            while not gone():
                children.check()
                stopped.wait(POLL_INTERVAL_S)
            tell("stopping")
            _pause_work(address(port), token, tell, at_once)


def upgrade_store(url: str) -> None:
    """Create or upgrade the store."""
    store = Store(url)
    try:
        schema.upgrade(store)
    finally:
        store.dispose()


@contextmanager
def _token() -> Iterator[str | None]:
    """Make a token for as long as this runs, where others have made some; else none is needed."""
    store, name = Store(locate()[0]), f"{ACTOR} {uuid4().hex[:8]}"
    with ExitStack() as stack:
        stack.callback(store.dispose)
        with store.begin() as conn:
            now, secret = store.now(conn), None
            if tokens.any_created(conn):
                end = now + TOKEN_LIFETIME  # killed, nobody revokes it
                _, secret = tokens.create(conn, now, name, Role.VIEWER, actor=ACTOR, expires_at=end)
                stack.callback(_revoke, store, name)
        yield secret


def _revoke(store: Store, name: str) -> None:
    with store.begin() as conn:
        tokens.revoke(conn, store.now(conn), name, actor=ACTOR)


def _pause_work(
    web: str, token: str | None, tell: Callable[[str], None], at_once: threading.Event
) -> None:
    """Place a hold on everything, so that runs stop between two records instead of failing.

    The hold expires on its own, so the next start has nothing to undo.
    """
    store = Store(locate()[0])
    try:
        if not dagster_web.running_runs(web, token):
            return
        with store.begin() as conn:
            now = store.now(conn)
            holds.place(
                conn,
                now,
                EVERYTHING,
                source=HoldSource.OPERATOR,
                reason="python -m demo up is stopping",
                actor=ACTOR,
                expires_at=now + timedelta(seconds=PAUSE_TIMEOUT_S + GRACE_S),
            )
        until = time.monotonic() + PAUSE_TIMEOUT_S
        while left := dagster_web.running_runs(web, token):
            if time.monotonic() > until or at_once.is_set():
                tell(f"{left} runs did not pause in time and will be killed")
                return
            at_once.wait(0.1)
    except (OSError, SQLAlchemyError) as error:
        tell(f"running work can't be paused and will be killed ({error})")
    finally:
        store.dispose()


@contextmanager
def _stop_signals() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Yield two events: the first is set by the first stop signal, the second by the next."""
    stopped, at_once = threading.Event(), threading.Event()

    def ask(*_: object) -> None:
        (at_once if stopped.is_set() else stopped).set()

    former = {
        number: signal.signal(number, ask)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield stopped, at_once
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
