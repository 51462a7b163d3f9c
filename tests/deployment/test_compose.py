"""The services of docker-compose.yml, run by hand on PostgreSQL: their commands, their environment.

Each is a group of processes here instead of a container; what differs is where things are.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
import yaml

from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import history, runs
from dagster_tidegate.store.database import Store
from demo.sandbox.client import SandboxClient
from demo.sandbox.faults import Fault, Mode
from demo.sandbox.leads import write_lead_file
from demo.up.children import Child, Children
from demo.up.ports import free
from tests.support.polling import wait_until

PROJECT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
BIN = Path(sys.executable).parent
PASSWORD = "not used: the server trusts this machine"
SOON_S = 240.0
CHECK_EVERY_S = 1.0
LEADS = 80


class Machine:
    """This machine, in place of Docker's: what containers call by name is on loopback ports."""

    def __init__(self, place: Path, database: sa.URL) -> None:
        self.place, self.database = place, database
        self.ports = {port: str(free()) for port in ("3000", "4000", "8765")}
        self.leads = place / "leads"
        self.home = place / "home"
        for directory in (self.leads, self.home / "storage"):
            directory.mkdir(parents=True)
        instance = PROJECT / "deploy" / "compose" / "dagster-processes.yaml"
        (self.home / "dagster.yaml").symlink_to(instance)
        workspace = (PROJECT / "deploy" / "compose" / "workspace.yaml").read_text()
        self.workspace = place / "workspace.yaml"
        self.workspace.write_text(
            workspace.replace("host: code", "host: 127.0.0.1").replace("4000", self.ports["4000"])
        )
        self.running: dict[str, tuple[Children, Child]] = {}

    def here(self, text: str) -> str:
        """What a text of docker-compose.yml says, on this machine."""
        if "@postgres/" in text:
            url = sa.make_url(text)
            here = self.database.set(drivername=url.drivername).update_query_dict(dict(url.query))
            return here.render_as_string(hide_password=False)
        text = text.replace("0.0.0.0", "127.0.0.1").replace("//sandbox:", "//127.0.0.1:")
        text = text.replace("deploy/compose/workspace.yaml", str(self.workspace))
        text = text.replace("/data/leads", str(self.leads))
        return re.sub(r"\b(3000|4000|8765)\b", lambda found: self.ports[found[1]], text)

    def environment(self, name: str) -> dict[str, str]:
        kept = {"PATH": f"{BIN}:{os.environ['PATH']}", "DAGSTER_HOME": str(self.home)}
        kept["PYTHONPATH"] = os.environ["PYTHONPATH"]  # so that they start in less time
        for key, value in SERVICES[name]["environment"].items():
            value = re.sub(r"\$\{VERSION:-([\d.]+)\}", r"\1", value)
            value = re.sub(r"\$\{POSTGRES_PASSWORD:\?[^}]*\}", PASSWORD, value)
            kept[key] = self.here(re.sub(r"\$\{\w+:-\}", "", value))
        return kept

    def run(self, name: str, command: list[str] | None = None) -> str:
        """Run a command as `docker compose run` does, by default the service's own."""
        done = subprocess.run(
            [self.here(word) for word in command or SERVICES[name]["command"]],
            env=self.environment(name),
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=SOON_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, name: str) -> None:
        """Start a service, after what it needs has started, and wait until it is healthy."""
        group = Children(self.place / "logs")
        command = [self.here(word) for word in SERVICES[name]["command"]]
        child = group.start(name, command, env=self.environment(name), cwd=PROJECT)
        self.running[name] = group, child
        check = [self.here(word) for word in SERVICES[name]["healthcheck"]["test"][1:]]
        until = time.monotonic() + SOON_S
        while subprocess.run(
            check, env=self.environment(name), cwd=PROJECT, capture_output=True, check=False
        ).returncode:
            assert child.process.poll() is None, child.last_lines(40)
            assert time.monotonic() < until, child.last_lines(40)
            time.sleep(CHECK_EVERY_S)

    def stop(self, name: str) -> None:
        """Stop a service as Docker does with TINI_KILL_PROCESS_GROUP, and wait for all of it."""
        assert SERVICES[name]["init"]
        assert self.environment(name)["TINI_KILL_PROCESS_GROUP"] == "1"
        group, child = self.running.pop(name)
        number = os.getpgid(child.process.pid)
        os.killpg(number, signal.SIGTERM)
        wait_until(lambda: child.process.poll() is not None and not alive(number))
        group.stop()

    def kill(self) -> None:
        for group, _ in self.running.values():
            group.stop()

    def ask(self, path: str, token: str | None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = f"http://127.0.0.1:{self.ports['3000']}{path}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


def alive(group: int) -> bool:
    """Whether a process of a group has not ended; its leader is the guard of the others."""
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError):
            ours = os.getpgid(process.pid) == group and process.pid != group
            if ours and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False


def in_order() -> list[str]:
    """The services that stay up, each after those that it waits for."""
    ours = [name for name in SERVICES if SERVICES[name].get("build") and name != "migrate"]
    done: list[str] = []
    while len(done) < len(ours):
        done += [
            name
            for name in ours
            if name not in done
            and set(SERVICES[name].get("depends_on", {})) <= {*done, "migrate", "postgres"}
        ]
    return done


@pytest.fixture
def machine(tmp_path: Path, make_database: Callable[..., sa.URL]) -> Iterator[Machine]:
    machine = Machine(tmp_path, make_database())
    yield machine
    machine.kill()


def test_a_campaign_goes_through_an_outage_and_a_replaced_container(machine: Machine):
    machine.run("migrate")
    machine.run("migrate")  # as at the next start
    # The command of docs/production.md, by which the first token is made.
    created = machine.run("migrate", ["tidegate", "tokens", "create", "ada", "--role", "admin"])
    token = created.strip()
    for name in in_order():
        machine.start(name)

    assert machine.ask("/api/v1/services", None)[0] == 401
    assert machine.ask("/api/v1/services", token)[0] == 200
    assert machine.ask("/metrics", token)[0] == 200

    store = Store(machine.environment("web")["TIDEGATE_STORE_URL"])

    def statuses() -> list[RunStatus]:
        with store.read() as conn:
            found = runs.with_status(conn, *RunStatus, campaigns=["outreach"])
        return [run.status for run in found]

    def outcomes() -> list[RunStatus | None]:
        with store.read() as conn:
            run = runs.find(conn, "outreach", "leads")
            assert run is not None
            return [attempt.outcome for attempt in runs.attempts(conn, run.id)]

    unseen = machine.place / "leads.csv"
    write_lead_file(unseen, LEADS)
    unseen.rename(machine.leads / unseen.name)
    with SandboxClient(f"http://127.0.0.1:{machine.ports['8765']}") as sandbox:

        def sent() -> int:
            return sandbox.stats()["instantly"]["effects"]

        wait_until(lambda: sent() > 0)
        # An outage: all that needs the service pauses, and goes on when it is over.
        sandbox.place("instantly", Fault(mode=Mode.OUTAGE))
        wait_until(lambda: RunStatus.PAUSED in statuses())
        status, services = machine.ask("/api/v1/services", token)
        assert status == 200
        assert "open" in json.dumps(json.loads(services))
        at_outage = sent()
        sandbox.heal("instantly")
        wait_until(lambda: sent() > at_outage)

        # The container of the code location is replaced while the run is at work in it.
        machine.stop("code")
        with store.read() as conn:
            told = [event.reason or "" for event in history.read(conn, limit=200)]
        assert any("its process received SIGTERM" in reason for reason in told)
        # It waits, also if the gate had time to ask for its next attempt.
        assert set(statuses()) <= {RunStatus.PAUSED, RunStatus.PENDING}
        assert set(outcomes()) == {RunStatus.PAUSED}
        machine.start("code")
        wait_until(lambda: statuses() == [RunStatus.COMPLETED])
        assert set(outcomes()) == {RunStatus.PAUSED, RunStatus.COMPLETED}
        assert sent() == LEADS
        assert sandbox.stats()["instantly"]["keys_repeated"] == 0
    store.dispose()

    for name in reversed(in_order()):
        machine.stop(name)
    machine.run("migrate", ["dagster", "run", "list", "--limit", "1"])  # the storage is well
