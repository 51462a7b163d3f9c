"""The phases of a drill."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import uuid4

import dagster as dg
import sqlalchemy as sa

from dagster_tidegate.plugin.attempt import STATE_TAG
from dagster_tidegate.pools import needs
from dagster_tidegate.statuses import UNFINISHED, BreakerState, RunStatus
from dagster_tidegate.store import breakers, campaigns, holds, runs, takeovers
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.takeovers import STOPPED
from demo.drill.deployment import Deployment
from demo.drill.report import AttemptTimes, Evidence, InstanceSettings, RunResult, Transition
from demo.sandbox.answers import SERVICES
from demo.sandbox.faults import Fault, Mode
from demo.sandbox.leads import made_up_leads, write_lead_file

CAMPAIGN = "outreach"
SENDER = "instantly"
"""The service that each lead must reach exactly once."""
FILES = 6
"""More than run concurrently, so that some are queued when the service fails."""
OPERATORS_LIMIT = "3"
DAEMON_AWAY_S = 3.0
POLL_INTERVAL_S = 0.2
PAUSED = ("queue", "schedules", "work")
"""What must stop during the outage."""
RUNNING = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
# Generous: on a busy machine each of the many processes takes half a minute to start.
START_TIMEOUT_S = 300.0
PAUSE_TIMEOUT_S = 180.0


class Listener(Protocol):
    """Receives the progress of a drill."""

    def phase(self, text: str) -> None:
        """A phase begins."""

    def progress(self, done: int, total: int) -> None:
        """`done` of `total` records have arrived."""


class DrillError(Exception):
    """The drill could not run to its end; the message says in which phase it got stuck."""


@dataclass(frozen=True)
class DrillOptions:
    """Parameters of a drill.

    Attributes:
        service: The service that fails.
        outage_s: Minimum duration of the outage, in seconds; it lasts until everything has paused.
        leads: Number of leads, over all lead files.
        kill_daemon: Kill and restart Dagster's daemon during the outage.
        finish_timeout_s: How long recovery may take, in seconds.
    """

    service: str = SENDER
    outage_s: float = 20.0
    leads: int = 420
    kill_daemon: bool = False
    finish_timeout_s: float = 900.0

    def __post_init__(self) -> None:
        if self.service not in SERVICES:
            raise ValueError(f"there is no service {self.service!r}: use one of {SERVICES}")
        if self.leads < FILES + 1:
            raise ValueError(f"{self.leads} leads are too few: use {FILES + 1} or more")


class Scenario:
    """Runs a drill.

    Args:
        options: Parameters of the drill.
        deployment: The processes and databases it runs against.
        listener: Receives its progress.
    """

    def __init__(self, options: DrillOptions, deployment: Deployment, listener: Listener) -> None:
        self._options, self._deployment, self._listener = options, deployment, listener
        # The store may contain earlier drills: use unique names.
        self._drill = f"drill-{uuid4().hex[:8]}"
        share, rest = divmod(options.leads, FILES + 1)
        self._files = {
            f"{self._drill}-{n}": share + (1 if n < rest else 0) for n in range(FILES + 1)
        }
        self._expected = frozenset(
            f"{name}/{lead['email']}"
            for seed, (name, count) in enumerate(self._files.items())
            for lead in made_up_leads(count, seed=seed)
        )
        self._last_file = f"{self._drill}-{FILES}"
        self._stopped_at: dict[str, datetime] = {}
        with deployment.store.read() as conn:
            self._first_event = conn.scalar(sa.select(sa.func.max(t.events.c.id))) or 0
            self._first_takeover = takeovers.newest_id(conn)
            self._began_at = deployment.store.now(conn)

    def play(self) -> Evidence:
        """Run the drill and return what was observed.

        Raises:
            DrillError: If it got stuck before the service failed or recovered.
            ChildDiedError: If a process exited unexpectedly.
        """
        deployment, options = self._deployment, self._options
        self._phase("waiting for the gate sensors to tick")
        self._wait(self._campaigns_known, START_TIMEOUT_S, "the gate sensors did not run")
        # A limit set by an operator must be restored, as must the absence of one.
        pools = sorted(self._pools())
        deployment.dagster.set_pool(pools[0], OPERATORS_LIMIT)

        self._phase(
            f"{options.leads} leads in {FILES + 1} files; the last one arrives during the outage"
        )
        for seed, name in enumerate(self._files):
            if name != self._last_file:
                self._write(name, seed)
        self._wait(self._sending, START_TIMEOUT_S, f"no run of {CAMPAIGN} called {options.service}")

        before = self._instance_settings()
        placed = deployment.sandbox.place(options.service, Fault(mode=Mode.OUTAGE))
        self._phase(f"{options.service} fails for at least {options.outage_s:g} s")
        placed_at = datetime.fromisoformat(placed["placed_at"])
        over_at = placed_at + timedelta(seconds=options.outage_s)
        self._wait(self._tripped, PAUSE_TIMEOUT_S, f"the breaker of {options.service} did not open")
        self._phase(f"the breaker of {options.service} is open")
        unaffected_runs = self._outage(over_at)
        deployment.sandbox.heal(options.service)
        healed = deployment.sandbox.stats()[options.service]["faults"][-1]["healed_at"]
        self._phase(f"{options.service} has recovered")
        unfinished = self._finish(unaffected_runs)
        return self._evidence(before, placed_at, datetime.fromisoformat(healed), unfinished)

    def _outage(self, over_at: datetime) -> list[str]:
        """Wait for the pause and the end of the outage; return the runs started meanwhile."""
        with ThreadPoolExecutor(1) as executor:
            started = executor.submit(self._start_more_runs)
            if self._options.kill_daemon:
                self._kill_daemon()
            latest = datetime.now(UTC) + timedelta(seconds=PAUSE_TIMEOUT_S)
            while not self._note_what_stopped() and datetime.now(UTC) < latest:
                self._tick(POLL_INTERVAL_S)
            if len(self._stopped_at) == len(PAUSED):
                self._phase("everything that depends on it is paused")
            while datetime.now(UTC) < over_at:
                self._tick(POLL_INTERVAL_S)
            return started.result(START_TIMEOUT_S)

    # --- actions

    def _write(self, name: str, seed: int) -> None:
        write_lead_file(self._deployment.leads / f"{name}.csv", self._files[name], seed=seed)

    def _start_more_runs(self) -> list[str]:
        """Start one run that must wait, and runs that must not be affected."""
        self._write(self._last_file, FILES)
        return [self._deployment.launch(job) for job in sorted(self._unaffected())]

    def _kill_daemon(self) -> None:
        self._phase("killing Dagster's daemon")
        self._deployment.kill_daemon()
        back_at = time.monotonic() + DAEMON_AWAY_S
        while time.monotonic() < back_at:
            self._note_what_stopped()
            time.sleep(POLL_INTERVAL_S)
        self._deployment.start_daemon()
        self._phase("restarted Dagster's daemon")

    def _finish(self, unaffected_runs: list[str]) -> list[str]:
        """Wait until everything has finished; return what has not."""
        until = time.monotonic() + self._options.finish_timeout_s
        while (left := self._unfinished(unaffected_runs)) and time.monotonic() < until:
            self._tick(POLL_INTERVAL_S)
        self._tick(0)
        return left

    # --- observations

    def _specs(self) -> list[campaigns.CampaignSpec]:
        with self._deployment.store.read() as conn:
            return list(campaigns.read(conn))

    def _affected(self) -> frozenset[str]:
        return frozenset(
            spec.name for spec in self._specs() if spec.services({self._options.service})
        )

    def _unaffected(self) -> frozenset[str]:
        return frozenset(spec.name for spec in self._specs()) - self._affected()

    def _pools(self) -> set[str]:
        return {
            pool
            for spec in self._specs()
            for pool in spec.pools
            if self._options.service in needs(pool, SERVICES).services
        }

    def _campaigns_known(self) -> bool:
        return any(spec.name == CAMPAIGN for spec in self._specs())

    def _sending(self) -> bool:
        # In the middle of a file, so that a run is interrupted between two records.
        half = self._files[self._last_file] / 2
        return self._deployment.sandbox.stats()[self._options.service]["effects"] >= half

    def _tripped(self) -> bool:
        with self._deployment.store.read() as conn:
            return breakers.read_one(conn, self._options.service).state is BreakerState.OPEN

    def _note_what_stopped(self) -> bool:
        """Record when each thing is first observed stopped; return whether all are."""
        affected = [spec for spec in self._specs() if spec.name in self._affected()]
        dagster = self._deployment.dagster
        limits = dagster.pools()
        if all(limits.get(pool) == "0" for pool in self._pools()):
            self._note("queue")
        states = dagster.triggers()
        triggers = [trigger.selector_id for spec in affected for trigger in spec.triggers]
        if all(name in states and states[name].status == STOPPED for name in triggers):
            self._note("schedules")
        if not any(
            self._deployment.instance.get_runs_count(
                dg.RunsFilter(job_name=spec.name, statuses=RUNNING)
            )
            for spec in affected
        ):
            self._note("work")
        return len(self._stopped_at) == len(PAUSED)

    def _note(self, what: str) -> None:
        self._stopped_at.setdefault(what, datetime.now(UTC))

    def _instance_settings(self) -> InstanceSettings:
        dagster = self._deployment.dagster
        with self._deployment.store.read() as conn:
            names = {
                trigger.selector_id: f"{trigger.kind} {trigger.name}"
                for spec in campaigns.read(conn)
                for trigger in spec.triggers
            }
        triggers = {
            names.get(selector, selector): state.status
            for selector, state in dagster.triggers().items()
        }
        return InstanceSettings(dict(dagster.pools()), triggers)

    def _unfinished(self, unaffected_runs: list[str]) -> list[str]:
        store = self._deployment.store
        with store.read() as conn:
            now = store.now(conn)
            live = [f"hold on {hold.target}" for hold in holds.live(conn, now)]
            live += [f"takeover of {taken.label}" for taken in takeovers.live(conn)]
            result = self._campaign_runs(conn)
            state = breakers.read_one(conn, self._options.service).state
        if state is not BreakerState.CLOSED:
            live.append(f"the breaker of {self._options.service} is {state}")
        live += [
            f"campaign run {name} is {status}"
            for name, (status, _) in sorted(result.items())
            if status in UNFINISHED
        ]
        live += [
            f"campaign run {CAMPAIGN}/{name} was never started"
            for name in self._files
            if f"{CAMPAIGN}/{name}" not in result
        ]
        for run_id in unaffected_runs:
            run = self._deployment.instance.get_run_by_id(run_id)
            if run is None or not run.is_finished:
                live.append(f"run {run_id} of an unaffected campaign has not ended")
        unfinished = self._deployment.instance.get_runs_count(
            dg.RunsFilter(statuses=[*RUNNING, dg.DagsterRunStatus.QUEUED])
        )
        if unfinished:
            live.append(f"{unfinished} Dagster runs have not ended")
        return live

    def _campaign_runs(self, conn: sa.Connection) -> dict[str, tuple[RunStatus, datetime]]:
        return {
            run.name: (run.status, run.changed_at)
            for run in runs.with_status(conn, *RunStatus)
            if run.partition in self._files
            or (run.campaign != CAMPAIGN and run.changed_at >= self._began_at)
        }

    def _evidence(
        self,
        before: InstanceSettings,
        placed_at: datetime,
        healed_at: datetime,
        unfinished: list[str],
    ) -> Evidence:
        deployment, service = self._deployment, self._options.service
        calls = deployment.sandbox.calls(since=placed_at, service=service)
        effects = {
            subject: count
            for subject, count in deployment.sandbox.effects(SENDER).items()
            if subject.split("/")[0] in self._files
        }
        stats = deployment.sandbox.stats()
        with deployment.store.read() as conn:
            result = self._campaign_runs(conn)
            transitions = self._transitions(conn)
            attempts = self._attempts(conn)
            paused_campaigns = self._paused_campaigns(conn)
        completed = [at for status, at in result.values() if status is RunStatus.COMPLETED]
        return Evidence(
            service=service,
            affected=self._affected(),
            unaffected=self._unaffected(),
            expected=self._expected,
            effects=effects,
            repeats=sum(counts["keys_repeated"] for counts in stats.values()),
            calls_total=sum(counts["calls"] for counts in stats.values()),
            arrivals=[datetime.fromisoformat(call["at"]) for call in calls],
            successes=[
                at
                for call in calls
                if call["status"] < 400 and (at := datetime.fromisoformat(call["at"])) >= healed_at
            ],
            healed_at=healed_at,
            transitions=transitions,
            queue_stopped_at=self._stopped_at.get("queue"),
            schedules_stopped_at=self._stopped_at.get("schedules"),
            all_paused_at=self._stopped_at.get("work"),
            paused_campaigns=paused_campaigns,
            runs=[
                RunResult(run.job_name, run.status.value, STATE_TAG in run.tags)
                for run in deployment.instance.get_runs()
            ],
            attempts=attempts,
            statuses={name: status for name, (status, _) in result.items()},
            completed_at=deployment.local(max(completed)) if completed else None,
            before=before,
            after=self._instance_settings(),
            unfinished=unfinished,
        )

    def _transitions(self, conn: sa.Connection) -> list[Transition]:
        rows = conn.execute(
            sa.select(t.events.c.at, t.events.c.to_status)
            .where(
                t.events.c.id > self._first_event,
                t.events.c.kind == EventKind.SERVICE,
                t.events.c.name == self._options.service,
                t.events.c.to_status.in_(list(BreakerState)),
            )
            .order_by(t.events.c.id)
        )
        return [Transition(self._deployment.local(row.at), row.to_status) for row in rows]

    def _attempts(self, conn: sa.Connection) -> list[AttemptTimes]:
        names = self._campaign_runs(conn)
        return [
            AttemptTimes(run.name, made.number, made.started_at, made.ended_at, made.outcome)
            for run in runs.with_status(conn, *RunStatus)
            if run.name in names
            for made in runs.attempts(conn, run.id)
        ]

    def _paused_campaigns(self, conn: sa.Connection) -> frozenset[str]:
        paused = conn.scalars(
            sa.select(t.events.c.name).where(
                t.events.c.id > self._first_event,
                t.events.c.kind == EventKind.CAMPAIGN_RUN,
                t.events.c.to_status == RunStatus.PAUSED,
            )
        )
        taken = conn.scalars(
            sa.select(t.takeovers.c.campaign).where(
                t.takeovers.c.id > self._first_takeover, t.takeovers.c.campaign.is_not(None)
            )
        )
        return frozenset({name.split("/")[0] for name in paused} | set(taken))

    # --- waiting

    def _phase(self, text: str) -> None:
        self._listener.phase(text)

    def _wait(self, condition: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
        until = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > until:
                raise DrillError(f"{otherwise} within {timeout_s:g} s")
            self._tick(POLL_INTERVAL_S)

    def _tick(self, seconds: float) -> None:
        self._deployment.children.check()
        self._listener.progress(
            self._deployment.sandbox.stats()[SENDER]["effects"], len(self._expected)
        )
        time.sleep(seconds)
