"""The state machine of a breaker. Pure: time, randomness and counted calls are arguments.

            trip                    due, a trial call is admitted
  closed ---------->  open  ------------------------------------->  half open
     ^                 ^                                             |    |
     |                 +------------- a trial call failed -----------+    |
     +------------------- enough trial calls succeeded -------------------+

Each function takes a `BreakerStatus` and returns the next one, or the same object if nothing
changes. Each change of state increments the generation; calls that started in an older generation
have no effect.
"""

import shlex
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.breaker.window import WindowStats
from dagster_tidegate.statuses import BreakerState

FLUSH_S = 1.0
"""Interval in which workers report successes, in seconds. They report failures at once."""


@dataclass(frozen=True, slots=True)
class BreakerStatus:
    """The breaker of a service at a moment. Times are UTC.

    Attributes:
        state: Closed, open or half open.
        generation: Number of changes of state.
        changed_at: When the state last changed.
        opened_at: When it opened, kept through half open; None while closed.
        open_until: When the first probe is due; None while closed.
        attempt: Failed probes since it opened.
        trial_successes: Trial calls that succeeded in this half open.
        reason: Why it opened, for people; None while closed.
        cause: The kind of verdict that opened it; None while closed, or if it was opened by hand.
        answer: What the service said, shortened and without secrets, or None.
        closed_at: When it last recovered, or None.
        kept_closed_by: The operator who keeps it closed, or None.
        kept_closed_until: When that expires, or None.
    """

    name: str
    changed_at: datetime
    state: BreakerState = BreakerState.CLOSED
    generation: int = 0
    opened_at: datetime | None = None
    open_until: datetime | None = None
    attempt: int = 0
    trial_successes: int = 0
    reason: str | None = None
    cause: VerdictKind | None = None
    answer: str | None = None
    closed_at: datetime | None = None
    kept_closed_by: str | None = None
    kept_closed_until: datetime | None = None

    def kept_closed(self, now: datetime) -> bool:
        """Return whether an operator keeps it closed."""
        until = self.kept_closed_until
        return self.kept_closed_by is not None and (until is None or now < until)

    @property
    def is_denied(self) -> bool:
        """Whether it stays open until a person says that the cause is repaired."""
        return self.state == BreakerState.OPEN and self.cause == VerdictKind.DENIED

    @property
    def throttled_until(self) -> datetime | None:
        """When the service said that it may be called again (UTC), if that is why it is open."""
        is_open = self.state == BreakerState.OPEN
        return self.open_until if is_open and self.cause == VerdictKind.THROTTLED else None

    @property
    def remedy(self) -> str | None:
        """The command to run once the cause is repaired; None if it is tried without one."""
        return f"tidegate services repaired {shlex.quote(self.name)}" if self.is_denied else None

    def due(self, now: datetime) -> bool:
        """Return whether it is open and a probe is due; never if it is denied."""
        return (
            self.state == BreakerState.OPEN
            and not self.is_denied
            and (self.open_until is None or now >= self.open_until)
        )


def why_trip(
    status: BreakerStatus, policy: ServicePolicy, stats: WindowStats, now: datetime, label: str
) -> str | None:
    """Return why the breaker should trip, for people, or None if it should not.

    Failures are reported at once, successes up to `FLUSH_S` later, so the consecutive count alone
    would trip on a few failures in a busy, healthy fleet. It trips only if the failures in a row
    are also as many as the estimated unflushed successes, or if two workers or more had nothing
    but failures, three each on average. The rates include the unflushed successes, and do not
    apply just after a change of state, before anybody has reported successes.

    Args:
        stats: The fleet's calls.
        label: A short name of the last failure: "503".
    """
    if stats.failing_workers < min(policy.min_workers, stats.workers):
        return None
    if policy.consecutive_failures is not None and stats.row_since is not None:
        row_age_s = max(0.0, (now - stats.row_since).total_seconds())
        unflushed = stats.unflushed_ok_per_s * min(row_age_s, FLUSH_S)
        agreed = stats.row_workers >= 2 and stats.failed_in_row >= 3 * stats.row_workers
        if stats.failed_in_row >= policy.consecutive_failures and (
            agreed or stats.failed_in_row >= unflushed
        ):
            return f"{label} x{stats.failed_in_row}"
    window = f"in {policy.window_s:g} s"
    if policy.window_failures is not None and stats.failed >= policy.window_failures:
        return f"{label}, {stats.failed} failures {window}"
    calls = stats.ok + stats.failed
    young = (now - status.changed_at).total_seconds() < 2 * FLUSH_S
    if calls < policy.min_calls or (young and stats.workers > 1):
        return None
    all_calls = calls + stats.unflushed_ok_per_s * FLUSH_S
    if policy.failure_rate is not None and stats.failed >= policy.failure_rate * all_calls:
        return f"{label}, {stats.failed} of {calls} calls failed {window}"
    if policy.slow_call_rate is not None and stats.slow >= policy.slow_call_rate * all_calls:
        return f"{stats.slow} of {calls} calls took {policy.slow_call_s:g} s or more {window}"
    return None


def reset_timeout_s(policy: ServicePolicy, attempt: int, dice: float) -> float:
    """Return how long it stays open after `attempt` failed probes, in seconds.

    `dice` is a random number from 0 to 1, for the jitter.
    """
    # 64 doublings reach every cap; the bound avoids an overflow.
    grown = policy.reset_timeout_s * policy.backoff_factor ** min(attempt, 64)
    return min(grown, policy.reset_timeout_cap_s) * (1 + policy.jitter * dice)


def after_calls(
    status: BreakerStatus,
    policy: ServicePolicy,
    stats: WindowStats,
    now: datetime,
    label: str,
    dice: float,
) -> BreakerStatus:
    """Trip a closed breaker if a rule of its policy is reached."""
    if status.state != BreakerState.CLOSED or status.kept_closed(now):
        return status
    reason = why_trip(status, policy, stats, now, label)
    if reason is None:
        return status
    return opened(status, policy, now, reason, dice, stats.retry_at)


def opened(
    status: BreakerStatus,
    policy: ServicePolicy,
    now: datetime,
    reason: str,
    dice: float,
    retry_at: datetime | None = None,
) -> BreakerStatus:
    """Open a breaker. An open one restarts its timeout."""
    until = now + timedelta(seconds=reset_timeout_s(policy, status.attempt, dice))
    return replace(
        status,
        state=BreakerState.OPEN,
        generation=status.generation + 1,
        changed_at=now,
        opened_at=status.opened_at or now,
        open_until=until if retry_at is None else max(until, retry_at),
        trial_successes=0,
        reason=status.reason or reason,
        kept_closed_by=None,
        kept_closed_until=None,
    )


def half_opened(status: BreakerStatus, now: datetime) -> BreakerStatus:
    """Half open a breaker, due or not. A half open one stays as it is."""
    if status.state == BreakerState.HALF_OPEN:
        return status
    return replace(
        status,
        state=BreakerState.HALF_OPEN,
        generation=status.generation + 1,
        changed_at=now,
        opened_at=status.opened_at or now,
        trial_successes=0,
        reason=status.reason or "on trial",
    )


def after_trial(
    status: BreakerStatus,
    policy: ServicePolicy,
    verdict: VerdictKind,
    now: datetime,
    dice: float,
    retry_at: datetime | None = None,
) -> BreakerStatus:
    """Apply the result of a trial call: close, open again for longer, or wait for more."""
    if status.state != BreakerState.HALF_OPEN or verdict == VerdictKind.IGNORED:
        return status
    slow_is_bad = policy.slow_call_rate is not None
    if verdict == VerdictKind.FAILURE or (verdict == VerdictKind.SLOW and slow_is_bad):
        again = replace(status, attempt=status.attempt + 1)
        return opened(again, policy, now, status.reason or "trial call failed", dice, retry_at)
    counted = replace(status, trial_successes=status.trial_successes + 1)
    return closed(counted, now) if counted.trial_successes >= policy.success_threshold else counted


def closed(status: BreakerStatus, now: datetime) -> BreakerStatus:
    """Close a breaker. A closed one stays as it is."""
    if status.state == BreakerState.CLOSED:
        return status
    return BreakerStatus(
        name=status.name,
        changed_at=now,
        generation=status.generation + 1,
        closed_at=now,
        kept_closed_by=status.kept_closed_by,
        kept_closed_until=status.kept_closed_until,
    )
