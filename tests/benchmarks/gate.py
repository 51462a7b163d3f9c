"""What a turn of the gate costs, with Dagster and the store on SQLite files.

    python -m tests.benchmarks.gate [--json FILE]

- idle_tick_queries: statements of the costliest of the three sensors' ticks while nothing is held.
- held_tick_queries: the same in an outage in which nothing changes.
- idle_tick_growth_10x: an idle tick at 1,000 campaigns / one at 100 campaigns.
- pause_1000_campaigns_s: from a hold on everything to all pools at 0 and all schedules stopped,
  at 1,000 campaigns and 100 services, with 10,000 queued and 1,000 paused runs.
- pause_1000_campaigns_ticks: how many ticks that took; one stops after the budget of a sensor.
- trip_to_queue_stopped_p99_s: from a trip to the pools of the service at 0, by whoever trips.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import dagster as dg
import sqlalchemy as sa
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
)
from dagster._core.storage.dagster_run import RunOpConcurrency
from sqlalchemy import event

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.dagster_api.instance import Dagster
from dagster_tidegate.dagster_api.kept_instance import keep_connections
from dagster_tidegate.gate import tighten_now
from dagster_tidegate.gate.follow import MAX_SKEW, OVERLAP, Audit
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.ticks import breaker_tick, pause_tick, resume_tick
from dagster_tidegate.holds import EVERYTHING, HoldSource, Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import campaigns, holds, runs
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.campaigns import CampaignSpec, Trigger
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.tables import metadata
from dagster_tidegate.store.takeovers import TakeoverKind

LOCATION = "here"
REPEATS = 7
TRIPS = 40
ORIGIN = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(LOCATION), "repository")


class Setting:
    """A Dagster instance with campaigns, services and runs.

    Args:
        home: A directory that is not there yet.
        campaigns_: How many campaigns.
        services: How many services.
        queued: How many queued runs.
        store_url: URL of the store, with its tables; a SQLite file if None.
        dagster_url: URL of a PostgreSQL database for Dagster itself; SQLite files if None.
    """

    def __init__(
        self,
        home: Path,
        campaigns_: int,
        services: int,
        queued: int,
        *,
        store_url: str | None = None,
        dagster_url: str | None = None,
    ) -> None:
        home.mkdir()
        overrides = {"storage": {"postgres": {"postgres_url": dagster_url}}} if dagster_url else {}
        self.instance = dg.DagsterInstance.local_temp(str(home), overrides)
        keep_connections(self.instance)  # as the sensors do
        self.store = Store(store_url or f"sqlite:///{home / 'tidegate.db'}")
        metadata.create_all(self.store.engine)
        names = [f"service{n}" for n in range(services)]
        self.policies = {name: ServicePolicy(name=name, ramp_interval_s=0) for name in names}
        self.fleet = Fleet(SqlBackend(self.store), self.policies.values())
        self.specs = [self._campaign(n, names) for n in range(campaigns_)]
        with self.store.begin() as conn:
            campaigns.save(conn, self.store.now(conn), LOCATION, self.specs)
        self.gate = Gate(Dagster(self.instance), self.store, self.policies, LOCATION, self.specs)
        for n in range(queued):
            self._queue(self.specs[n % campaigns_])

    def pause_runs(self, count: int) -> None:
        """Make paused campaign runs."""
        with self.store.begin() as conn:
            now = self.store.now(conn)
            for n in range(count):
                campaign = self.specs[n % len(self.specs)].name
                run = runs.ensure(conn, now, campaign, f"paused{n}")
                runs.move(conn, now, run, RunStatus.PAUSED, reason="benchmark", actor="benchmark")

    def _campaign(self, n: int, services: list[str]) -> CampaignSpec:
        name = f"campaign{n}"
        state = InstigatorState(
            ORIGIN.get_instigator_origin(f"schedule{n}"),
            InstigatorType.SCHEDULE,
            InstigatorStatus.RUNNING,
            ScheduleInstigatorData("0 * * * *", datetime.now(UTC).timestamp()),
        )
        self.instance.add_instigator_state(state)
        trigger = Trigger(TakeoverKind.SCHEDULE, f"schedule{n}", state.selector_id, False)
        pool = f"{services[n % len(services)]}@{name}"
        return CampaignSpec(name, LOCATION, "none", ops={"send": pool}, triggers=(trigger,))

    def _queue(self, spec: CampaignSpec) -> None:
        self.instance.run_storage.add_run(
            dg.DagsterRun(
                job_name=spec.name,
                run_id=str(uuid4()),
                status=dg.DagsterRunStatus.QUEUED,
                remote_job_origin=ORIGIN.get_job_origin(spec.name),
                run_op_concurrency=RunOpConcurrency(
                    root_key_counts={},
                    has_unconstrained_root_nodes=False,
                    all_pools=set(spec.pools),
                ),
            )
        )

    def ticks(self) -> list[Callable[[], object]]:
        """The ticks of the three sensors."""
        audit = Audit()
        planner = SimpleNamespace(record=lambda _takeover, _until: None)
        return [
            lambda: pause_tick(self.gate, planner, audit, new_code=False),  # type: ignore[arg-type] -- misses no ticks
            lambda: resume_tick(self.gate, planner),  # type: ignore[arg-type] -- misses no ticks
            lambda: breaker_tick(self.gate, self.fleet),
        ]

    def hold(self, target: Target) -> None:
        with self.store.begin() as conn:
            holds.place(
                conn,
                self.store.now(conn),
                target,
                source=HoldSource.OPERATOR,
                reason="benchmark",
                actor="benchmark",
            )

    def release(self, target: Target) -> None:
        with self.store.begin() as conn:
            holds.release(
                conn, self.store.now(conn), target, source=HoldSource.OPERATOR, actor="benchmark"
            )

    def close(self) -> None:
        self.fleet.close()
        self.store.dispose()
        self.instance.dispose()


@contextmanager
def counted() -> Iterator[list[str]]:
    """Collect the statements that this process sends to any database."""
    statements: list[str] = []

    def collect(_conn, _cursor, statement, *_rest) -> None:
        if not statement.startswith(("BEGIN", "PRAGMA")):
            statements.append(statement)

    event.listen(sa.Engine, "before_cursor_execute", collect)
    try:
        yield statements
    finally:
        event.remove(sa.Engine, "before_cursor_execute", collect)


def queries(setting: Setting) -> int:
    """Statements of the costliest of the ticks, in which nothing changes."""
    found = []
    for tick in setting.ticks():
        tick()
        with counted() as statements:
            tick()
        found.append(len(statements))
    return max(found)


def duration(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def idle_tick(setting: Setting) -> float:
    """Seconds of all three ticks, the median of some."""
    ticks = setting.ticks()
    return statistics.median(
        duration(lambda: [tick() for tick in ticks]) for _ in range(REPEATS * 3)
    )


def pause_all(setting: Setting) -> tuple[float, int]:
    """Seconds until everything has stopped, and the ticks that it took."""
    pause, *_ = setting.ticks()
    setting.hold(EVERYTHING)
    start = time.perf_counter()
    for count in range(1, 100):
        pause()
        stopped = [s.status for s in setting.gate.dagster.triggers().values()]
        pools = setting.gate.dagster.pools()
        if set(stopped) == {"STOPPED"} and all(
            pools.get(pool) == "0" for spec in setting.specs for pool in spec.pools
        ):
            return time.perf_counter() - start, count
    raise AssertionError("not paused after 100 ticks")


def explain_queue(setting: Setting) -> None:
    """Tick until each queued run says what it waits for: a few do at each tick."""
    pause, *_ = setting.ticks()
    while "wait for" in str(pause()):
        pass


def stop_queue(setting: Setting) -> float:
    """Seconds from a trip to the pools of the service at 0, and its schedules stopped."""
    times = []
    for trip in range(TRIPS):
        name = f"service{trip % len(setting.policies)}"
        target = Target(TargetKind.SERVICE, name)
        setting.hold(target)
        times.append(duration(lambda: tighten_now(setting.instance, setting.store, setting.fleet)))
        pools = setting.gate.dagster.pools()
        assert all(
            pools[pool] == "0"
            for spec in setting.specs
            for pool in spec.pools
            if pool.startswith(f"{name}@")
        )
        setting.release(target)
        for tick in setting.ticks():
            tick()
    return sorted(times)[int(len(times) * 0.99)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--campaigns", type=int, default=1000)
    arguments = parser.parse_args()
    many = arguments.campaigns
    with tempfile.TemporaryDirectory() as folder:
        small = Setting(Path(folder) / "small", many // 10, 10, many)
        large = Setting(Path(folder) / "large", many, 100, many * 10)
        # The first ticks follow the runs, and look again at each for as long as it is new.
        for tick in [*small.ticks(), *large.ticks()]:
            tick()
        time.sleep((OVERLAP + MAX_SKEW).total_seconds() + 1)
        figures: dict[str, float] = {
            "idle_tick_queries": queries(large),
            "idle_tick_growth_10x": idle_tick(large) / idle_tick(small),
            "trip_to_queue_stopped_p99_s": stop_queue(large),
        }
        large.pause_runs(many)
        figures["pause_1000_campaigns_s"], figures["pause_1000_campaigns_ticks"] = pause_all(large)
        explain_queue(large)
        figures["held_tick_queries"] = queries(large)
        small.close()
        large.close()
    for name, value in figures.items():
        print(f"{name}: {value:.3g}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
