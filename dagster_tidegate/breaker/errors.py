"""The errors of breakers and fleets."""

from datetime import datetime

import pybreaker

from dagster_tidegate.statuses import BreakerState


class BreakerOpenError(pybreaker.CircuitBreakerError):
    """A call was not made, or failed, while the service must not be called.

    Attributes:
        service: Name of the service.
        state: State of its breaker; also `open` where an operator holds the service.
        since: Since when (UTC).
        reason: Why, for people.
        retry_at: The earliest time to try again (UTC); None if unknown.
    """

    def __init__(
        self,
        service: str,
        state: BreakerState,
        since: datetime,
        reason: str,
        retry_at: datetime | None,
    ) -> None:
        super().__init__(service, state, since, reason, retry_at)
        self.service = service
        self.state = state
        self.since = since
        self.reason = reason
        self.retry_at = retry_at

    def __str__(self) -> str:
        until = "" if self.retry_at is None else f"; retry at {self.retry_at:%Y-%m-%d %H:%M:%S} UTC"
        state = str(self.state).replace("_", " ")
        return f"{self.service} is {state} since {self.since:%H:%M:%S} UTC ({self.reason}){until}"


class UnknownServiceError(LookupError):
    """No policy has the name of the service."""


class OutdatedError(Exception):
    """This version is too old for the store; the message says what to do."""
