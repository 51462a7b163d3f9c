"""A worker from which the store is taken away; see `away`."""

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from dagster_tidegate.breaker.events import Event, StoreLost, StoreRegained
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.records.loop import Records
from dagster_tidegate.records.worklist import LoopOptions
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import postgres, runs
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import Store
from tests.support.loop_host import FakeHost

OPEN, HELD = "openai", "apollo"
"""A service whose breaker is open all the time, and one that a person holds."""
LOOK_EVERY_S = 0.02


def policies() -> list[ServicePolicy]:
    """The services; nothing of what is held ends by itself."""
    return [
        ServicePolicy(name="instantly"),
        ServicePolicy(name=OPEN, reset_timeout_s=600, jitter=0),
        ServicePolicy(name=HELD),
    ]


class Worker:
    """Works through its records, looks all the time at what is held, and tells what happens."""

    def __init__(self, url: str, sandbox: str, name: str, output: Path) -> None:
        self.name, self.sandbox, self._output = name, sandbox, output
        self.store = Store(url)
        self.connected_at: list[float] = []
        self._count_connections()
        self.fleet = Fleet(SqlBackend(self.store), policies(), hooks=[self._hook])
        self.found_free = 0
        self.over = threading.Event()

    def _count_connections(self) -> None:
        connect = postgres.Connection.connect

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.connected_at.append(time.time())
            return connect(*args, **kwargs)

        postgres.Connection.connect = counted

    def _hook(self, event: Event) -> None:
        if isinstance(event, StoreLost):
            self.tell("degraded")
        if isinstance(event, StoreRegained):
            self.tell("regained")

    def tell(self, what: str, **more: object) -> None:
        """Write a line, whole or not at all."""
        with self._output.open("ab", buffering=0) as file:
            file.write(json.dumps({"what": what, **more}).encode() + b"\n")

    def look(self) -> None:
        """Count how often something that is held is found free."""
        while not self.over.wait(LOOK_EVERY_S):
            state = self.fleet.breaker(OPEN).status.state
            held = all(self.fleet.holds_on(services=[service]) for service in (OPEN, HELD))
            self.found_free += state != BreakerState.OPEN or not held

    def work(self, records: int) -> None:
        """Send every record to the service."""
        with self.store.begin() as conn:
            now = self.store.now(conn)
            run = runs.ensure(conn, now, "away", self.name)
            attempt = runs.begin_attempt(conn, now, run, self.name, owner_is_over=False)
        loop = Records(
            FakeHost(self.store, self.fleet, run, attempt, services=["instantly"]),
            [{"key": f"{self.name}-{n}@away.example"} for n in range(records)],
            LoopOptions(op="send", key="key", max_failed=0.0),
        )
        breaker = self.fleet.breaker("instantly")
        with httpx.Client(base_url=self.sandbox, trust_env=False, timeout=60) as http:
            for record in loop:
                with record:
                    headers = {"Idempotency-Key": record.idempotency_key}
                    body = {"email": record.key, "campaign": self.name}
                    path = "instantly/api/v2/leads"
                    breaker.call(
                        lambda path=path, body=body, headers=headers: http.post(
                            path, json=body, headers=headers
                        ).raise_for_status()
                    )
        while self.fleet.snapshot().degraded:
            self.fleet.wait_for_change(1.0)
        with self.store.begin() as conn:
            current = runs.get(conn, run.id)
            assert current is not None
            now = self.store.now(conn)
            runs.move(conn, now, current, RunStatus.COMPLETED, actor=self.name)


def main(url: str, sandbox: str, name: str, records: str, output: str) -> None:
    """Work, look and tell."""
    os.environ["PGAPPNAME"] = "away"
    logging.basicConfig(level=logging.INFO)
    worker = Worker(url, sandbox, name, Path(output))
    worker.fleet.snapshot()
    worker.tell("started")
    looking = threading.Thread(target=worker.look, daemon=True)
    looking.start()
    worker.work(int(records))
    worker.over.set()
    looking.join()
    worker.tell("finished", found_free=worker.found_free, connected_at=worker.connected_at)
    worker.fleet.close()
    worker.store.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
