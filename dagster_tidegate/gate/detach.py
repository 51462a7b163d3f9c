"""Gives everything back that a gate took over, whatever is held."""

import time

from dagster_tidegate.gate.apply import Report, apply
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.plan import Observation, giving_back
from dagster_tidegate.gate.reconcile import BUDGET_S, MAX_ROUNDS
from dagster_tidegate.store import gate_view
from dagster_tidegate.store.gate_view import GateView
from dagster_tidegate.store.takeovers import Takeover


def takeovers_of(gate: Gate) -> list[Takeover]:
    """Return what the gate of a location has taken over; without a location, what all have."""
    return _taken(gate, _view(gate))


def give_back(gate: Gate) -> Report:
    """Restore pools, schedules and sensors at once, without a ramp and without catching up.

    What a person changed since stays as it is. Stop the gate first: a tick would take them again.

    Args:
        gate: The gate; without a location, everything that any gate has taken.

    Raises:
        GateBusyError: If a gate is still at work.
    """
    report = Report()
    deadline = time.monotonic() + BUDGET_S
    for _ in range(MAX_ROUNDS):
        view = _view(gate)
        observation = Observation(
            **{**vars(view), "holds": (), "takeovers": _taken(gate, view)},
            location=gate.location,
            pools=gate.dagster.pools(),
            triggers=gate.dagster.triggers(),
        )
        actions = giving_back(observation)
        if not actions or report.errors:
            break
        report += apply(gate, observation, actions, deadline=deadline, missed_ticks=lambda *_: None)
    return report


def _view(gate: Gate) -> GateView:
    with gate.store.read() as conn:
        return gate_view.read(gate.store, conn, gate.location, resuming=False)


def _taken(gate: Gate, view: GateView) -> list[Takeover]:
    return [each for each in view.takeovers if gate.location in ("", each.location)]
