"""What Tidegate adds to starting a process, a run and a step of Dagster.

    python -m tests.benchmarks.startup [--json FILE]

Processes and runs are measured in seconds of CPU, so that other work on the machine counts little.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run

from dagster_tidegate import BreakerResource, ServiceConfig, pool
from dagster_tidegate.store import schema
from dagster_tidegate.store.database import Store

REPEATS = 5
RUNS = 60
SERVICE = "bench"
STEPS = 20
# What every run process of Dagster imports, without any code of a project.
DAGSTER = "import dagster, dagster._core.instance, dagster._core.storage.sqlite_storage"
COMMANDS = {
    "dagster": ["-c", DAGSTER],
    "all": ["-c", f"{DAGSTER}; from dagster_tidegate import *"],
    "package": ["-c", "import dagster_tidegate"],
    "breaker": ["-c", "from dagster_tidegate import Breaker, Fleet, ServicePolicy"],
    "help": ["-m", "dagster_tidegate.cli", "--help"],
    "dagster_help": ["-m", "dagster", "--help"],
}


def process_seconds(arguments: list[str]) -> float:
    """CPU seconds of a fresh interpreter, and of all that it starts."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return (
        after.children_user + after.children_system - before.children_user - before.children_system
    )


def start_up() -> dict[str, float]:
    """Median seconds of each command, by turns; the first round only fills the disk's cache."""
    rounds = [
        {name: process_seconds(arguments) for name, arguments in COMMANDS.items()}
        for _ in range(REPEATS + 1)
    ]
    return {name: statistics.median(each[name] for each in rounds[1:]) for name in COMMANDS}


class Plain(dg.ConfigurableResource):
    """A resource that does nothing, for the job without Tidegate."""


def answer() -> int:
    return 1


def job(steps: int, *, guarded: bool) -> dg.JobDefinition:
    """A job of steps one after the other; `guarded` ones call a service through its breaker."""

    @dg.op(ins={"before": dg.In(dg.Nothing)}, pool=pool(SERVICE))
    def call_guarded(breakers: BreakerResource) -> None:
        breakers.breaker(SERVICE).call(answer)

    @dg.op(ins={"before": dg.In(dg.Nothing)}, pool=pool(SERVICE))
    def call_bare(breakers: Plain) -> None:  # noqa: ARG001 -- both jobs have a resource
        answer()

    @dg.op(out=dg.Out(dg.Nothing))
    def begin() -> None:
        pass

    @dg.job(name=f"bench_{steps}_{'guarded' if guarded else 'bare'}")
    def bench() -> None:
        last: Any = begin()
        for number in range(steps):
            last = (call_guarded if guarded else call_bare).alias(f"call_{number}")(last)

    return bench


def run_seconds(
    steps: int, *, guarded: bool, url: str, instance: dg.DagsterInstance
) -> Callable[[], float]:
    """Return a function that executes such a run as its process does; it returns CPU seconds."""
    breakers: dg.ConfigurableResource = (
        BreakerResource(services=[ServiceConfig(name=SERVICE)], store_url=url)
        if guarded
        else Plain()
    )

    def loaded() -> dg.JobDefinition:
        bench = job(steps, guarded=guarded)
        resources = {"breakers": breakers}
        defs = dg.Definitions(jobs=[bench], resources=resources, executor=dg.in_process_executor)
        return defs.resolve_job_def(bench.name)

    def run() -> float:
        created = instance.create_run_for_job(loaded())  # by the code server, which has its own
        of_process = InMemoryJob(loaded())
        began = time.process_time()
        assert execute_run(of_process, created, instance).success
        return time.process_time() - began

    return run


def added(folder: Path) -> dict[str, float]:
    """What Tidegate adds to a run with one step, and to each further step: shares and ms."""
    url = f"sqlite:///{folder / 'tidegate.db'}"
    schema.upgrade(Store(url))
    with dg.DagsterInstance.local_temp(str(folder)) as instance:
        runs = {
            (steps, guarded): run_seconds(steps, guarded=guarded, url=url, instance=instance)
            for steps in (1, STEPS)
            for guarded in (False, True)
        }
        rounds = []
        for number in range(RUNS):
            seconds = {}
            # Whichever of a pair comes first, pays for what is new to the machine.
            for key in sorted(runs, reverse=number % 2 == 1):
                gc.collect()  # else it falls on whichever runs then
                seconds[key] = runs[key]()
            rounds.append(seconds)

    def added_ms(steps: int) -> float:
        return 1000 * statistics.median(each[steps, True] - each[steps, False] for each in rounds)

    def bare_ms(steps: int) -> float:
        return 1000 * statistics.median(each[steps, False] for each in rounds)

    step_ms = (added_ms(STEPS) - added_ms(1)) / (STEPS - 1)
    return {
        "run_added": added_ms(1) / bare_ms(1),
        "run_added_ms": added_ms(1),
        "step_added": step_ms * (STEPS - 1) / (bare_ms(STEPS) - bare_ms(1)),
        "step_added_ms": step_ms,
    }


def measure(folder: Path) -> dict[str, float]:
    """Measure everything, and print each figure as soon as it is known."""
    figures: dict[str, float] = {}

    def note(name: str, value: float, bar: str = "") -> None:
        figures[name] = round(value, 3)
        print(f"{name:28} {value:8.3f}   {bar}", flush=True)

    seconds = start_up()
    for name, value in seconds.items():
        note(f"{name}_cpu_s", value)
    note("import_ratio", seconds["package"] / seconds["dagster"], "at most 0.5 of Dagster's")
    note("import_breaker_ratio", seconds["breaker"] / seconds["dagster"], "at most 0.5")
    everything = seconds["all"] / seconds["dagster"] - 1
    note("import_all_added", everything, "at most 0.5; all names, in a process that has Dagster")
    note("help_ratio", seconds["help"] / seconds["dagster_help"], "at most 0.5 of dagster --help")
    # Without the start of the process that a run, or a step, otherwise has to itself.
    for name, value in added(folder).items():
        note(name, value, "" if name.endswith("_ms") else "at most 0.05")
    return figures


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        figures = measure(Path(folder))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
