"""The errors of breakers and fleets."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pybreaker

from dagster_tidegate.breaker.verdicts import Scope, Verdict, VerdictKind
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.text import words

MAX_AFTER_S = 30 * 86400.0


class BreakerOpenError(pybreaker.CircuitBreakerError):
    """A call was not made, or failed, while the service must not be called.

    Attributes:
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
        # Not super(): a subclass may be another kind of exception as well.
        pybreaker.CircuitBreakerError.__init__(self, service, state, since, reason, retry_at)
        self.service = service
        self.state = state
        self.since = since
        self.reason = reason
        self.retry_at = retry_at

    def __str__(self) -> str:
        until = "" if self.retry_at is None else f"; retry at {self.retry_at:%Y-%m-%d %H:%M:%S} UTC"
        state = words(self.state)
        return f"{self.service} is {state} since {self.since:%H:%M:%S} UTC ({self.reason}){until}"


class UnknownServiceError(LookupError):
    """No policy has the name of the service."""


class OutdatedError(Exception):
    """This version is too old for the store; the message says what to do."""


class AnswerError(Exception):
    """A service did not do what was asked. Clients raise its subclasses to say so directly.

    The breaker raises it for a response that a call returned and that means one of these.

    Args:
        reason: Why, for people.
        until: Not to be called again before, UTC.
        after: The same, in seconds from now.
        scope: What it is about: the service, the endpoint that was called, or the record.
        verdict: The verdict, in place of the arguments before.
        response: The response that it was decided by.

    Attributes:
        verdict: What it means.

    Example:
        >>> Denied("the trial has ended").verdict.kind
        <VerdictKind.DENIED: 'denied'>
    """

    kind: ClassVar[VerdictKind] = VerdictKind.FAILURE
    default_scope: ClassVar[Scope] = Scope.SERVICE

    def __init__(
        self,
        reason: str = "",
        *,
        until: datetime | None = None,
        after: float | None = None,
        scope: Scope | str | None = None,
        verdict: Verdict | None = None,
        response: object = None,
    ) -> None:
        if verdict is None:
            if after is not None:
                # Clients compute it from what the service says, which may be anything.
                after = min(max(after, 0.0), MAX_AFTER_S) if after == after else None
            if after is not None:
                until = datetime.now(UTC) + timedelta(seconds=after)
            if until is not None and until.tzinfo is None:
                until = until.replace(tzinfo=UTC)
            where = self.default_scope if scope is None else Scope(scope)
            verdict = Verdict(self.kind, until, where, reason or str(self.kind))
        super().__init__(reason or verdict.reason)
        self.verdict = verdict
        self.response = response
        self.after = after

    @classmethod
    def of(cls, verdict: Verdict, response: object = None) -> "AnswerError":
        """Return the error of a verdict: an instance of the subclass that says the same."""
        kinds = {error.kind: error for error in (Throttled, Denied, Pending, Rejected)}
        return kinds.get(verdict.kind, AnswerError)(verdict=verdict, response=response)

    def verdict_at(self, at: datetime) -> Verdict:
        """Return the verdict with `after` counted from a time of the fleet's clock."""
        if self.after is None:
            return self.verdict
        return replace(self.verdict, until=at + timedelta(seconds=self.after))

    @property
    def response_status(self) -> int | None:
        """The HTTP status of the response, or None."""
        for name in ("status_code", "status"):
            status = getattr(self.response, name, None)
            if isinstance(status, int):
                return status
        return None

    def __str__(self) -> str:
        verdict = self.verdict
        said = "" if verdict.answer is None else f": {verdict.answer}"
        until = "" if verdict.until is None else f" until {verdict.until:%Y-%m-%d %H:%M:%S} UTC"
        return f"{verdict.kind}{until} ({verdict.reason}){said}"


class Throttled(AnswerError):
    """The service is healthy, and must not be called before a time."""

    kind = VerdictKind.THROTTLED


class Denied(AnswerError):
    """The service refuses this client until a person repairs something: key, credits, plan."""

    kind = VerdictKind.DENIED


class Pending(AnswerError):
    """There is no answer yet for this record; it is tried again later."""

    kind = VerdictKind.PENDING
    default_scope = Scope.RECORD


class Rejected(AnswerError):
    """The service refuses this record because it is invalid. It is not tried again."""

    kind = VerdictKind.REJECTED
    default_scope = Scope.RECORD
