"""What a call to a service says."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class VerdictKind(StrEnum):
    """What a guarded call says: the first five about its service, the rest about its record."""

    SUCCESS = "success"
    SLOW = "slow"  # succeeded, but took too long
    FAILURE = "failure"  # the service is unwell
    THROTTLED = "throttled"  # it is healthy, and must not be called before a time
    DENIED = "denied"  # it refuses this client until a person repairs something
    PENDING = "pending"  # no answer yet for this record
    REJECTED = "rejected"  # the record's own fault
    IGNORED = "ignored"  # the caller's own error


class Scope(StrEnum):
    """What a verdict is about."""

    SERVICE = "service"
    ENDPOINT = "endpoint"  # the part of the service that was called
    RECORD = "record"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one call says about the service and the record.

    Attributes:
        until: Not to be called again before, UTC; of `throttled` and `pending`, None if unknown.
        reason: A short name, for people: "503", "insufficient_quota".
        answer: What the service said, shortened and with its secrets masked; None without a body.
    """

    kind: VerdictKind
    until: datetime | None = None
    scope: Scope = Scope.SERVICE
    reason: str = ""
    answer: str | None = None


IGNORED = Verdict(VerdictKind.IGNORED)
"""The verdict on a call that says nothing about its service or its record."""
