"""What the record loop costs and how fast it is: `python -m tests.benchmarks.records`.

Options: `--json FILE` writes the figures, `--only NAME` measures one of them.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg

from dagster_tidegate import BreakerResource, CampaignPaused, Group, ServiceConfig, pool
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.statuses import RecordStatus
from dagster_tidegate.store import holds, runs
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store
from demo.up.deployment import make_dagster_storage
from tests.benchmarks.servers import Databases, databases

REPEATS = 7
GROUP = Group(records=500, seconds=1.0)
SERVICE = "bench"
CALL_S = 0.05
CONCURRENCY = 32
MILLION = 1_000_000
# Not forks: a parent that has used Dagster has threads and locks.
processes = multiprocessing.get_context("spawn")

Body = Callable[[dg.OpExecutionContext, BreakerResource], Any]


def in_op(url: str, body: Body, partition: str, instance: dg.DagsterInstance | None = None) -> Any:
    """Run `body` as the op of a campaign run, and return what it returns."""
    found: list[Any] = []

    @dg.op(pool=pool(SERVICE))
    def work(context: dg.OpExecutionContext, breakers: BreakerResource) -> None:
        found.append(body(context, breakers))

    @dg.job(partitions_def=dg.StaticPartitionsDefinition([partition]))
    def bench() -> None:
        work()

    breakers = BreakerResource(services=[ServiceConfig(name=SERVICE)], store_url=url)
    try:
        bench.execute_in_process(
            resources={"breakers": breakers}, partition_key=partition, instance=instance
        )
    except CampaignPaused:
        return None
    return found[0]


def seconds(step: Callable[[], Any]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def places() -> Iterator[str]:
    """Names of partitions: what is measured again is measured in a campaign run of its own."""
    number = 0
    while True:
        number += 1
        yield f"p{number}"


# --- a record ------------------------------------------------------------------------------------


def row(run: int, op: str, key: str) -> dict[str, Any]:
    """What the ledger keeps of a record that is done."""
    return {
        "campaign_run": run,
        "op": op,
        "key": key,
        "status": RecordStatus.DONE,
        "attempt": 1,
        "position": int(key or 0),
        "result": 1,
        "error": None,
        "at": datetime.now(UTC),
    }


def campaign_run(store: Store, partition: str) -> int:
    with store.begin() as conn:
        return runs.ensure(conn, store.now(conn), "bare", partition).id


def loop_ratio(url: str, count: int = 50_000) -> float:
    """A loop with a handler that does nothing, grouped / a bare one with the same writes."""
    store, names = Store(url), places()
    items = [{"key": str(n)} for n in range(count)]

    def loop(context: dg.OpExecutionContext, breakers: BreakerResource) -> float:
        def work() -> None:
            for record in breakers.records(context, items, key="key", group=GROUP):
                with record:
                    record.result = 1

        return seconds(work)

    def bare(partition: str) -> float:
        run = campaign_run(store, partition)

        def work() -> None:
            rows: list[dict[str, Any]] = []
            for item in items:
                rows.append(row(run, "bare", item["key"]))
                if len(rows) == GROUP.records:
                    with store.begin() as conn:
                        conn.execute(t.ledger.insert(), rows)
                    rows.clear()

        return seconds(work)

    ratios = [in_op(url, loop, next(names)) / bare(next(names)) for _ in range(REPEATS)]
    store.dispose()
    return statistics.median(ratios)


def durable_ratio(url: str, count: int = 300) -> tuple[float, float]:
    """A record with a commit of its own / a bare INSERT and COMMIT of the same row.

    The bare one goes once through the same store, and once past it, straight to the driver.
    """
    store, names = Store(url), places()
    items = [{"key": str(n)} for n in range(count)]
    columns = list(row(0, "", ""))
    driver: Any
    if store.is_sqlite:
        mark = "?"
        driver = sqlite3.connect(store.url.database or "", isolation_level=None, timeout=30)
        driver.execute("PRAGMA synchronous=FULL")
    else:
        mark = "%s"
        address = store.url.set(drivername="postgresql").render_as_string(hide_password=False)
        driver = psycopg.connect(address, autocommit=True)
    insert = (
        f"INSERT INTO ledger ({', '.join(columns)}) VALUES ({', '.join([mark] * len(columns))})"
    )

    def loop(context: dg.OpExecutionContext, breakers: BreakerResource) -> float:
        records = iter(breakers.records(context, items, key="key"))
        with next(records) as record:
            record.result = 1

        def work() -> None:
            for record in records:
                with record:
                    record.result = 1

        return seconds(work) / (count - 1)

    def through_the_store(partition: str) -> float:
        run = campaign_run(store, partition)

        def work() -> None:
            for item in items:
                with store.begin() as conn:
                    conn.execute(t.ledger.insert(), row(run, "bare", item["key"]))

        return seconds(work) / count

    def through_the_driver(partition: str) -> float:
        run = campaign_run(store, partition)

        def work() -> None:
            for item in items:
                values = list(row(run, "bare", item["key"]).values())
                values[columns.index("result")] = "1"
                values[columns.index("at")] = str(datetime.now(UTC))
                driver.execute("BEGIN")
                driver.execute(insert, values)
                driver.execute("COMMIT")

        return seconds(work) / count

    def ratios() -> tuple[float, float]:
        # By turns, so that all meet the same disk.
        ours = in_op(url, loop, next(names))
        return ours / through_the_store(next(names)), ours / through_the_driver(next(names))

    found = [ratios() for _ in range(REPEATS)]
    driver.close()
    store.dispose()
    return statistics.median(a for a, _ in found), statistics.median(b for _, b in found)


# --- many at a time ------------------------------------------------------------------------------


def call(_record: object) -> int:
    time.sleep(CALL_S)
    return 1


async def call_async(_record: object) -> int:
    await asyncio.sleep(CALL_S)
    return 1


def map_ratio(url: str, handler: Callable[[Any], Any]) -> float:
    """Records per second of a 32-way `map` / 32 times those of one worker's loop."""
    names = places()

    def one(context: dg.OpExecutionContext, breakers: BreakerResource) -> float:
        items = [{"key": str(n)} for n in range(20)]

        def work() -> None:
            for record in breakers.records(context, items, key="key"):
                with record:
                    record.result = call(record)

        return len(items) / seconds(work)

    def many(context: dg.OpExecutionContext, breakers: BreakerResource) -> float:
        items = [{"key": str(n)} for n in range(20 * CONCURRENCY)]
        records = breakers.records(context, items, key="key")
        return len(items) / seconds(lambda: records.map(handler, concurrency=CONCURRENCY))

    return statistics.median(
        in_op(url, many, next(names)) / (CONCURRENCY * in_op(url, one, next(names)))
        for _ in range(REPEATS)
    )


# --- a pause -------------------------------------------------------------------------------------


def _busy(number: int, url: str, home: str, partition: str, barrier: Barrier) -> None:
    def body(context: dg.OpExecutionContext, breakers: BreakerResource) -> None:
        items = [{"key": str(n)} for n in range(2_000)]
        records = breakers.records(context, items, key="key")
        for at, record in enumerate(records):
            with record:
                if at == 5:
                    barrier.wait(120)
                record.result = call(record)

    with dg.DagsterInstance.from_config(home) as instance:
        in_op(url, body, f"{partition}-{number}", instance)


def set_hold(store: Store, *, placed: bool) -> None:
    target = Target(TargetKind.SERVICE, SERVICE)
    who: dict[str, Any] = {"source": HoldSource.OPERATOR, "actor": "benchmark"}
    with store.begin() as conn:
        if placed:
            holds.place(conn, store.now(conn), target, reason="benchmark", **who)
        else:
            holds.release(conn, store.now(conn), target, **who)


def pause_seconds(url: str, home: Path, rounds: int = 6, workers: int = 8) -> list[float]:
    """From the hold to Dagster's CANCELED, of busy processes, beyond the longest record."""
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    make_dagster_storage(home)
    found: list[float] = []
    for number in range(rounds):
        barrier = processes.Barrier(workers + 1)
        started = [
            processes.Process(target=_busy, args=(n, url, str(home), f"r{number}", barrier))
            for n in range(workers)
        ]
        for process in started:
            process.start()
        store = Store(url)
        try:
            barrier.wait(120)
            placed_at = time.time()
            set_hold(store, placed=True)
            for process in started:
                process.join(120)
                if process.exitcode != 0:
                    raise RuntimeError(f"a worker of the benchmark ended with {process.exitcode}")
            set_hold(store, placed=False)
        finally:
            store.dispose()
            for process in started:
                process.kill()
        with dg.DagsterInstance.from_config(str(home)) as instance:
            ended = instance.get_run_records(limit=workers)
            # No sensor gives the pool back here, and the next round needs it.
            instance.event_log_storage.delete_concurrency_limit(pool(SERVICE))
        for record in ended:
            if record.dagster_run.status is not dg.DagsterRunStatus.CANCELED:
                raise RuntimeError(f"a run did not pause: {record.dagster_run.status}")
            assert record.end_time is not None  # it has ended
            found.append(record.end_time - placed_at - CALL_S)
    return found


# --- a million -----------------------------------------------------------------------------------


def resume_ratio(url: str, repeats: int = 5) -> float:
    """Time to the first new record with 900,000 of 1,000,000 done / with 900 of 1,000."""
    store = Store(url)

    def until_held(count: int) -> Body:
        def body(context: dg.OpExecutionContext, breakers: BreakerResource) -> None:
            records = breakers.records(
                context, range(count), key=str, group=GROUP, append_only=True
            )
            for record in islice(records, count * 9 // 10):
                with record:
                    record.result = 1
            set_hold(store, placed=True)
            breakers.fleet.refresh()
            next(iter(records))

        return body

    def first_new(count: int) -> Body:
        def body(context: dg.OpExecutionContext, breakers: BreakerResource) -> float:
            def work() -> None:
                records = breakers.records(
                    context, range(count), key=str, group=GROUP, append_only=True
                )
                for record in records:
                    if int(record.key) != count * 9 // 10:
                        raise RuntimeError(f"resumed at {record.key} of {count}")
                    break

            return seconds(work)

        return body

    sizes = {"few": 1_000, "many": MILLION}
    with dg.DagsterInstance.ephemeral() as instance:
        for name, count in sizes.items():
            in_op(url, until_held(count), name, instance)
            set_hold(store, placed=False)
            services = [ServiceConfig(name=SERVICE)]
            BreakerResource(services=services, store_url=url).fleet.refresh()
        taken = {
            name: [in_op(url, first_new(count), name, instance) for _ in range(repeats)]
            for name, count in sizes.items()
        }
    store.dispose()
    print({name: [round(s * 1000, 1) for s in found] for name, found in taken.items()}, "ms")
    return statistics.median(taken["many"]) / statistics.median(taken["few"])


def peak_memory(url: str, count: int) -> int:
    """Work through so many records, and return the most memory that this process ever had, KiB."""

    def body(context: dg.OpExecutionContext, breakers: BreakerResource) -> int:
        items = ({"key": str(n)} for n in range(count))
        done = 0
        for record in breakers.records(context, items, key="key", group=GROUP):
            with record:
                record.result = 1
            done += 1
        return done

    if in_op(url, body, "memory") != count:
        raise RuntimeError("not all records were worked through")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory_ratio(made: Databases) -> float:
    """Peak memory of a fresh process with 1,000,000 records / with 10,000; once each."""

    def peak(count: int) -> int:
        command = [sys.executable, "-m", __spec__.name, "--memory", str(count), made.make("sqlite")]
        return int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    return peak(MILLION) / peak(10_000)


# --- all of it -----------------------------------------------------------------------------------


def measure(made: Databases, only: str | None) -> Mapping[str, float]:
    """Measure everything, and print each figure as soon as it is known."""
    figures: dict[str, float] = {}

    def note(name: str, value: float, bar: str = "") -> None:
        figures[name] = round(value, 3)
        print(f"{name:36} {value:10.3f}   {bar}", flush=True)

    def wanted(name: str) -> bool:
        return only is None or name.startswith(only)

    # The first: a child begins with the memory that this process has by then.
    if wanted("memory_ratio"):
        note("memory_ratio", memory_ratio(made), "at most 1.2")
    if wanted("loop_ratio"):
        note("loop_ratio", loop_ratio(made.make("sqlite")), "at most 1.5")
        note("loop_ratio_postgres", loop_ratio(made.make("postgres")))
    for kind in ("sqlite", "postgres"):
        if wanted("durable_ratio"):
            by_store, by_driver = durable_ratio(made.make(kind))
            note(f"durable_ratio_{kind}", by_store, "at most 1.3")
            note(f"durable_ratio_{kind}_driver", by_driver)
        if wanted("pause_p99_s"):
            with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as home:
                found = pause_seconds(made.make(kind), Path(home))
            note(f"pause_median_s_{kind}", statistics.median(found))
            note(f"pause_max_s_{kind}", max(found), f"of {len(found)}")
    if wanted("pause_p99_s"):
        worst = max(figures["pause_max_s_sqlite"], figures["pause_max_s_postgres"])
        note("pause_p99_s", worst, "at most 2; the longest of all")
    if wanted("map_ratio"):
        threads = map_ratio(made.make("sqlite"), call)
        note("map_ratio_threads", threads)
        tasks = map_ratio(made.make("sqlite"), call_async)
        note("map_ratio_async", tasks)
        note("map_ratio_postgres", map_ratio(made.make("postgres"), call))
        note("map_ratio", min(threads, tasks), "at least 0.9")
    if wanted("resume_ratio"):
        note("resume_ratio", resume_ratio(made.make("sqlite")), "at most 2")
    return figures


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--only", help="measure what begins with this name")
    parser.add_argument("--memory", nargs=2, metavar=("COUNT", "URL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        count, url = arguments.memory
        print(peak_memory(url, int(count)))
        return
    with databases() as made:
        figures = measure(made, arguments.only)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
