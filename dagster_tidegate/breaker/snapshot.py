"""What a process knows of breakers and holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.holds import Hold


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """The breakers and holds of the fleet, as they were read last.

    Attributes:
        services: Breaker of each service, by the service's name.
        holds: The live holds, the oldest first.
        read_at: When this was read, by the database's clock.
        read_ticks: What `time.monotonic()` said then, in seconds.
        degraded: The store can't be reached; the breakers are this process's own meanwhile.
        oldest_revision: The oldest revision whose workers the store still fits, where it says so.
    """

    services: Mapping[str, BreakerStatus]
    holds: tuple[Hold, ...]
    read_at: datetime
    read_ticks: float
    degraded: bool = False
    oldest_revision: str | None = None
