"""What a tick of the pause sensor and one of the resume sensor do."""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

import dagster as dg

from dagster_tidegate.campaign import Campaign
from dagster_tidegate.gate.catch_up import CatchUpper
from dagster_tidegate.gate.follow import follow
from dagster_tidegate.gate.observe import Gate
from dagster_tidegate.gate.plan import Observed
from dagster_tidegate.gate.resume import ask
from dagster_tidegate.gate.turn import BUDGET_S, Direction, check, turn
from dagster_tidegate.store import campaigns as stored_campaigns
from dagster_tidegate.store import heartbeats

# The parts of the gate, as their heartbeats name them.
PAUSE = "pause"
RESUME = "resume"
BREAKER = "breaker"

# The first tick of all looks so far back for runs that began before the gate was there.
FIRST_LOOK_BACK = timedelta(hours=1)
MOST_HOLDS_TOLD = 5


def pause_tick(
    gate: Gate, campaigns: Mapping[str, Campaign], upper: CatchUpper, *, new_code: bool
) -> str:
    """Stop what must not run, and bring campaign runs up to what became of Dagster's runs.

    Args:
        gate: What the gate works with.
        campaigns: The campaigns of the gate, by name.
        upper: Writes down what a schedule missed.
        new_code: Whether the campaigns may not be as the store knows them.

    Returns:
        What it saw and did, for people.
    """
    deadline = time.monotonic() + BUDGET_S
    with gate.store.read() as conn:
        now = gate.store.now(conn)
        beats = {(beat.location, beat.part): beat for beat in heartbeats.read(conn)}
    beat = beats.get((gate.location, PAUSE))
    if new_code or beat is None:  # without a heartbeat the store is new
        with gate.store.begin() as conn:
            stored_campaigns.save(conn, now, gate.location, gate.shapes)
    errors: list[Exception] = []
    seen, done = turn(
        gate, Direction.TIGHTEN, deadline=deadline, missed_ticks=upper.record, errors=errors
    )
    cursor = now - FIRST_LOOK_BACK if beat is None or beat.cursor is None else beat.cursor
    cursor, moved = follow(gate, campaigns, cursor, deadline)
    if moved:
        done.append(f"{moved} campaign runs followed Dagster")
    summary = _summary(seen, done)
    with gate.store.begin() as conn:
        heartbeats.beat(
            conn, now, location=gate.location, part=PAUSE, summary=summary, cursor=cursor
        )
    check(errors, done)
    return summary


def resume_tick(
    gate: Gate, campaigns: Mapping[str, Campaign], upper: CatchUpper
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
            conn, gate.store.now(conn), location=gate.location, part=RESUME, summary=summary
        )
    if not asked.requests:  # Dagster launches nothing of a tick that fails
        check(errors, done)
    return summary, asked.requests


def _summary(seen: Observed, done: Sequence[str]) -> str:
    told = seen.holds[:MOST_HOLDS_TOLD]
    saw = ", ".join(f"{hold.target} ({hold.source}: {hold.reason})" for hold in told)
    more = len(seen.holds) - len(told)
    held = f"held: {saw}" + (f" and {more} more" if more else "")
    return "; ".join([held if told else "nothing is held", *(done or ["nothing to do"])])
