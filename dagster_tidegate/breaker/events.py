"""The events of a fleet, one frozen dataclass each, and the hooks that receive them."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.breaker.verdicts import Verdict

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StateChanged:
    """A breaker changed its state. Emitted once in the fleet, by the process that changed it.

    Attributes:
        actor: The worker or operator that changed it.
        degraded: The store is unreachable; this is a breaker of this process alone.
    """

    service: str
    before: BreakerStatus
    after: BreakerStatus
    actor: str
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class ChangeLearned:
    """This process learned that another changed the state of a breaker.

    Attributes:
        before: The breaker as this process knew it.
        after: The breaker now.
        delay_s: Seconds since the change, by the database's clock.
    """

    service: str
    before: BreakerStatus
    after: BreakerStatus
    delay_s: float


@dataclass(frozen=True, slots=True)
class CallFailed:
    """A guarded call failed, and the failure counts.

    Attributes:
        error: What it raised.
        label: Short name of the failure: "503".
        retry_at: The service asked not to be called before (UTC), or None.
    """

    service: str
    error: Exception
    label: str
    retry_at: datetime | None


@dataclass(frozen=True, slots=True)
class CallJudged:
    """A service throttled or denied a call, or said something about the record.

    Attributes:
        service: Name of the service, or of the part that was called.
        verdict: `throttled`, `denied`, `pending` or `rejected`.
    """

    service: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A guarded call succeeded, or failed and the failure counts.

    Emitted only if a hook has a true attribute `times_calls`: otherwise calls through a closed
    breaker are not timed, which is cheaper.

    Attributes:
        duration_s: How long it took, in seconds.
    """

    service: str
    failed: bool
    duration_s: float


@dataclass(frozen=True, slots=True)
class CallRefused:
    """A call was refused because of an open breaker or an operator's hold."""

    service: str
    reason: str
    retry_at: datetime | None


@dataclass(frozen=True, slots=True)
class CallsCounted:
    """Number of calls of this process since the last such event; at most once a second.

    Attributes:
        ok: Calls that succeeded, including slow ones.
        slow: Calls that succeeded and took too long.
    """

    service: str
    ok: int
    slow: int
    failed: int


@dataclass(frozen=True, slots=True)
class AmountSpent:
    """What this process has spent of a budget since the last such event; every few seconds.

    Attributes:
        campaign: The campaign that it worked for; empty if for none.
        unit: The budget's unit.
    """

    service: str
    campaign: str
    amount: float
    unit: str


@dataclass(frozen=True, slots=True)
class StoreLost:
    """The store is unreachable; each process has its own breakers until it recovers."""

    error: Exception


@dataclass(frozen=True, slots=True)
class StoreRegained:
    """The store recovered, and has what this process counted meanwhile."""

    lost_for_s: float


Event = (
    StateChanged
    | ChangeLearned
    | CallFailed
    | CallJudged
    | CallEnded
    | CallRefused
    | CallsCounted
    | AmountSpent
    | StoreLost
    | StoreRegained
)


class Hook(Protocol):
    """Receives events, in the thread in which they happen: it must be quick.

    An exception that a hook raises is logged and has no other effect.
    """

    def __call__(self, event: Event, /) -> None:
        """Receive an event."""
        ...


class Hooks:
    """The hooks of a fleet."""

    def __init__(self, hooks: Iterable[Hook]) -> None:
        self._hooks = tuple(hooks)
        self.times_calls = any(getattr(hook, "times_calls", False) for hook in self._hooks)

    def __iter__(self) -> Iterator[Hook]:
        return iter(self._hooks)

    def emit(self, event: Event) -> None:
        """Pass an event to each hook."""
        for hook in self._hooks:
            try:
                hook(event)
            except Exception:  # a broken hook must not break calls
                log.exception("a hook failed on %r", event)
