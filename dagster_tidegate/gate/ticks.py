"""What a tick of each of the three sensors does."""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

import dagster as dg

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.gate.follow import Audit, follow
from dagster_tidegate.gate.missed_ticks import MissedTickPlanner
from dagster_tidegate.gate.observe import Gate
from dagster_tidegate.gate.plan import Observed
from dagster_tidegate.gate.reconcile import BUDGET_S, Direction, check, turn
from dagster_tidegate.gate.resume import ask
from dagster_tidegate.plugin.campaign import Campaign
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import campaigns as stored_campaigns
from dagster_tidegate.store import heartbeats, holds

# The first tick of all looks so far back for runs that began before the gate was there.
FIRST_LOOK_BACK = timedelta(hours=1)
MAX_HOLDS_TOLD = 5


def pause_tick(
    gate: Gate,
    campaigns: Mapping[str, Campaign],
    upper: MissedTickPlanner,
    audit: Audit,
    *,
    new_code: bool,
) -> str:
    """Stop what must not run, and bring campaign runs up to what became of Dagster's runs.

    Args:
        gate: What the gate works with.
        campaigns: The campaigns of the gate, by name.
        upper: Writes down what a schedule missed.
        audit: Looks for Dagster runs that were deleted.
        new_code: Whether the campaigns may not be as the store knows them.

    Returns:
        What it saw and did, for people.
    """
    deadline = time.monotonic() + BUDGET_S
    errors: list[Exception] = []
    seen, done = turn(
        gate, Direction.TIGHTEN, deadline=deadline, missed_ticks=upper.record, errors=errors
    )
    if new_code or seen.cursor is None:  # without a heartbeat the store is new
        with gate.store.begin() as conn:
            stored_campaigns.save(conn, seen.now, gate.location, gate.specs)
    cursor, moved = follow(
        gate, campaigns, seen.cursor or seen.now - FIRST_LOOK_BACK, seen.now, deadline
    )
    if moved:
        done.append(f"{moved} campaign runs followed Dagster")
    if gone := audit(gate, campaigns):
        done.append(f"{gone} campaign runs cancelled whose Dagster runs were deleted")
    summary = _summary(seen, done)
    with gate.store.begin() as conn:
        heartbeats.beat(
            conn,
            seen.now,
            location=gate.location,
            part=heartbeats.PAUSE,
            summary=summary,
            cursor=cursor,
        )
    check(errors, done)
    return summary


def resume_tick(
    gate: Gate, campaigns: Mapping[str, Campaign], upper: MissedTickPlanner
) -> tuple[str, Sequence[dg.RunRequest]]:
    """Let go on what nothing holds any more.

    Args:
        gate: What the gate works with.
        campaigns: The campaigns of the gate, by name.
        upper: Writes down what a schedule missed, and runs it.

    Returns:
        What it saw and did, for people, and the runs that Dagster should launch.
    """
    deadline = time.monotonic() + BUDGET_S
    errors: list[Exception] = []
    seen, done = turn(
        gate, Direction.LOOSEN, deadline=deadline, missed_ticks=upper.record, errors=errors
    )
    asked = ask(gate, seen, campaigns, upper)
    summary = _summary(seen, [*done, *asked.notes])
    with gate.store.begin() as conn:
        heartbeats.beat(
            conn, seen.now, location=gate.location, part=heartbeats.RESUME, summary=summary
        )
    if not asked.requests:  # Dagster launches nothing of a tick that fails
        check(errors, done)
    return summary, asked.requests


def breaker_tick(gate: Gate, fleet: Fleet) -> str:
    """Find out which failed services are back, and end holds whose time is over.

    Args:
        gate: What the gate works with.
        fleet: The breakers.

    Returns:
        What it saw and did, for people.
    """
    with gate.store.begin() as conn:
        expired = holds.expire(conn, gate.store.now(conn))
    done = [f"{expired} holds expired"] if expired else []
    now = fleet.refresh().read_at
    for service in fleet.due_probes():
        circuit = fleet.breaker(service).probe()
        done.append(f"probed {service}: {circuit.state}")
    for service, policy in fleet.policies.items():
        circuit = fleet.snapshot().services[service]
        if policy.probe_url is None and circuit.due(now):
            fleet.breaker(service).half_open()
            done.append(f"{service} is half open")
    circuits = [fleet.snapshot().services[service] for service in fleet.policies]
    summary = "; ".join([_states(circuits), *done])
    with gate.store.begin() as conn:
        heartbeats.beat(conn, now, location=gate.location, part=heartbeats.BREAKER, summary=summary)
    return summary


def _states(circuits: Sequence[BreakerStatus]) -> str:
    others = [c for c in circuits if c.state is not BreakerState.CLOSED]
    if not others:
        return f"all {len(circuits)} breakers are closed"
    return ", ".join(
        f"{c.name} is {c.state}" + (f" until {c.open_until:%H:%M:%S} UTC" if c.open_until else "")
        for c in others
    )


def _summary(seen: Observed, done: Sequence[str]) -> str:
    told = seen.holds[:MAX_HOLDS_TOLD]
    saw = ", ".join(f"{hold.target} ({hold.source}: {hold.reason})" for hold in told)
    more = len(seen.holds) - len(told)
    held = f"held: {saw}" + (f" and {more} more" if more else "")
    return "; ".join([held if told else "nothing is held", *(done or ["nothing to do"])])
