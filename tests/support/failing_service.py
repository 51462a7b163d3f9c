"""A service that always fails, and a breaker that it trips."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dagster_tidegate.breaker.breaker import Breaker
from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.statuses import BreakerState


class Down(Exception):
    """The service is down."""


@dataclass
class Letter:
    """What calls are made for, as for a record."""

    evidence: str | None = None
    served_by: list[str] = field(default_factory=list)


def fail() -> None:
    raise Down


def policy(**fields: Any) -> ServicePolicy:
    """A policy of openai that trips at the third failure in a row."""
    return ServicePolicy(**{"name": "openai", "consecutive_failures": 3, "jitter": 0} | fields)


def trip(breaker: Breaker) -> None:
    """Call the service until its breaker is open."""
    while breaker.status.state == BreakerState.CLOSED:
        with suppress(Down, BreakerOpenError):
            breaker.call(fail)
