"""The report of a drill, and the invariants it must meet. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from dagster_tidegate.statuses import BreakerState, RunStatus

MAX_NAMED = 5
IN_FLIGHT_S = 1.0
"""Grace period after a trip, in seconds: calls in flight, and workers not notified yet."""


@dataclass(frozen=True)
class Transition:
    """A state change of the failed service's breaker. `at` is UTC."""

    at: datetime
    to: str


@dataclass(frozen=True)
class RunResult:
    """A Dagster run at the end of the drill. `paused`: its tags say that it was paused."""

    job: str
    status: str
    paused: bool


@dataclass(frozen=True)
class AttemptTimes:
    """An attempt at a campaign run. Times are UTC."""

    run: str
    number: int
    started_at: datetime
    ended_at: datetime | None
    outcome: RunStatus | None


@dataclass(frozen=True)
class InstanceSettings:
    """Pool limits, and statuses of schedules and sensors, in the Dagster instance."""

    pools: Mapping[str, str]
    triggers: Mapping[str, str]


@dataclass(frozen=True)
class Evidence:
    """What was observed during a drill. Times are UTC.

    Attributes:
        service: The service that failed.
        affected: Campaigns that depend on it.
        unaffected: Campaigns that do not.
        expected: `file/address` of each lead that must reach the sending service exactly once.
        effects: How often each of these took effect, as counted by the sandbox.
        repeats: Idempotency keys, over all services, that were sent again after they took effect.
        calls_total: Calls to all services, health checks excluded.
        arrivals: When calls arrived at the failed service, from the start of the outage.
        successes: When it answered successfully, from its recovery.
        healed_at: When it recovered.
        transitions: State changes of its breaker, from the start of the outage.
        queue_stopped_at: When all of its pools were first observed at 0.
        schedules_stopped_at: When all schedules and trigger sensors of affected campaigns were
            first observed stopped.
        all_paused_at: When no Dagster run of these campaigns was first observed running.
        paused_campaigns: Campaigns with a paused run, or with a schedule or sensor taken over.
        runs: All Dagster runs.
        attempts: All attempts.
        statuses: Status of each campaign run, by name.
        completed_at: When the last campaign run completed.
        before: Settings of the Dagster instance before the outage.
        after: The same at the end.
        unfinished: Holds, takeovers and runs still there when the drill timed out.
    """

    service: str
    affected: frozenset[str]
    unaffected: frozenset[str]
    expected: frozenset[str]
    effects: Mapping[str, int]
    repeats: int
    calls_total: int
    arrivals: Sequence[datetime]
    successes: Sequence[datetime]
    healed_at: datetime
    transitions: Sequence[Transition]
    queue_stopped_at: datetime | None
    schedules_stopped_at: datetime | None
    all_paused_at: datetime | None
    paused_campaigns: frozenset[str]
    runs: Sequence[RunResult]
    attempts: Sequence[AttemptTimes]
    statuses: Mapping[str, RunStatus]
    completed_at: datetime | None
    before: InstanceSettings
    after: InstanceSettings
    unfinished: Sequence[str]

    @property
    def untouched(self) -> frozenset[str]:
        """Campaigns of which nothing was paused."""
        return (self.affected | self.unaffected) - self.paused_campaigns


@dataclass(frozen=True)
class Report:
    """The figures of a drill. Durations are seconds; None if the event did not happen.

    Attributes:
        records_total: Leads to send.
        records_done: Leads that reached the sending service.
        records_lost: Leads that did not.
        records_duplicated: Leads that took effect more than once, plus records of any op whose
            service deduplicated a repeated idempotency key.
        calls_total: Calls to all services, health checks excluded.
        calls_while_open: Calls that arrived at the failed service while its breaker was open.
        runs_failed: Dagster runs that ended as FAILURE.
        runs_paused: Dagster runs that ended as paused.
        runs_resumed: Dagster runs that resumed a paused one.
        campaigns_paused: Campaigns of which anything was paused.
        campaigns_untouched: The other campaigns.
        trip_to_last_call_s: From the trip to the last call before the first probe.
        trip_to_queue_stopped_s: From the trip until all pools of the service were at 0.
        trip_to_schedules_stopped_s: From the trip until the schedules and trigger sensors of
            affected campaigns were stopped.
        trip_to_all_paused_s: From the trip until no run of these campaigns was running.
        recovery_to_first_record_s: From the recovery of the service to its first success.
        recovery_to_all_done_s: From the recovery until all campaign runs were complete.
        schedules_restored: Whether schedules and sensors are exactly as before.
        pools_restored: Whether pools are exactly as before.
    """

    records_total: int
    records_done: int
    records_lost: int
    records_duplicated: int
    calls_total: int
    calls_while_open: int
    runs_failed: int
    runs_paused: int
    runs_resumed: int
    campaigns_paused: int
    campaigns_untouched: int
    trip_to_last_call_s: float | None
    trip_to_queue_stopped_s: float | None
    trip_to_schedules_stopped_s: float | None
    trip_to_all_paused_s: float | None
    recovery_to_first_record_s: float | None
    recovery_to_all_done_s: float | None
    schedules_restored: bool
    pools_restored: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a flat, JSON-serializable dict."""
        return asdict(self)


def summarize(evidence: Evidence) -> Report:
    """Compute the figures of a drill."""
    trip = _trip(evidence)
    while_open = _while_open(evidence)
    after_trip = [at for at in while_open if at < _first_probe(evidence)]
    lost = [lead for lead in evidence.expected if not evidence.effects.get(lead)]
    return Report(
        records_total=len(evidence.expected),
        records_done=len(evidence.expected) - len(lost),
        records_lost=len(lost),
        records_duplicated=sum(count > 1 for count in evidence.effects.values()) + evidence.repeats,
        calls_total=evidence.calls_total,
        calls_while_open=len(while_open),
        runs_failed=sum(run.status == "FAILURE" for run in evidence.runs),
        runs_paused=sum(run.paused for run in evidence.runs),
        runs_resumed=sum(
            first.outcome is RunStatus.PAUSED for first, _ in _pairs(evidence.attempts)
        ),
        campaigns_paused=len(evidence.paused_campaigns),
        campaigns_untouched=len(evidence.untouched),
        trip_to_last_call_s=None if trip is None else _seconds(trip, max(after_trip, default=trip)),
        trip_to_queue_stopped_s=_seconds(trip, evidence.queue_stopped_at),
        trip_to_schedules_stopped_s=_seconds(trip, evidence.schedules_stopped_at),
        trip_to_all_paused_s=_seconds(trip, evidence.all_paused_at),
        recovery_to_first_record_s=_seconds(
            evidence.healed_at, min(evidence.successes, default=None)
        ),
        recovery_to_all_done_s=_seconds(evidence.healed_at, evidence.completed_at),
        schedules_restored=evidence.before.triggers == evidence.after.triggers,
        pools_restored=evidence.before.pools == evidence.after.pools,
    )


def violations(evidence: Evidence) -> list[str]:
    """Return a sentence for each violated invariant."""
    figures = summarize(evidence)
    trip = _trip(evidence)
    problems = [f"not finished in time: {thing}" for thing in evidence.unfinished]
    if trip is None:
        return [
            *problems,
            f"the breaker of {evidence.service} did not open: the drill proves nothing",
        ]
    late = [at for at in _while_open(evidence) if (_opened_before(evidence, at)) > IN_FLIGHT_S]
    if late:
        problems.append(
            f"{len(late)} calls arrived at {evidence.service} more than {IN_FLIGHT_S:g} s "
            "after its breaker opened"
        )
    if figures.records_lost:
        missing = sorted(lead for lead in evidence.expected if not evidence.effects.get(lead))
        problems.append(f"{figures.records_lost} records lost: {_some(missing)}")
    if twice := sorted(lead for lead, count in evidence.effects.items() if count > 1):
        problems.append(f"{len(twice)} records took effect more than once: {_some(twice)}")
    if evidence.repeats:
        problems.append(f"{evidence.repeats} records were sent again after they took effect")
    if unknown := sorted(evidence.effects.keys() - evidence.expected):
        problems.append(f"{len(unknown)} unexpected records arrived: {_some(unknown)}")
    if figures.runs_failed:
        problems.append(f"{figures.runs_failed} Dagster runs failed")
    if wrong := [run for run in evidence.runs if run.paused and run.status != "CANCELED"]:
        problems.append(
            f"{len(wrong)} paused Dagster runs are not CANCELED: "
            + _some(sorted(f"{run.job} {run.status}" for run in wrong))
        )
    problems += [
        f"{what} during the outage"
        for at, what in (
            (evidence.queue_stopped_at, f"the pools of {evidence.service} never reached 0"),
            (
                evidence.schedules_stopped_at,
                "schedules and trigger sensors never stopped",
            ),
            (evidence.all_paused_at, "running work never stopped"),
        )
        if at is None
    ]
    if not evidence.paused_campaigns >= evidence.affected:
        problems.append(
            f"not paused: {_some(sorted(evidence.affected - evidence.paused_campaigns))}"
        )
    if wrongly := evidence.paused_campaigns - evidence.affected:
        problems.append(f"paused without depending on {evidence.service}: {_some(sorted(wrongly))}")
    problems += [
        f"{name} is {status} instead of completed"
        for name, status in sorted(evidence.statuses.items())
        if status is not RunStatus.COMPLETED
    ]
    problems += _overlaps(evidence.attempts)
    for what, before, after in (
        ("pool", evidence.before.pools, evidence.after.pools),
        ("schedule or sensor", evidence.before.triggers, evidence.after.triggers),
    ):
        problems += [
            f"{what} {name} was {before.get(name, 'unset')} and is {after.get(name, 'unset')}"
            for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name)
        ]
    return problems


def _trip(evidence: Evidence) -> datetime | None:
    return next((t.at for t in evidence.transitions if t.to == BreakerState.OPEN), None)


def _first_probe(evidence: Evidence) -> datetime:
    """When the breaker first left `open` after the trip."""
    over = [t.at for t in evidence.transitions if t.to != BreakerState.OPEN]
    return min(over, default=datetime.max.replace(tzinfo=evidence.healed_at.tzinfo))


def _state_at(evidence: Evidence, at: datetime) -> Transition | None:
    return next((t for t in reversed(evidence.transitions) if t.at <= at), None)


def _while_open(evidence: Evidence) -> list[datetime]:
    arrivals = []
    for at in evidence.arrivals:
        state = _state_at(evidence, at)
        if state is not None and state.to == BreakerState.OPEN:
            arrivals.append(at)
    return arrivals


def _opened_before(evidence: Evidence, at: datetime) -> float:
    state = _state_at(evidence, at)
    assert state is not None  # callers pass only arrivals while it was open
    return (at - state.at).total_seconds()


def _pairs(attempts: Sequence[AttemptTimes]) -> list[tuple[AttemptTimes, AttemptTimes]]:
    """Return each attempt with the attempt that followed it."""
    ordered = sorted(attempts, key=lambda t: (t.run, t.number))
    return [(first, second) for first, second in pairwise(ordered) if first.run == second.run]


def _overlaps(attempts: Sequence[AttemptTimes]) -> list[str]:
    return [
        f"attempt {second.number} of {second.run} began before attempt {first.number} had ended"
        for first, second in _pairs(attempts)
        if first.ended_at is None or second.started_at < first.ended_at
    ]


def _seconds(start: datetime | None, end: datetime | None) -> float | None:
    if start is None or end is None:
        return None
    return round((end - start).total_seconds(), 3)


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + rest
