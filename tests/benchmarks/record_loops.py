"""What is no outage, and what is: record loops of eight processes against the sandbox.

The figures are part of `python -m tests.benchmarks.answers`.
"""

import multiprocessing
import tempfile
import time
from contextlib import suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path

import httpx
import sqlalchemy as sa

from dagster_tidegate.breaker.errors import AnswerError, BreakerOpenError
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.records.loop import Records
from dagster_tidegate.records.worklist import LoopOptions
from dagster_tidegate.statuses import BreakerState, RecordStatus
from dagster_tidegate.store import runs, schema
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import Store
from demo.sandbox.client import SandboxClient
from demo.sandbox.faults import Fault, Mode
from tests.support.loop_host import FakeHost

SERVICE = "openai"
WORKERS = 8
BUSY_S = 2.0
DAY_S = 8.0
POISON = "bad@acme.example"
Keys = list[str]
# Not forks: each worker has its own connections and threads.
processes = multiprocessing.get_context("spawn")


def work(
    url: str,
    sandbox_url: str,
    partition: str,
    keys: Keys,
    ready: Barrier | None,
    calls_for_s: float,
) -> None:
    """Process the records of one campaign run, then go on calling for a time."""
    store = Store(url)
    fleet = Fleet(SqlBackend(store), [ServicePolicy(name=SERVICE, profile=SERVICE)])
    breaker = fleet.breaker(SERVICE)
    with store.begin() as conn:
        now = store.now(conn)
        run = runs.ensure(conn, now, "bench", partition)
        runs.begin_attempt(conn, now, run, partition, owner_is_over=False)
        run, row = runs.get(conn, run.id), runs.attempts(conn, run.id)[-1]
    assert run is not None
    host = FakeHost(store, fleet, run, row, services=[SERVICE])
    items = [{"email": key} for key in keys]
    records = Records(host, items, LoopOptions(op="write", key="email", max_failed=1.0))
    http = httpx.Client(base_url=sandbox_url, trust_env=False, timeout=10)

    def call(key: str) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": key}]}
        headers = {"Idempotency-Key": f"{partition}/{key}"}
        url = f"/{SERVICE}/v1/chat/completions"
        response = http.post(url, json=body, headers=headers)
        response.raise_for_status()
        return response

    if ready is not None:
        ready.wait(60)
    until = time.monotonic() + calls_for_s
    with suppress(SystemExit):
        for record in records:
            with record:
                breaker.call(call, record.key)
    while time.monotonic() < until:
        with suppress(BreakerOpenError, AnswerError, httpx.HTTPError):
            breaker.call(call, "again")
        time.sleep(0.05)
    fleet.close()


class Stand:
    """A store, and workers of campaign runs that call a service of the sandbox."""

    def __init__(self, sandbox: SandboxClient, place: Path) -> None:
        self.sandbox = sandbox
        self.url = f"sqlite:///{place / 'tidegate.db'}"
        self.store = Store(self.url)
        schema.upgrade(self.store)
        sandbox.reset()

    def run(self, fault: Fault, keys: list[Keys], calls_for_s: float = 0.0) -> float:
        """Start a worker for each list of keys and then a fault; return how long they worked."""
        ready = processes.Barrier(len(keys) + 1)
        workers = [
            processes.Process(
                target=work, args=(self.url, self.sandbox.url, f"p{n}", each, ready, calls_for_s)
            )
            for n, each in enumerate(keys)
        ]
        for worker in workers:
            worker.start()
        ready.wait(120)
        began = time.monotonic()
        if fault.keys is None:
            time.sleep(BUSY_S)
        self.sandbox.place(SERVICE, fault)
        for worker in workers:
            worker.join(180)
            assert worker.exitcode == 0, f"a worker ended with {worker.exitcode}"
        return time.monotonic() - began

    def served(self, status: int) -> int:
        """Return how many calls the service answered with a status."""
        return self.sandbox.stats()[SERVICE]["by_status"].get(str(status), 0)

    def failed_records(self) -> int:
        with self.store.read() as conn:
            failed = t.ledger.c.status == RecordStatus.FAILED
            return conn.scalar(sa.select(sa.func.count()).where(failed)) or 0

    def open_s(self) -> float:
        """Return for how long the breaker was not closed, in seconds."""
        event = t.events.c
        with self.store.read() as conn:
            changes = conn.execute(
                sa.select(event.at, event.to_status)
                .where(event.kind == "service", event.name == SERVICE)
                .order_by(event.id)
            ).all()
        total, opened_at = 0.0, None
        for at, status in changes:
            if status != BreakerState.CLOSED and opened_at is None:
                opened_at = at
            elif status == BreakerState.CLOSED and opened_at is not None:
                total += (at - opened_at).total_seconds()
                opened_at = None
        return total


def addresses(count: int) -> Keys:
    return [f"{n}@acme.example" for n in range(count)]


def figures(sandbox: SandboxClient) -> dict[str, float | int]:
    """Return the figures; a minute or two."""
    found: dict[str, float | int] = {}
    with tempfile.TemporaryDirectory() as place:
        stand = Stand(sandbox, Path(place))
        keys = addresses(299)
        keys.insert(7, POISON)
        fault = Fault(mode=Mode.ANSWER, case="one-record", keys=[POISON])
        found["poison_done_s"] = round(stand.run(fault, [keys, addresses(300)]), 1)
        found["poison_other_campaigns_paused_s"] = round(stand.open_s(), 1)
        found["poison_failed_records"] = stand.failed_records()
        sandbox.heal(SERVICE)
    many = [addresses(100_000)] * WORKERS
    with tempfile.TemporaryDirectory() as place:
        stand = Stand(sandbox, Path(place))
        stand.run(Fault(mode=Mode.ANSWER, case="dead-key"), many, calls_for_s=BUSY_S + 5)
        found["dead_key_calls"] = stand.served(401)
        found["dead_key_failed_records"] = stand.failed_records()
        sandbox.heal(SERVICE)
    with tempfile.TemporaryDirectory() as place:
        stand = Stand(sandbox, Path(place))
        day = Fault(mode=Mode.ANSWER, case="day-used", retry_after_s=DAY_S)
        stand.run(day, many, calls_for_s=BUSY_S + DAY_S - 1)
        found["throttled_calls_before_reset"] = stand.served(429)
        sandbox.heal(SERVICE)
    with tempfile.TemporaryDirectory() as place:
        stand = Stand(sandbox, Path(place))
        stand.run(Fault(mode=Mode.OUTAGE), many)
        found["failures_before_trip_records"] = stand.served(503)
        sandbox.heal(SERVICE)
    return found
