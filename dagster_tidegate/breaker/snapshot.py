"""What a process knows about breakers and holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.holds import Hold


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """The breakers and holds of the fleet at the last read.

    Attributes:
        services: Status of each breaker, by name of the service.
        holds: The live holds, oldest first.
        read_at: When it was read, by the database's clock.
        read_monotonic: `time.monotonic()` at that moment, in seconds.
        degraded: The store is unreachable, and these are this process's own breakers.
        outdated: Why this version may process no more records; None if it may.
    """

    services: Mapping[str, BreakerStatus]
    holds: tuple[Hold, ...]
    read_at: datetime
    read_monotonic: float
    degraded: bool = False
    outdated: str | None = None
