"""The story of a drill, phase by phase."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import uuid4

import dagster as dg
import sqlalchemy as sa

from dagster_tidegate.plugin.pause import STATE_TAG
from dagster_tidegate.pools import needs
from dagster_tidegate.statuses import UNFINISHED, BreakerState, RunStatus
from dagster_tidegate.store import breakers, campaigns, holds, runs, takeovers
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.takeovers import STOPPED
from demo.drill.report import DagsterRun, Evidence, Settings, Transition, Try
from demo.drill.stage import Stage
from demo.sandbox.answers import SERVICES
from demo.sandbox.faults import Fault, Mode
from demo.sandbox.leads import made_up_leads, write_lead_file

CAMPAIGN = "outreach"
SENDER = "instantly"
"""The service that each lead has to reach once, in the end."""
FILES = 6
"""More than run at once, so that some wait in the queue when the service fails."""
OPERATORS_LIMIT = "3"
DAEMON_AWAY_S = 3.0
LOOK_EVERY_S = 0.05
PAUSED = ("queue", "schedules", "work")
"""What is to be seen stopped."""
AT_WORK = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
START_TIMEOUT_S = 120.0
PAUSE_TIMEOUT_S = 60.0


class Audience(Protocol):
    """Who is told how a drill goes."""

    def phase(self, text: str) -> None:
        """Hear that a phase begins."""

    def progress(self, done: int, total: int) -> None:
        """Hear how many records have arrived."""


class DrillError(Exception):
    """The drill could not be played; the message says where it stood still."""


@dataclass(frozen=True)
class Plan:
    """What is to be played.

    Attributes:
        service: The service that fails.
        outage_s: For how long at least, seconds; until all has paused in any case.
        leads: How many leads there are, in all lead files together.
        kill_daemon: Whether Dagster's daemon is killed during the outage, and started again.
        finish_timeout_s: How long everything may take to be over after the outage, seconds.
    """

    service: str = SENDER
    outage_s: float = 20.0
    leads: int = 420
    kill_daemon: bool = False
    finish_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        if self.service not in SERVICES:
            raise ValueError(f"there is no service {self.service!r}: use one of {SERVICES}")
        if self.leads < FILES + 1:
            raise ValueError(f"{self.leads} leads are too few: use {FILES + 1} or more")


class Story:
    """Plays a drill on a stage.

    Args:
        plan: What is to be played.
        stage: Where.
        audience: Who is told.
    """

    def __init__(self, plan: Plan, stage: Stage, audience: Audience) -> None:
        self._plan, self._stage, self._audience = plan, stage, audience
        # A store may have seen other drills: names are this one's own.
        self._drill = f"drill-{uuid4().hex[:8]}"
        share, rest = divmod(plan.leads, FILES + 1)
        self._files = {
            f"{self._drill}-{n}": share + (1 if n < rest else 0) for n in range(FILES + 1)
        }
        self._wanted = frozenset(
            f"{name}/{lead['email']}"
            for seed, (name, count) in enumerate(self._files.items())
            for lead in made_up_leads(count, seed=seed)
        )
        self._last_file = f"{self._drill}-{FILES}"
        self._seen: dict[str, datetime] = {}
        with stage.store.read() as conn:
            self._first_event = conn.scalar(sa.select(sa.func.max(t.events.c.id))) or 0
            self._first_takeover = takeovers.newest_id(conn)
            self._began_at = stage.store.now(conn)

    def play(self) -> Evidence:
        """Play the drill from beginning to end.

        Raises:
            DrillError: If it stood still before the service failed or recovered.
            ChildDiedError: If a process ended that should not have.
        """
        stage, plan = self._stage, self._plan
        self._tell("waiting for the first ticks of the sensors")
        self._wait(self._campaigns_known, START_TIMEOUT_S, "the gate's sensors have not run")
        # A limit that an operator chose has to come back as well as the lack of one.
        pools = sorted(self._pools())
        stage.dagster.set_pool(pools[0], OPERATORS_LIMIT)

        self._tell(f"{plan.leads} leads in {FILES + 1} files; the last one comes later")
        for seed, name in enumerate(self._files):
            if name != self._last_file:
                self._write(name, seed)
        self._wait(self._underway, START_TIMEOUT_S, f"no run of {CAMPAIGN} calls {plan.service}")

        before = self._settings()
        placed = stage.sandbox.place(plan.service, Fault(mode=Mode.OUTAGE))
        self._tell(f"{plan.service} fails, for {plan.outage_s:g} s or until all has paused")
        placed_at = datetime.fromisoformat(placed["placed_at"])
        over_at = placed_at + timedelta(seconds=plan.outage_s)
        self._wait(self._tripped, PAUSE_TIMEOUT_S, f"the breaker of {plan.service} did not open")
        self._tell(f"the breaker of {plan.service} is open")
        bystanders = self._outage(over_at)
        stage.sandbox.heal(plan.service)
        healed = stage.sandbox.stats()[plan.service]["faults"][-1]["healed_at"]
        self._tell(f"{plan.service} is well again")
        left_over = self._finish(bystanders)
        return self._evidence(before, placed_at, datetime.fromisoformat(healed), left_over)

    def _outage(self, over_at: datetime) -> list[str]:
        """Look on until all has paused and it is time, and return the runs begun meanwhile."""
        with ThreadPoolExecutor(1) as beside:
            begun = beside.submit(self._begin_others)
            if self._plan.kill_daemon:
                self._kill_daemon()
            latest = datetime.now(UTC) + timedelta(seconds=PAUSE_TIMEOUT_S)
            while not self._look() and datetime.now(UTC) < latest:
                self._look_after(LOOK_EVERY_S)
            if len(self._seen) == len(PAUSED):
                self._tell("everything that needs it is paused")
            while datetime.now(UTC) < over_at:
                self._look_after(LOOK_EVERY_S)
            return begun.result(START_TIMEOUT_S)

    # What is done

    def _write(self, name: str, seed: int) -> None:
        write_lead_file(self._stage.leads / f"{name}.csv", self._files[name], seed=seed)

    def _begin_others(self) -> list[str]:
        """Start what is to wait, and what is to go on, during the outage."""
        self._write(self._last_file, FILES)
        return [self._stage.launch(job) for job in sorted(self._not_needing())]

    def _kill_daemon(self) -> None:
        self._tell("Dagster's daemon is killed")
        self._stage.kill_daemon()
        back_at = time.monotonic() + DAEMON_AWAY_S
        while time.monotonic() < back_at:
            self._look()
            time.sleep(LOOK_EVERY_S)
        self._stage.start_daemon()
        self._tell("Dagster's daemon is started again")

    def _finish(self, bystanders: list[str]) -> list[str]:
        """Wait until all is over, and return what is not."""
        until = time.monotonic() + self._plan.finish_timeout_s
        while (left := self._left_over(bystanders)) and time.monotonic() < until:
            self._look_after(LOOK_EVERY_S * 4)
        self._look_after(0)
        return left

    # What is looked at

    def _specs(self) -> list[campaigns.CampaignSpec]:
        with self._stage.store.read() as conn:
            return list(campaigns.read(conn))

    def _needing(self) -> frozenset[str]:
        return frozenset(spec.name for spec in self._specs() if spec.services({self._plan.service}))

    def _not_needing(self) -> frozenset[str]:
        return frozenset(spec.name for spec in self._specs()) - self._needing()

    def _pools(self) -> set[str]:
        return {
            pool
            for spec in self._specs()
            for pool in spec.pools
            if self._plan.service in needs(pool, SERVICES).services
        }

    def _campaigns_known(self) -> bool:
        return any(spec.name == CAMPAIGN for spec in self._specs())

    def _underway(self) -> bool:
        # In the middle of a file: a run is to be broken off between two records.
        half = self._files[self._last_file] / 2
        return self._stage.sandbox.stats()[self._plan.service]["effects"] >= half

    def _tripped(self) -> bool:
        with self._stage.store.read() as conn:
            return breakers.read_one(conn, self._plan.service).state is BreakerState.OPEN

    def _look(self) -> bool:
        """Note what is stopped, when it is first seen so. Returns whether all of it is."""
        needing = [spec for spec in self._specs() if spec.name in self._needing()]
        dagster = self._stage.dagster
        limits = dagster.pools()
        if all(limits.get(pool) == "0" for pool in self._pools()):
            self._note("queue")
        states = dagster.triggers()
        triggers = [trigger.selector_id for spec in needing for trigger in spec.triggers]
        if all(name in states and states[name].status == STOPPED for name in triggers):
            self._note("schedules")
        if not any(
            self._stage.instance.get_runs_count(dg.RunsFilter(job_name=spec.name, statuses=AT_WORK))
            for spec in needing
        ):
            self._note("work")
        return len(self._seen) == len(PAUSED)

    def _note(self, what: str) -> None:
        self._seen.setdefault(what, datetime.now(UTC))

    def _settings(self) -> Settings:
        dagster = self._stage.dagster
        with self._stage.store.read() as conn:
            names = {
                trigger.selector_id: f"{trigger.kind} {trigger.name}"
                for spec in campaigns.read(conn)
                for trigger in spec.triggers
            }
        triggers = {
            names.get(selector, selector): state.status
            for selector, state in dagster.triggers().items()
        }
        return Settings(dict(dagster.pools()), triggers)

    def _left_over(self, bystanders: list[str]) -> list[str]:
        store = self._stage.store
        with store.read() as conn:
            now = store.now(conn)
            live = [f"hold on {hold.target}" for hold in holds.live(conn, now)]
            live += [f"takeover of {taken.label}" for taken in takeovers.live(conn)]
            found = self._campaign_runs(conn)
            state = breakers.read_one(conn, self._plan.service).state
        if state is not BreakerState.CLOSED:
            live.append(f"the breaker of {self._plan.service} is {state}")
        live += [
            f"campaign run {name} is {status}"
            for name, (status, _) in sorted(found.items())
            if status in UNFINISHED
        ]
        live += [
            f"campaign run {CAMPAIGN}/{name} was never begun"
            for name in self._files
            if f"{CAMPAIGN}/{name}" not in found
        ]
        for run_id in bystanders:
            run = self._stage.instance.get_run_by_id(run_id)
            if run is None or not run.is_finished:
                live.append(f"run {run_id} of another campaign has not ended")
        unfinished = self._stage.instance.get_runs_count(
            dg.RunsFilter(statuses=[*AT_WORK, dg.DagsterRunStatus.QUEUED])
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
        self, before: Settings, placed_at: datetime, healed_at: datetime, left_over: list[str]
    ) -> Evidence:
        stage, service = self._stage, self._plan.service
        calls = stage.sandbox.calls(since=placed_at, service=service)
        effects = {
            subject: count
            for subject, count in stage.sandbox.effects(SENDER).items()
            if subject.split("/")[0] in self._files
        }
        stats = stage.sandbox.stats()
        with stage.store.read() as conn:
            found = self._campaign_runs(conn)
            transitions = self._transitions(conn)
            tries = self._tries(conn)
            ever_paused = self._ever_paused(conn)
        completed = [at for status, at in found.values() if status is RunStatus.COMPLETED]
        return Evidence(
            service=service,
            needing=self._needing(),
            not_needing=self._not_needing(),
            wanted=self._wanted,
            effects=effects,
            repeats=sum(counts["keys_repeated"] for counts in stats.values()),
            calls_total=sum(counts["calls"] for counts in stats.values()),
            arrivals=[datetime.fromisoformat(call["at"]) for call in calls],
            answered=[
                at
                for call in calls
                if call["status"] < 400 and (at := datetime.fromisoformat(call["at"])) >= healed_at
            ],
            healed_at=healed_at,
            transitions=transitions,
            queue_stopped_at=self._seen.get("queue"),
            schedules_stopped_at=self._seen.get("schedules"),
            all_paused_at=self._seen.get("work"),
            ever_paused=ever_paused,
            runs=[
                DagsterRun(run.job_name, run.status.value, STATE_TAG in run.tags)
                for run in stage.instance.get_runs()
            ],
            tries=tries,
            statuses={name: status for name, (status, _) in found.items()},
            completed_at=stage.local(max(completed)) if completed else None,
            before=before,
            after=self._settings(),
            left_over=left_over,
        )

    def _transitions(self, conn: sa.Connection) -> list[Transition]:
        rows = conn.execute(
            sa.select(t.events.c.at, t.events.c.to_status)
            .where(
                t.events.c.id > self._first_event,
                t.events.c.kind == EventKind.SERVICE,
                t.events.c.name == self._plan.service,
                t.events.c.to_status.in_(list(BreakerState)),
            )
            .order_by(t.events.c.id)
        )
        return [Transition(self._stage.local(row.at), row.to_status) for row in rows]

    def _tries(self, conn: sa.Connection) -> list[Try]:
        names = self._campaign_runs(conn)
        return [
            Try(run.name, made.number, made.started_at, made.ended_at, made.outcome)
            for run in runs.with_status(conn, *RunStatus)
            if run.name in names
            for made in runs.attempts(conn, run.id)
        ]

    def _ever_paused(self, conn: sa.Connection) -> frozenset[str]:
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

    # How it waits

    def _tell(self, text: str) -> None:
        self._audience.phase(text)

    def _wait(self, condition: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
        until = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > until:
                raise DrillError(f"{otherwise} within {timeout_s:g} s")
            self._look_after(LOOK_EVERY_S)

    def _look_after(self, seconds: float) -> None:
        self._stage.children.check()
        self._audience.progress(self._stage.sandbox.stats()[SENDER]["effects"], len(self._wanted))
        time.sleep(seconds)
