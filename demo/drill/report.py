"""What a drill found, judged by what must always hold. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from dagster_tidegate.statuses import BreakerState, RunStatus

MAX_NAMED = 5
TOLD_WITHIN_S = 1.0
"""How long after a trip a call may still arrive: it was under way, or its worker not yet told."""


@dataclass(frozen=True)
class Transition:
    """A change of the breaker of the service that failed. The time is UTC."""

    at: datetime
    to: str


@dataclass(frozen=True)
class DagsterRun:
    """A run as Dagster has it at the end.

    Attributes:
        job: Name of its job.
        status: Dagster's status.
        paused: Whether its tags say that it was paused.
    """

    job: str
    status: str
    paused: bool


@dataclass(frozen=True)
class Try:
    """An attempt at a campaign run. Times are UTC."""

    run: str
    number: int
    started_at: datetime
    ended_at: datetime | None
    outcome: RunStatus | None


@dataclass(frozen=True)
class Settings:
    """The limits of pools, and the statuses of schedules and sensors, as Dagster has them."""

    pools: Mapping[str, str]
    triggers: Mapping[str, str]


@dataclass(frozen=True)
class Evidence:
    """What a drill saw. Times are UTC.

    Attributes:
        service: The service that was made to fail.
        needing: Campaigns that need it.
        not_needing: Campaigns that do not.
        wanted: What the drill's leads have to bring about at the service that sends, once each.
        effects: How often each of these took effect there, by the sandbox's own count.
        repeats: Idempotency keys, at all services, under which a call arrived that would have
            taken effect again.
        calls_total: Calls that arrived at all services; health checks aside.
        arrivals: When calls arrived at the service, since it was made to fail.
        answered: When it answered calls as it should, since it was healed.
        healed_at: When it was healed.
        transitions: What its breaker did since it was made to fail.
        queue_stopped_at: When all of its pools were first seen at 0.
        schedules_stopped_at: When all schedules and trigger sensors of campaigns that need it
            were first seen stopped.
        all_paused_at: When no Dagster run of these campaigns was first seen working.
        ever_paused: Campaigns of which a run was paused, or a schedule or sensor taken over.
        runs: All Dagster runs.
        tries: All attempts.
        statuses: The status of each campaign run, by name.
        completed_at: When the last campaign run completed.
        before: Dagster's settings before the outage.
        after: Dagster's settings at the end.
        left_over: What was not over in time: holds, takeovers, campaign runs.
    """

    service: str
    needing: frozenset[str]
    not_needing: frozenset[str]
    wanted: frozenset[str]
    effects: Mapping[str, int]
    repeats: int
    calls_total: int
    arrivals: Sequence[datetime]
    answered: Sequence[datetime]
    healed_at: datetime
    transitions: Sequence[Transition]
    queue_stopped_at: datetime | None
    schedules_stopped_at: datetime | None
    all_paused_at: datetime | None
    ever_paused: frozenset[str]
    runs: Sequence[DagsterRun]
    tries: Sequence[Try]
    statuses: Mapping[str, RunStatus]
    completed_at: datetime | None
    before: Settings
    after: Settings
    left_over: Sequence[str]


@dataclass(frozen=True)
class Report:
    """What a drill found. Times are in seconds; None where the thing did not happen.

    Attributes:
        records_total: Leads that were to be handed over to the service that sends.
        records_done: Leads that arrived there.
        records_lost: Leads that did not.
        records_duplicated: Leads that took effect there more than once, and records of any op
            that would have at their service, had it not known the idempotency key.
        calls_total: Calls that arrived at all services; health checks aside.
        calls_while_open: Calls that arrived at the service while its breaker was open.
        runs_failed: Dagster runs that ended as FAILURE.
        runs_paused: Dagster runs that ended as paused.
        runs_resumed: Dagster runs that went on where another had stopped.
        campaigns_paused: Campaigns of which something was paused.
        campaigns_untouched: Campaigns that knew nothing of it.
        trip_to_last_call_s: From the trip to the last of `calls_while_open` that followed it.
        trip_to_queue_stopped_s: From the trip until all pools of the service were at 0.
        trip_to_schedules_stopped_s: From the trip until all schedules and trigger sensors of
            campaigns that need the service were stopped.
        trip_to_all_paused_s: From the trip until no run of these campaigns was working.
        recovery_to_first_record_s: From the service's recovery to the first call that it
            answered well.
        recovery_to_all_done_s: From the service's recovery until all campaign runs were complete.
        schedules_restored: Whether schedules and sensors were exactly as before.
        pools_restored: Whether pools were exactly as before.
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
        """Return the report as JSON can hold it, under flat keys."""
        return asdict(self)


def report(seen: Evidence) -> Report:
    """Return the figures of a drill."""
    trip = _trip(seen)
    while_open = _while_open(seen)
    after_trip = [at for at in while_open if at < _first_probe(seen)]
    lost = [lead for lead in seen.wanted if not seen.effects.get(lead)]
    return Report(
        records_total=len(seen.wanted),
        records_done=len(seen.wanted) - len(lost),
        records_lost=len(lost),
        records_duplicated=sum(count > 1 for count in seen.effects.values()) + seen.repeats,
        calls_total=seen.calls_total,
        calls_while_open=len(while_open),
        runs_failed=sum(run.status == "FAILURE" for run in seen.runs),
        runs_paused=sum(run.paused for run in seen.runs),
        runs_resumed=sum(first.outcome is RunStatus.PAUSED for first, _ in _pairs(seen.tries)),
        campaigns_paused=len(seen.ever_paused),
        campaigns_untouched=len((seen.needing | seen.not_needing) - seen.ever_paused),
        trip_to_last_call_s=None if trip is None else _seconds(trip, max(after_trip, default=trip)),
        trip_to_queue_stopped_s=_seconds(trip, seen.queue_stopped_at),
        trip_to_schedules_stopped_s=_seconds(trip, seen.schedules_stopped_at),
        trip_to_all_paused_s=_seconds(trip, seen.all_paused_at),
        recovery_to_first_record_s=_seconds(seen.healed_at, min(seen.answered, default=None)),
        recovery_to_all_done_s=_seconds(seen.healed_at, seen.completed_at),
        schedules_restored=seen.before.triggers == seen.after.triggers,
        pools_restored=seen.before.pools == seen.after.pools,
    )


def broken(seen: Evidence) -> list[str]:
    """Return a sentence for each thing that should have held and did not."""
    found = report(seen)
    trip = _trip(seen)
    problems = [f"not over in time: {thing}" for thing in seen.left_over]
    if trip is None:
        return [*problems, f"the breaker of {seen.service} did not open: nothing was shown"]
    late = [at for at in _while_open(seen) if (_opened_before(seen, at)) > TOLD_WITHIN_S]
    if late:
        problems.append(
            f"{len(late)} calls arrived at {seen.service} more than {TOLD_WITHIN_S:g} s after its "
            "breaker had opened"
        )
    if found.records_lost:
        missing = sorted(lead for lead in seen.wanted if not seen.effects.get(lead))
        problems.append(f"{found.records_lost} records lost: {_some(missing)}")
    if twice := sorted(lead for lead, count in seen.effects.items() if count > 1):
        problems.append(f"{len(twice)} records took effect twice: {_some(twice)}")
    if seen.repeats:
        problems.append(f"{seen.repeats} records were sent again after they had taken effect")
    if unknown := sorted(seen.effects.keys() - seen.wanted):
        problems.append(f"{len(unknown)} records arrived that nobody sent: {_some(unknown)}")
    if found.runs_failed:
        problems.append(f"{found.runs_failed} Dagster runs failed")
    if wrong := [run for run in seen.runs if run.paused and run.status != "CANCELED"]:
        problems.append(
            f"{len(wrong)} paused Dagster runs do not look paused: "
            + _some(sorted(f"{run.job} {run.status}" for run in wrong))
        )
    problems += [
        f"{what} during the outage"
        for at, what in (
            (seen.queue_stopped_at, f"the pools of {seen.service} were not seen at 0"),
            (seen.schedules_stopped_at, "schedules and trigger sensors were not seen stopped"),
            (seen.all_paused_at, "work was never seen to have stopped"),
        )
        if at is None
    ]
    if not seen.ever_paused >= seen.needing:
        problems.append(f"not paused: {_some(sorted(seen.needing - seen.ever_paused))}")
    if wrongly := seen.ever_paused - seen.needing:
        problems.append(f"paused without need of {seen.service}: {_some(sorted(wrongly))}")
    problems += [
        f"{name} is {status}, and should be completed"
        for name, status in sorted(seen.statuses.items())
        if status is not RunStatus.COMPLETED
    ]
    problems += _two_at_once(seen.tries)
    for what, before, after in (
        ("pool", seen.before.pools, seen.after.pools),
        ("schedule or sensor", seen.before.triggers, seen.after.triggers),
    ):
        problems += [
            f"{what} {name} was {before.get(name, 'unset')} and is {after.get(name, 'unset')}"
            for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name)
        ]
    return problems


def _trip(seen: Evidence) -> datetime | None:
    return next((t.at for t in seen.transitions if t.to == BreakerState.OPEN), None)


def _first_probe(seen: Evidence) -> datetime:
    """When the first open time after the trip was over."""
    over = [t.at for t in seen.transitions if t.to != BreakerState.OPEN]
    return min(over, default=datetime.max.replace(tzinfo=seen.healed_at.tzinfo))


def _state_at(seen: Evidence, at: datetime) -> Transition | None:
    return next((t for t in reversed(seen.transitions) if t.at <= at), None)


def _while_open(seen: Evidence) -> list[datetime]:
    found = []
    for at in seen.arrivals:
        state = _state_at(seen, at)
        if state is not None and state.to == BreakerState.OPEN:
            found.append(at)
    return found


def _opened_before(seen: Evidence, at: datetime) -> float:
    state = _state_at(seen, at)
    assert state is not None  # asked only of calls that arrived while it was open
    return (at - state.at).total_seconds()


def _pairs(tries: Sequence[Try]) -> list[tuple[Try, Try]]:
    """Return each attempt that another followed, and that one."""
    ordered = sorted(tries, key=lambda t: (t.run, t.number))
    return [(first, second) for first, second in pairwise(ordered) if first.run == second.run]


def _two_at_once(tries: Sequence[Try]) -> list[str]:
    return [
        f"attempt {second.number} of {second.run} began before attempt {first.number} had ended"
        for first, second in _pairs(tries)
        if first.ended_at is None or second.started_at < first.ended_at
    ]


def _seconds(start: datetime | None, end: datetime | None) -> float | None:
    if start is None or end is None:
        return None
    return round((end - start).total_seconds(), 3)


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + rest
