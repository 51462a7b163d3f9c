"""What many workers, campaigns and queued runs cost: `python -m tests.benchmarks.scale`.

    python -m tests.benchmarks.scale [--workers 10,50,200] [--only fleet|gate] [--json FILE]

Everything is on PostgreSQL, of its own or that of TIDEGATE_TEST_POSTGRES_URL.

The workers are processes, each with a fleet of 50 services and a store of its own; they are forked
after the imports and make their connections after the fork. For each number of them:

- rest, work: nobody calls anything; every worker calls one service ten times a second, and all is
  well. Statements of the workers and transactions of the server per second (the difference are
  looks whether a connection still lives), connections, and seconds of processor per second that
  the server takes.
- propagation: from the begin of a trip's transaction to the other processes knowing it.
- storm: all services fail at once and every worker calls as fast as it can until it is refused.
- memory of a worker that it shares with no other.

The gate: ticks of its three sensors over real storages of Dagster, with queued runs.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier, Event, Semaphore
from pathlib import Path
from typing import Any, LiteralString

import psutil
import psycopg
import sqlalchemy as sa
from sqlalchemy import event

from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.breaker.events import ChangeLearned, StateChanged, StoreLost
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.gate.follow import MAX_SKEW, OVERLAP
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import Store
from tests.benchmarks import gate
from tests.benchmarks.servers import Databases, databases

SERVICES = 50
CAMPAIGNS = 1000
QUEUED = 10_000
STARTING = 8  # at once; nobody measures how a small machine starts two hundred
TRIPS = 20
SETTLE_S = 6.0
MEASURE_S = 15.0
CALLS_PER_S = 10
COMMON = "service0"  # its breaker is tripped for all to know
MAX_S = 300.0
# Forked, not spawned: hundreds of interpreters would not import at once on a small machine.
processes = multiprocessing.get_context("fork")

Figures = dict[str, float]


def policies() -> list[ServicePolicy]:
    return [
        ServicePolicy(name=f"service{n}", reset_timeout_s=600, jitter=0) for n in range(SERVICES)
    ]


# --- a worker ------------------------------------------------------------------------------------


@dataclass
class Signals:
    """What the benchmark and its workers tell each other."""

    starting: Semaphore
    ready: Barrier
    work: Event
    propagation: Event
    storm: Event
    over: Event


@dataclass
class Told:
    """What a worker has to tell in the end."""

    statements: dict[str, int]
    made: dict[int, float]
    learned: dict[int, float]
    storm_s: float
    failures: int
    trips: int
    lost: int
    own_memory_mb: float


def fail() -> None:
    raise ConnectionError("down")


def worker(number: int, url: str, signals: Signals, answers: Any) -> None:
    told = Told({}, {}, {}, 0.0, 0, 0, 0, 0.0)
    in_storm = False

    def hook(happened: Any) -> None:
        if isinstance(happened, ChangeLearned) and happened.service == COMMON and not in_storm:
            told.learned[happened.after.generation] = time.monotonic()
        told.trips += in_storm and isinstance(happened, StateChanged)
        told.lost += isinstance(happened, StoreLost)

    store = Store(url)
    count = 0

    @event.listens_for(store.engine, "before_cursor_execute")
    def _count(*_: Any) -> None:
        nonlocal count
        count += 1

    fleet = Fleet(SqlBackend(store), policies(), hooks=[hook])
    mine = fleet.breaker(f"service{number % SERVICES}")
    common = fleet.breaker(COMMON)
    with signals.starting:
        fleet.snapshot()
    signals.ready.wait(MAX_S)
    count = 0
    signals.work.wait(MAX_S)
    told.statements["rest"] = count
    count = 0
    while not signals.propagation.wait(1 / CALLS_PER_S):
        mine.call(int)
    told.statements["work"] = count
    if number == 0:
        for _ in range(TRIPS):
            began = time.monotonic()
            if common.status.state == BreakerState.CLOSED:
                common.open()
            else:
                common.close()
            told.made[common.status.generation] = began
            time.sleep(1.0)
        signals.storm.set()
    signals.storm.wait(MAX_S)
    in_storm, count, began = True, 0, time.monotonic()
    while mine.status.state == BreakerState.CLOSED and time.monotonic() < began + MAX_S:
        with suppress(ConnectionError, BreakerOpenError):
            mine.call(fail)
        told.failures += 1
    told.storm_s = time.monotonic() - began
    told.statements["storm"] = count
    told.own_memory_mb = psutil.Process().memory_full_info().uss / 1e6
    answers.send(told)
    signals.over.wait(MAX_S)
    fleet.close()
    store.dispose()


# --- the server ----------------------------------------------------------------------------------


class Server:
    """Looks at the PostgreSQL server from outside the fleet."""

    def __init__(self, url: str) -> None:
        address = sa.make_url(url).set(drivername="postgresql")
        self._conn = psycopg.connect(address.render_as_string(hide_password=False), autocommit=True)
        self._pid = self.one("SELECT pg_backend_pid()")

    def one(self, query: LiteralString) -> Any:
        row = self._conn.execute(query).fetchone()
        assert row is not None
        return row[0]

    def connections(self) -> int:
        return self.one(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid()"
        )

    def transactions(self) -> int:
        self.one("SELECT pg_stat_clear_snapshot()")
        return self.one(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database "
            "WHERE datname = current_database()"
        )

    def processor_s(self) -> float:
        """Seconds of processor that the server has had, where it is on this machine."""
        try:
            postmaster = psutil.Process(self._pid).parent()
            assert postmaster is not None
            total = 0.0
            for process in (postmaster, *postmaster.children()):
                with suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    total += times.user + times.system
        except psutil.NoSuchProcess:
            return float("nan")
        return total

    def connection_memory_mb(self) -> float:
        """Memory that a connection's process shares with no other, where it is on this machine."""
        found = []
        with suppress(psutil.NoSuchProcess):
            postmaster = psutil.Process(self._pid).parent()
            assert postmaster is not None
            for process in postmaster.children():
                with suppress(psutil.NoSuchProcess):
                    found.append(process.memory_full_info().uss / 1e6)
        return statistics.median(found) if found else float("nan")

    @contextmanager
    def rates(self, figures: Figures, phase: str) -> Iterator[None]:
        """Note what the server does per second in a block."""
        began, transactions, processor = time.monotonic(), self.transactions(), self.processor_s()
        yield
        seconds = time.monotonic() - began
        figures[f"{phase}_transactions_per_s"] = (self.transactions() - transactions) / seconds
        figures[f"{phase}_server_processors"] = (self.processor_s() - processor) / seconds
        figures[f"{phase}_connections"] = self.connections()

    def close(self) -> None:
        self._conn.close()


# --- the fleet -----------------------------------------------------------------------------------


def fleet(workers: int, url: str) -> Figures:
    """Measure a fleet of so many worker processes."""
    figures: Figures = {}
    starting, ready = processes.Semaphore(STARTING), processes.Barrier(workers + 1)
    signals = Signals(starting, ready, *(processes.Event() for _ in range(4)))
    answers, started = [], []
    began = time.monotonic()
    for number in range(workers):
        reader, writer = processes.Pipe(duplex=False)
        process = processes.Process(target=worker, args=(number, url, signals, writer))
        process.start()
        writer.close()
        answers.append(reader)
        started.append(process)
    signals.ready.wait(MAX_S)
    figures["start_s"] = time.monotonic() - began
    server = Server(url)
    time.sleep(SETTLE_S)
    with server.rates(figures, "rest"):
        time.sleep(MEASURE_S)
    rest_s = SETTLE_S + MEASURE_S
    signals.work.set()
    working = time.monotonic()
    time.sleep(2)
    with server.rates(figures, "work"):
        time.sleep(MEASURE_S)
    figures["connection_memory_mb"] = server.connection_memory_mb()
    work_s = time.monotonic() - working
    signals.propagation.set()
    signals.storm.wait(MAX_S)
    most = 0
    with server.rates(figures, "storm"):
        told = []
        for answer in answers:
            while not answer.poll(0.05):
                most = max(most, server.connections())
            told.append(answer.recv())
    figures["storm_connections"] = max(most, figures["storm_connections"])
    signals.over.set()
    for process in started:
        process.join(MAX_S)
    server.close()
    figures |= {
        f"{phase}_statements_per_s": sum(each.statements[phase] for each in told) / seconds
        for phase, seconds in (("rest", rest_s), ("work", work_s))
    }
    storm_s = max(each.storm_s for each in told)
    figures["storm_statements_per_s"] = sum(each.statements["storm"] for each in told) / storm_s
    figures["storm_s"] = storm_s
    figures["storm_failures"] = sum(each.failures for each in told)
    figures["storm_trips"] = sum(each.trips for each in told)
    figures["stores_lost"] = sum(each.lost for each in told)
    delays = [
        (each.learned[generation] - at) * 1000
        for generation, at in told[0].made.items()
        for each in told[1:]
        if generation in each.learned
    ]
    figures["propagation_learned_share"] = len(delays) / (len(told[0].made) * (workers - 1))
    figures["propagation_p50_ms"] = statistics.median(delays)
    figures["propagation_p99_ms"] = statistics.quantiles(delays, n=100)[98]
    figures["propagation_max_ms"] = max(delays)
    figures["worker_memory_mb"] = statistics.median(each.own_memory_mb for each in told)
    return figures


# --- the gate ------------------------------------------------------------------------------------


def multiply_runs(dagster: sa.URL, times: int) -> None:
    """Give each run of a Dagster database some twins: its own API takes a connection for each."""
    address = dagster.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address) as conn:
        conn.execute(
            "CREATE TEMP TABLE twins AS SELECT run_id AS old, gen_random_uuid()::text AS new "
            "FROM runs, generate_series(2, %s)",
            [times],
        )
        conn.execute(
            "INSERT INTO runs (run_id, pipeline_name, status, run_body, create_timestamp, "
            "update_timestamp) SELECT new, pipeline_name, status, replace(run_body, old, new), "
            "create_timestamp, update_timestamp FROM twins JOIN runs ON run_id = old"
        )
        conn.execute(
            "INSERT INTO run_tags (run_id, key, value) "
            "SELECT new, key, value FROM twins JOIN run_tags ON run_id = old"
        )


def ticks(made: Databases, campaigns: int, queued: int) -> Figures:
    """Measure the ticks of a gate of so many campaigns, and so many queued runs."""
    dagster = made.make_empty()
    began = time.monotonic()
    setting = gate.Setting(
        made.folder / f"gate{campaigns}",
        campaigns,
        SERVICES,
        campaigns,
        store_url=made.make("postgres"),
        dagster_url=dagster.set(drivername="postgresql+psycopg2").render_as_string(
            hide_password=False
        ),
    )
    multiply_runs(dagster, queued // campaigns)
    print(f"{queued} runs queued in {time.monotonic() - began:.0f} s", flush=True)
    figures: Figures = {}
    pause, *_ = setting.ticks()
    # It learns of the queued runs, for as long as a tick may take; later ones go on.
    figures["first_pause_tick_s"] = gate.duration(pause)
    # What is new is looked at again for a while.
    time.sleep((OVERLAP + MAX_SKEW).total_seconds() + 1)
    for name, tick in zip(("pause", "resume", "breaker"), setting.ticks(), strict=True):
        tick()
        times = [gate.duration(tick) for _ in range(15)]
        figures[f"idle_{name}_tick_ms"] = statistics.median(times) * 1000
    figures["idle_tick_queries"] = gate.queries(setting)
    figures["trip_to_queue_stopped_p99_s"] = gate.stop_queue(setting)
    setting.pause_runs(campaigns)
    figures["pause_all_s"], figures["pause_all_ticks"] = gate.pause_all(setting)
    gate.explain_queue(setting)
    for name, tick in zip(("pause", "resume", "breaker"), setting.ticks(), strict=True):
        tick()
        times = [gate.duration(tick) for _ in range(5)]
        figures[f"held_{name}_tick_ms"] = statistics.median(times) * 1000
    figures["held_tick_queries"] = gate.queries(setting)
    setting.close()
    return figures


def tell(title: str, columns: dict[str, Figures]) -> None:
    """Print figures side by side, and how they grow from the first column to the last."""
    print(f"\n{title:34}" + "".join(f"{name:>14}" for name in columns) + f"{'growth':>10}")
    first, last = next(iter(columns.values())), list(columns.values())[-1]
    for name in first:
        growth = f"{last[name] / first[name]:10.2f}" if first[name] else ""
        print(f"{name:34}" + "".join(f"{c[name]:14.4g}" for c in columns.values()) + growth)


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", default="10,50,200", help="numbers of worker processes")
    parser.add_argument("--campaigns", type=int, default=CAMPAIGNS)
    parser.add_argument("--queued", type=int, default=QUEUED)
    parser.add_argument("--only", choices=["fleet", "gate"])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, Figures]] = {}
    with databases() as made:
        if arguments.only != "gate":
            numbers = [int(number) for number in arguments.workers.split(",")]
            found = {f"{n} workers": fleet(n, made.make("postgres")) for n in numbers}
            tell(f"{SERVICES} services", found)
            figures["fleet"] = found
        if arguments.only != "fleet":
            few, many = arguments.campaigns // 10, arguments.campaigns
            found = {
                f"{few} campaigns": ticks(made, few, arguments.queued // 10),
                f"{many} campaigns": ticks(made, many, arguments.queued),
            }
            tell(f"{SERVICES} services, 10 queued runs each", found)
            figures["gate"] = found
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
