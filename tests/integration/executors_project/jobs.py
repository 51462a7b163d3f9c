"""Jobs for the tests of executors: two branches of records, and an op behind them."""

import os
import time
from pathlib import Path

import dagster as dg

from dagster_tidegate import BreakerResource, ServiceConfig, pool

COUNT = 30
FOLDER = Path(os.environ.get("EXECUTORS_PROJECT_FOLDER", "."))
RECORD_S = 0.05
# Each of these records is under way until a test lets it go on.
WAITS = ("3", "12", "20")
MAX_WAIT_S = 240.0


def call(op: str, key: str) -> str:
    with (FOLDER / "calls").open("a") as calls:
        calls.write(f"{op} {key}\n")
    until = time.monotonic() + MAX_WAIT_S
    go = FOLDER / f"go {key}"
    while key in WAITS and not go.exists() and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(RECORD_S)
    return key


def branch(name: str) -> dg.OpDefinition:
    @dg.op(name=name, pool=pool("mail"))
    def work(context: dg.OpExecutionContext, breakers: BreakerResource) -> list[str]:
        records = breakers.records(context, [{"key": str(n)} for n in range(COUNT)], key="key")
        for record in records:
            with record:
                record.result = breakers.breaker("mail").call(call, name, record.key)
        return records.results()

    return work


left, right = branch("left"), branch("right")


@dg.op
def join(first: list[str], second: list[str]) -> None:
    until = time.monotonic() + MAX_WAIT_S
    while (FOLDER / "stay").exists() and time.monotonic() < until:
        (FOLDER / "joining").touch()
        time.sleep(0.01)
    (FOLDER / "joined").write_text(" ".join([*first, *second]))


breakers = BreakerResource(services=[ServiceConfig(name="mail")])


@dg.job(
    resource_defs={"breakers": breakers},
    executor_def=dg.multiprocess_executor.configured(
        {
            "max_concurrent": 2,
            # A process that imports everything itself takes three seconds of a processor.
            "start_method": {"forkserver": {"preload_modules": ["dagster_tidegate"]}},
        }
    ),
)
def in_processes() -> None:
    join(left(), right())


@dg.job(resource_defs={"breakers": breakers}, executor_def=dg.in_process_executor)
def in_one_process() -> None:
    join(left(), right())


defs = dg.Definitions(jobs=[in_processes, in_one_process])
