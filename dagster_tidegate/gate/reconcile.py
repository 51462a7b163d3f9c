"""Reconciles: observes, plans and applies until there is nothing left to change."""

import time
from datetime import datetime
from enum import Flag, auto

import dagster as dg

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.dagster_api.instance import Dagster
from dagster_tidegate.dagster_api.kept_instance import keep_connections
from dagster_tidegate.gate.apply import MissedTicks, Report, apply
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.observe import observe
from dagster_tidegate.gate.plan import Action, End, Observation, Write, plan
from dagster_tidegate.store import heartbeats
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.gate_lock import GateBusyError
from dagster_tidegate.store.takeovers import Take, Takeover

# Changes may cause further changes; after this many rounds, the next tick continues.
MAX_ROUNDS = 4
# Dagster gives a sensor a minute.
BUDGET_S = 40.0


class Direction(Flag):
    """Which changes to make."""

    TIGHTEN = auto()
    LOOSEN = auto()


def reconcile(
    gate: Gate, direction: Direction, *, deadline: float, missed_ticks: MissedTicks
) -> tuple[Observation, Report]:
    """Make Dagster match the live holds, in one or both directions.

    Args:
        direction: Which changes to make.
        deadline: When to stop (`time.monotonic`); the next tick does the rest.
        missed_ticks: Called before a schedule is given back.

    Returns:
        The last observation, and what was done.
    """
    report = Report()
    resuming = Direction.LOOSEN in direction
    observation = observe(gate, resuming=resuming)
    for _ in range(MAX_ROUNDS):
        actions = [a for a in plan(observation) if _direction(a) in (None, *direction)]
        if not actions or report.errors or time.monotonic() > deadline:
            break
        try:
            done = apply(gate, observation, actions, deadline=deadline, missed_ticks=missed_ticks)
        except GateBusyError as busy:
            report.changes.append(f"{busy}: the next tick continues")
            break
        report += done
        if not resuming and len(done.changes) == len(actions):
            break  # nobody was faster, and what tightens causes no further changes
        observation = observe(gate, resuming=resuming)
    report.changes += [
        f"failed {'; '.join(getattr(error, '__notes__', ()))}: {error}" for error in report.errors
    ]
    return observation, report


def tighten_now(instance: dg.DagsterInstance, store: Store, fleet: Fleet) -> list[str]:
    """Stop at once what the live holds cover, without waiting for the next tick.

    Call it after tripping a breaker or placing a hold. Needless calls are harmless. The instance
    keeps its connections from then on.

    Returns:
        What was done, for people.

    Raises:
        ExceptionGroup: If a change failed.
    """
    with store.read() as conn:
        if heartbeats.detached(conn):  # nobody is left who would give anything back
            return []
    keep_connections(instance)
    gate = Gate(Dagster(instance), store, fleet.policies, enabled=fleet.enabled)
    _, report = reconcile(
        gate,
        Direction.TIGHTEN,
        deadline=time.monotonic() + BUDGET_S,
        missed_ticks=_nothing_given_back,
    )
    report.check()
    return report.changes


def _direction(action: Action) -> Direction | None:
    """The direction of a change; None for a note that a person changed something."""
    match action:
        case Take():
            return Direction.TIGHTEN
        case Write():
            return Direction.TIGHTEN if action.tightens else Direction.LOOSEN
        case End():
            return Direction.LOOSEN
    return None


def _nothing_given_back(takeover: Takeover, until: datetime) -> None:
    raise AssertionError(f"tightening must not give {takeover.label} back ({until})")
