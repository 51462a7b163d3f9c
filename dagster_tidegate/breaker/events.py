"""What a fleet tells of itself: one frozen dataclass per event, and what takes them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from dagster_tidegate.breaker.state_machine import BreakerStatus


@dataclass(frozen=True, slots=True)
class StateChanged:
    """A breaker changed its state. Told once in the fleet, by the process that did it.

    Attributes:
        service: Name of the service.
        before: The breaker before.
        after: The breaker after.
        actor: The worker or the operator who did it.
        degraded: The store can't be reached: this is the process's own breaker.
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
        service: Name of the service.
        before: The breaker as this process knew it.
        after: The breaker as it is.
        delay_s: Since when it is so, in seconds by the database's clock.
    """

    service: str
    before: BreakerStatus
    after: BreakerStatus
    delay_s: float


@dataclass(frozen=True, slots=True)
class CallFailed:
    """A guarded call failed in a way that counts.

    Attributes:
        service: Name of the service.
        error: What it raised.
        label: Short name of the failure: "503".
        retry_at: The service asked not to be called before (UTC), or None.
    """

    service: str
    error: Exception
    label: str
    retry_at: datetime | None


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A guarded call succeeded, or failed in a way that counts.

    Told of each call, if one of the fleet's hooks has an attribute `times_calls` that is true: a
    closed breaker takes no time otherwise, which costs less.

    Attributes:
        service: Name of the service.
        failed: Whether it failed.
        duration_s: How long it took, in seconds.
    """

    service: str
    failed: bool
    duration_s: float


@dataclass(frozen=True, slots=True)
class CallRefused:
    """A call was not made, because of an open breaker or an operator's hold."""

    service: str
    reason: str
    retry_at: datetime | None


@dataclass(frozen=True, slots=True)
class CallsCounted:
    """So many calls of this process ended since the last such event; at most once a second.

    Attributes:
        service: Name of the service.
        ok: Calls that succeeded, the slow ones included.
        slow: Calls that succeeded and took too long.
        failed: Calls that failed.
    """

    service: str
    ok: int
    slow: int
    failed: int


@dataclass(frozen=True, slots=True)
class StoreLost:
    """The store can't be reached; each process has its own breakers until it is back."""

    error: Exception


@dataclass(frozen=True, slots=True)
class StoreRegained:
    """The store is back, and what this process saw meanwhile is in it."""

    lost_for_s: float


Event = (
    StateChanged
    | ChangeLearned
    | CallFailed
    | CallEnded
    | CallRefused
    | CallsCounted
    | StoreLost
    | StoreRegained
)


class Hook(Protocol):
    """Takes events. Called in the thread where it happened: be quick.

    What a hook raises is logged and changes nothing.
    """

    def __call__(self, event: Event, /) -> None:
        """Take an event."""
        ...
