"""The ticks of the gate's three sensors.

Each makes its changes, writes a heartbeat with a summary for people, and only then raises what
failed.
"""

import time
from collections.abc import Sequence
from datetime import datetime, timedelta

import dagster as dg

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.control import situation
from dagster_tidegate.control.leftovers import leftovers
from dagster_tidegate.gate.abandoned import mark_abandoned
from dagster_tidegate.gate.follow import Audit, follow
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.missed_ticks import MissedTickPlanner
from dagster_tidegate.gate.plan import Observation
from dagster_tidegate.gate.queue import explain_queue
from dagster_tidegate.gate.reconcile import BUDGET_S, Direction, reconcile
from dagster_tidegate.gate.resume import request_runs
from dagster_tidegate.gate.windows import hold_in_windows
from dagster_tidegate.holds import HoldSource
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import campaigns, heartbeats, holds
from dagster_tidegate.text import plural, utc, words

# How far back the very first tick looks for runs.
FIRST_LOOK_BACK = timedelta(hours=1)
# The maximum number of holds in a summary.
MAX_HOLDS = 5


def pause_tick(gate: Gate, planner: MissedTickPlanner, audit: Audit, *, new_code: bool) -> str:
    """Stop what is held, and update the statuses of campaign runs from Dagster's runs.

    Args:
        new_code: Whether the campaigns may differ from those in the store.

    Returns:
        A summary for people.

    Raises:
        ExceptionGroup: If a change failed.
    """
    deadline = time.monotonic() + BUDGET_S
    observation, report = reconcile(
        gate, Direction.TIGHTEN, deadline=deadline, missed_ticks=planner.record
    )
    if begun := hold_in_windows(gate, observation.windows, observation.now):
        observation, more = reconcile(
            gate, Direction.TIGHTEN, deadline=deadline, missed_ticks=planner.record
        )
        report += more
    now = observation.now
    abandoned = 0
    if new_code or observation.cursor is None:  # without a heartbeat the store is new
        abandoned = mark_abandoned(gate)
        with gate.store.begin() as conn:
            campaigns.save(conn, now, gate.location, gate.specs)
    followed = follow(gate, observation.cursor or now - FIRST_LOOK_BACK, now, deadline)
    changes = [*begun, *report.changes]
    if waiting := explain_queue(gate, observation):
        changes.append(f"{plural(waiting, 'queued run')} tagged with the holds that they wait for")
    if abandoned:
        stuck = plural(abandoned, "paused campaign run")
        changes.append(f"{stuck} can't resume: the job no longer exists")
    if str(followed):
        changes.append(str(followed))
    if ended := audit(gate):
        changes.append(
            f"{plural(ended, 'campaign run')} ended, because Dagster has no unfinished run"
        )
    summary = _summary(observation, changes)
    _beat(gate, heartbeats.PAUSE, now, summary, followed.cursor)
    report.check()
    return summary


def resume_tick(gate: Gate, planner: MissedTickPlanner) -> tuple[str, Sequence[dg.RunRequest]]:
    """Give back and resume what is no longer held.

    Returns:
        A summary for people, and the runs that Dagster should launch.

    Raises:
        ExceptionGroup: If a change failed and there is nothing to launch.
    """
    observation, report = reconcile(
        gate,
        Direction.LOOSEN,
        deadline=time.monotonic() + BUDGET_S,
        missed_ticks=planner.record,
    )
    requests, notes = request_runs(gate, observation, planner)
    summary = _summary(observation, [*report.changes, *notes, *_leftovers(gate, observation)])
    _beat(gate, heartbeats.RESUME, observation.now, summary)
    if not requests:  # Dagster launches nothing from a failed tick
        report.check()
    return summary, requests


def breaker_tick(gate: Gate, fleet: Fleet) -> str:
    """Probe failed services that are due, and release expired holds.

    Returns:
        A summary for people.
    """
    now = fleet.refresh().read_at
    with gate.store.begin() as conn:
        expired = holds.expire(conn, now)
    changes = [f"{plural(expired, 'hold')} expired"] if expired else []
    for service in fleet.due_probes():
        breaker = fleet.breaker(service).probe()
        changes.append(f"probed {service}: {breaker.state}")
    for service, policy in fleet.policies.items():
        breaker = fleet.snapshot().services[service]
        if policy.probe_url is None and breaker.due(now):
            fleet.breaker(service).half_open()
            changes.append(f"{service} is half open")
    breakers = [fleet.snapshot().services[service] for service in fleet.policies]
    summary = "; ".join([_states(breakers), *changes])
    _beat(gate, heartbeats.BREAKER, now, summary)
    return summary


def _leftovers(gate: Gate, observation: Observation) -> list[str]:
    """What the code no longer defines. It is looked for only if something points to it."""
    is_strange = (
        any(run.campaign not in gate.campaigns for run in observation.paused)
        or bool(observation.starving)
        or any(
            hold.source is HoldSource.BREAKER and hold.target.name not in gate.policies
            for hold in observation.holds
        )
    )
    if not is_strange:
        return []
    with gate.store.read() as conn:
        return [str(leftover) for leftover in leftovers(situation.read(conn, observation.now))]


def _beat(
    gate: Gate, part: str, now: datetime, summary: str, cursor: datetime | None = None
) -> None:
    with gate.store.begin() as conn:
        heartbeats.beat(
            conn, now, location=gate.location, part=part, summary=summary, cursor=cursor
        )


def _states(breakers: Sequence[BreakerStatus]) -> str:
    tripped = [breaker for breaker in breakers if breaker.state is not BreakerState.CLOSED]
    if not tripped:
        few = len(breakers) == 1
        return "the breaker is closed" if few else f"all {len(breakers)} breakers are closed"
    return ", ".join(map(_state, tripped))


def _state(breaker: BreakerStatus) -> str:
    if breaker.is_denied:
        why = f"{breaker.name} refuses this client ({breaker.reason})"
        return f"{why}; once repaired: {breaker.remedy}"
    if breaker.throttled_until is not None:
        return f"{breaker.name} is throttled until {utc(breaker.throttled_until)}"
    if breaker.is_half_open:
        return f"{breaker.name} is half open: a trial call decides"
    until = f" until {breaker.open_until:%H:%M:%S} UTC" if breaker.open_until else ""
    return f"{breaker.name} is {words(breaker.state)}{until}"


def _summary(observation: Observation, changes: Sequence[str]) -> str:
    listed = observation.holds[:MAX_HOLDS]
    if listed:
        held = "held: " + ", ".join(f"{h.target} ({h.source}: {h.reason})" for h in listed)
        unlisted = len(observation.holds) - len(listed)
        held += f" and {unlisted} more" if unlisted else ""
    else:
        held = "nothing is held"
    return "; ".join([held, *(changes or ["nothing to do"])])
