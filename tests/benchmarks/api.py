"""What a pause over the API costs under load, on both databases.

    python -m tests.benchmarks.api [--json FILE]

A real server (`tidegate serve --api-only`) on a store with 1,000 campaigns, 50 services and 10,000
campaign runs. Meanwhile four workers commit 20 records about every 50 ms each, and two operators
look at the list of campaigns once a second. Eight operators place one hold after the other:

- api_pause_p50_ms, api_pause_p99_ms: of POST .../hold and .../pause, in milliseconds.
- api_pause_vs_live: its median / that of GET /health/live, which reads nothing, in the same run.
- api_pause_vs_sql: its median / that of the bare transaction that places a hold, in the same run.
- api_quiet_p99_ms: the same as api_pause_p99_ms with no workers and nobody looking.
"""

import argparse
import json
import multiprocessing as mp
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.synchronize import Event, Semaphore
from pathlib import Path

import httpx

from dagster_tidegate.control import operations
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import breakers, campaigns, runs, schema
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from tests.benchmarks.servers import databases

CAMPAIGNS = 1_000
SERVICES = 50
RUNS = 10_000
CLIENTS = 8
PAUSES = 100
ROUNDS = 5
"""The slowest of a few pauses is the slowest flush of a disk: a percentile needs more."""
WORKERS = 4
LOOKERS = 2
LOOK_EVERY_S = 1.0
RECORDS = 20
COMMIT_EVERY_S = 0.05
TIMEOUT_S = 60.0


def fill(store: Store) -> None:
    """Put campaigns, services and campaign runs into a store."""
    names = [f"service{n}" for n in range(SERVICES)]
    specs = [
        CampaignSpec(
            f"campaign{n}", "here", "none", ops={"op": f"{names[n % SERVICES]}@campaign{n}"}
        )
        for n in range(CAMPAIGNS)
    ]
    with store.begin() as conn:
        now = store.now(conn)
        breakers.ensure(conn, now, names)
        campaigns.save(conn, now, "here", specs)
        conn.execute(
            t.campaign_runs.insert(),
            [
                {
                    "campaign": f"campaign{n % CAMPAIGNS}",
                    "partition": f"p{n // CAMPAIGNS}",
                    "status": RunStatus.PROCESSING if n % 2 else RunStatus.PENDING,
                    "created_at": now,
                    "changed_at": now,
                }
                for n in range(RUNS)
            ],
        )


def work(url: str, number: int, at_work: Semaphore, stop: Event) -> None:
    """Write records in groups, as a record loop does, until told to stop."""
    store = Store(url)
    with store.begin() as conn:
        now = store.now(conn)
        run = runs.ensure(conn, now, f"worker{number}", "p")
        runs.begin_attempt(conn, now, run, f"dagster-{number}", owner_is_over=True)
    written = 0
    while not stop.is_set():
        with store.begin() as conn:
            now = store.now(conn)
            conn.execute(
                t.ledger.insert(),
                [
                    {
                        "campaign_run": run.id,
                        "op": "op",
                        "key": f"{written + n}",
                        "status": "done",
                        "position": written + n,
                        "attempt": 1,
                        "at": now,
                    }
                    for n in range(RECORDS)
                ],
            )
        written += RECORDS
        at_work.release()
        stop.wait(COMMIT_EVERY_S)
    store.dispose()


@contextmanager
def server(url: str) -> Iterator[str]:
    """Serve the API of a store in a process of its own; yields its address."""
    limits = {"TIDEGATE_SERVE_REQUESTS_PER_ADDRESS": "100000000"}
    process = subprocess.Popen(
        [
            sys.executable, "-m", "dagster_tidegate.cli", "serve", "--api-only", "--port", "0",
            "--url", url,
        ],
        env={**os.environ, **limits},
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+?(?=,)", process.stdout.readline())
        assert found is not None, "the server did not start"
        until = time.monotonic() + TIMEOUT_S
        while True:
            try:
                httpx.get(f"{found[0]}/api/v1/health/live").raise_for_status()
                break
            except httpx.HTTPError:
                assert time.monotonic() < until
        yield found[0]
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


@contextmanager
def load(url: str, address: str) -> Iterator[None]:
    """Let workers write and operators look, from the beginning of the block to its end."""
    context = mp.get_context("spawn")
    stop = context.Event()
    at_work = [context.Semaphore(0) for _ in range(WORKERS)]
    workers = [
        context.Process(target=work, args=(url, n, each, stop)) for n, each in enumerate(at_work)
    ]

    def look() -> None:
        with httpx.Client(base_url=address, timeout=TIMEOUT_S) as client:
            while not stop.wait(LOOK_EVERY_S):
                client.get("/api/v1/campaigns").raise_for_status()

    lookers = [threading.Thread(target=look) for _ in range(LOOKERS)]
    for each in (*workers, *lookers):
        each.start()
    try:
        assert all(each.acquire(timeout=TIMEOUT_S) for each in at_work), "a worker did not start"
        yield
    finally:
        stop.set()
        for each in (*workers, *lookers):
            each.join()


def together(address: str, ask: Callable[[httpx.Client, int, int], None]) -> list[float]:
    """Let clients ask at once, each one thing after the other; returns how long each took, ms."""
    took: list[float] = []
    ready = threading.Barrier(CLIENTS)

    def client(number: int) -> None:
        headers = {"X-Tidegate-Actor": f"operator{number}"}
        with httpx.Client(base_url=address, timeout=TIMEOUT_S, headers=headers) as client:
            ready.wait()
            for turn in range(PAUSES):
                began = time.perf_counter()
                ask(client, number, turn)
                took.append((time.perf_counter() - began) * 1000)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(took) == CLIENTS * PAUSES
    return took


def pause(client: httpx.Client, number: int, turn: int) -> None:
    """Hold a campaign, or pause a campaign run."""
    which = number * PAUSES + turn
    path = f"/api/v1/campaigns/campaign{which}"
    path += "/hold" if turn % 2 else "/runs/p0/pause"
    client.post(path, json={"reason": "benchmark"}).raise_for_status()


def live(client: httpx.Client, _number: int, _turn: int) -> None:
    """Ask whether the server is there."""
    client.get("/api/v1/health/live").raise_for_status()


def bare(store: Store) -> list[float]:
    """Place holds without a server; returns how long each took, ms."""
    took = []
    for n in range(PAUSES):
        began = time.perf_counter()
        with store.begin() as conn:
            target = Target(TargetKind.CAMPAIGN, f"bare{n}")
            operations.hold(conn, store.now(conn), target, reason="benchmark", actor="bare")
        took.append((time.perf_counter() - began) * 1000)
    return took


def pauses(store: Store, address: str) -> list[float]:
    """Pause what there is, several times; returns how long each pause took, ms."""
    took = []
    for _ in range(ROUNDS):
        took += together(address, pause)
        release_all(store)
    return took


def p99(took: Sequence[float]) -> float:
    """Return the 99th percentile."""
    return statistics.quantiles(took, n=100)[98]


def measure(kind: str, url: str) -> dict[str, float]:
    """Measure on one database, and print."""
    store = Store(url)
    schema.upgrade(store)
    fill(store)
    with ExitStack() as stack:
        address = stack.enter_context(server(url))
        quiet = pauses(store, address)
        stack.enter_context(load(url, address))
        paused = pauses(store, address)
        alive = together(address, live)
        alone = bare(store)
    store.dispose()
    figures = {
        "api_pause_p50_ms": statistics.median(paused),
        "api_pause_p99_ms": p99(paused),
        "api_pause_vs_live": statistics.median(paused) / statistics.median(alive),
        "api_pause_vs_sql": statistics.median(paused) / statistics.median(alone),
        "api_quiet_p99_ms": p99(quiet),
    }
    for name, value in figures.items():
        print(f"{kind:9} {name:22} {value:8.1f}")
    return figures


def release_all(store: Store) -> None:
    """Take every hold away."""
    with store.begin() as conn:
        conn.execute(t.holds.delete())


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    with databases() as made:
        urls = {
            "sqlite": f"sqlite:///{made.folder / 'api.db'}",
            "postgres": made.make_empty().render_as_string(hide_password=False),
        }
        found = {kind: measure(kind, url) for kind, url in urls.items()}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
