"""One turn of the gate: observe, plan, apply, until there is nothing left to do."""

import time
from collections.abc import Sequence
from datetime import datetime
from enum import Flag, auto

import dagster as dg

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.dagster_api.instance import Dagster
from dagster_tidegate.gate.apply import MissedTicks, apply
from dagster_tidegate.gate.observe import Gate, observe
from dagster_tidegate.gate.plan import Action, End, Observed, Take, Write, plan
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.gate_lock import GateBusyError
from dagster_tidegate.store.takeovers import Takeover

# A turn whose changes cause more changes ends after so many; the next tick goes on.
MAX_ROUNDS = 4
# Dagster gives a sensor a minute.
BUDGET_S = 40.0


class Direction(Flag):
    """Which changes a part of the gate makes."""

    TIGHTEN = auto()
    LOOSEN = auto()


def turn(
    gate: Gate,
    direction: Direction,
    *,
    deadline: float,
    missed_ticks: MissedTicks,
    errors: list[Exception],
) -> tuple[Observed, list[str]]:
    """Make Dagster look as it should, in one or both directions.

    Args:
        gate: What the gate works with.
        direction: Which changes to make.
        deadline: When to stop (`time.monotonic`).
        missed_ticks: Called before a schedule is given back.
        errors: Gets what could not be written, for `check`.

    Returns:
        What was observed last, and what was done, for people.
    """
    done: list[str] = []
    resuming = Direction.LOOSEN in direction
    seen = observe(gate, resuming=resuming)
    for _ in range(MAX_ROUNDS):
        actions = [action for action in plan(seen) if _is(action, direction)]
        if not actions or errors or time.monotonic() > deadline:
            break
        try:
            done += apply(
                gate, seen, actions, deadline=deadline, missed_ticks=missed_ticks, errors=errors
            )
        except GateBusyError as busy:
            done.append(f"{busy}: the next tick goes on")
            break
        seen = observe(gate, resuming=resuming)
    done += [f"failed {'; '.join(getattr(e, '__notes__', ()))}: {e}" for e in errors]
    return seen, done


def check(errors: Sequence[Exception], done: Sequence[str]) -> None:
    """Raise what could not be written, after all else is done.

    Raises:
        ExceptionGroup: If anything failed.
    """
    if errors:
        raise ExceptionGroup(f"{len(errors)} changes failed; done: {'; '.join(done)}", errors)


def reconcile(instance: dg.DagsterInstance, store: Store, fleet: Fleet) -> list[str]:
    """Stop at once what the live holds say must not run, instead of at the next tick.

    For whoever has tripped a breaker or placed a hold. Needless calls are harmless.

    Args:
        instance: The Dagster instance.
        store: The store.
        fleet: The breakers.

    Returns:
        What was done, for people.
    """
    gate = Gate(Dagster(instance), store, fleet.policies, enabled=fleet.enabled)
    deadline = time.monotonic() + BUDGET_S
    errors: list[Exception] = []
    _, done = turn(
        gate,
        Direction.TIGHTEN,
        deadline=deadline,
        missed_ticks=_none_given_back,
        errors=errors,
    )
    check(errors, done)
    return done


def _is(action: Action, direction: Direction) -> bool:
    if isinstance(action, Take):
        return Direction.TIGHTEN in direction
    if isinstance(action, Write):
        return (Direction.TIGHTEN if action.tightens else Direction.LOOSEN) in direction
    return Direction.LOOSEN in direction if isinstance(action, End) else True


def _none_given_back(takeover: Takeover, until: datetime) -> None:
    raise AssertionError(f"{takeover.label} can't be given back at {until} by what only tightens")
