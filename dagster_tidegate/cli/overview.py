"""What the tables of several commands say of holds and services."""

from datetime import datetime

from rich.text import Text

from dagster_tidegate.cli import output
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.control.why import ObstacleKind, why
from dagster_tidegate.holds import Hold, HoldSource, Target, TargetKind
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.text import length


def ends(hold: Hold) -> str:
    """Return when a hold ends, for people."""
    at_the_latest = "it recovers" if hold.source is HoldSource.BREAKER else "it is released"
    return output.moment(hold.expires_at) or at_the_latest


def probed(due: datetime, now: datetime) -> str:
    """Return when a service is probed, for people: in how long, or since when it should be."""
    return f"in {length(due - now)}" if due > now else f"due for {length(now - due)}"


class ServiceView:
    """How a service is: its breaker, and what people did to it.

    Args:
        seen: The situation.
        name: Name of the service. It may have a hold and no breaker.
    """

    def __init__(self, seen: Situation, name: str) -> None:
        self._circuit = seen.circuits.get(name)
        target = Target(TargetKind.SERVICE, name)
        self._held = [
            each
            for each in seen.holds
            if each.target == target and each.source is HoldSource.OPERATOR
        ]
        self._kept_closed = [
            each.text
            for each in why(seen, target).obstacles
            if each.kind is ObstacleKind.KEPT_CLOSED
        ]

    @property
    def state(self) -> str:
        """What it is: a closed breaker does not mean that its campaigns run."""
        state = None if self._circuit is None else self._circuit.state
        if state in (None, BreakerState.CLOSED):
            if self._held:
                return "held"
            if self._kept_closed:
                return "kept closed"
        return "" if state is None else state

    @property
    def since(self) -> datetime | None:
        """Since when it is so; None for one that has no breaker yet."""
        if self.state == "held":
            return self._held[0].placed_at
        return None if self._circuit is None else self._circuit.changed_at

    @property
    def due(self) -> datetime | None:
        """When it is probed; None where no probe is to come."""
        is_open = self._circuit is not None and self._circuit.state is BreakerState.OPEN
        return self._circuit.open_until if self._circuit and is_open else None

    @property
    def well(self) -> bool:
        """Whether there is nothing to tell of it."""
        return self.state == BreakerState.CLOSED

    def why(self) -> Text:
        """Return why it is so."""
        held = "" if self.state == "held" else "held "
        parts = [
            *([self._circuit.reason] if self._circuit and self._circuit.reason else []),
            *(f"{held}by {each.actor}: {each.reason}" for each in self._held),
            *self._kept_closed,
        ]
        return output.text("; ".join(parts))
