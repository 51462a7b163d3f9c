"""The state machine of a breaker. Pure: time, randomness and counted calls are arguments.

            trip                    due, a trial call is admitted
  closed ---------->  open  ------------------------------------->  half open
     ^                 ^                                             |    |
     |                 +------------- a trial call failed -----------+    |
     +------------------- enough trial calls succeeded -------------------+

Each function takes a `BreakerStatus` and returns the next one, or the same object if nothing
changes. Each change of state increments the generation; failures of calls that started in an older
generation have no effect.

A service that is throttled opens until the time that it named, and one that denies this client
until a person says that it is repaired; neither needs several calls.
"""

import shlex
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import sqrt

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind
from dagster_tidegate.breaker.window import WindowStats
from dagster_tidegate.statuses import BreakerState

FLUSH_S = 1.0
"""Interval in which workers report successes, in seconds. They report failures at once."""

CONFIDENCE_Z = 1.96
"""The rates must be reached with a confidence of 97.5 %."""
SLOW_IN_ROW = 15
"""So many slow calls of a process, without another in between, trip however few calls there are."""
RELAPSE_S = 3600.0
"""A breaker that trips so soon after it closed, without a success in between, has not recovered."""


@dataclass(frozen=True, slots=True)
class BreakerStatus:
    """The breaker of a service at a moment. Times are UTC.

    Attributes:
        state: Closed, open or half open.
        generation: Number of changes of state.
        changed_at: When the state last changed.
        opened_at: When it opened, kept through half open; None while closed.
        open_until: When the first probe is due; None while closed.
        attempt: How many times in a row it opened again soon: after a trial call that failed, or
            after a recovery that did not last. The reset timeout grows with it.
        trial_successes: Trial calls that succeeded in this half open.
        reason: Why it opened, for people; None while closed.
        cause: The kind of verdict that opened it last; None if it was opened by hand.
        used_up: `limit` or `budget`, if that of its policy throttled it; None if the service did,
            or it opened for another cause.
        answer: What the service said, shortened and without secrets, or None.
        closed_at: When it last recovered, or None.
        kept_closed_by: The operator who keeps it closed, or None.
        kept_closed_until: When that expires, or None.
        would_open_at: When it would last have opened, were its policy enforced.
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
    closed_at: datetime | None = None
    kept_closed_by: str | None = None
    kept_closed_until: datetime | None = None
    cause: VerdictKind | None = None
    answer: str | None = None
    would_open_at: datetime | None = None
    used_up: str | None = None

    def kept_closed(self, now: datetime) -> bool:
        """Return whether an operator keeps it closed."""
        until = self.kept_closed_until
        return self.kept_closed_by is not None and (until is None or now < until)

    @property
    def is_half_open(self) -> bool:
        """Whether trial calls decide if it closes or opens again."""
        return self.state == BreakerState.HALF_OPEN

    @property
    def is_denied(self) -> bool:
        """Whether it stays open until a person says that the cause is repaired."""
        return self.state == BreakerState.OPEN and self.cause == VerdictKind.DENIED

    @property
    def needs_real_call(self) -> bool:
        """Whether only a call can close it: a health probe has no key, and proves nothing of it."""
        return self.is_half_open and self.cause == VerdictKind.DENIED

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

    Failures in a row count only if they are those of `min_records` records: one bad record fails as
    often as it is tried.

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
        if (
            stats.failed_in_row >= policy.consecutive_failures
            and stats.row_records >= min(policy.min_records, policy.consecutive_failures)
            and (agreed or stats.failed_in_row >= unflushed)
        ):
            return f"{label} x{stats.failed_in_row}"
    window = f"in {policy.window_s:g} s"
    if policy.window_failures is not None and stats.failed >= policy.window_failures:
        return f"{label}, {stats.failed} failures {window}"
    slow_s = policy.slow_call_s
    slow = "much longer than usual" if slow_s is None else f"{slow_s:g} s or more"
    if policy.slow_call_rate is not None and stats.slow_in_row >= SLOW_IN_ROW:
        return f"{stats.slow_in_row} calls in a row took {slow}"
    calls = stats.ok + stats.failed
    young = (now - status.changed_at).total_seconds() < 2 * FLUSH_S
    if calls < policy.min_calls or (young and stats.workers > 1):
        return None
    all_calls = calls + stats.unflushed_ok_per_s * FLUSH_S
    if policy.failure_rate is not None and exceeds(stats.failed, all_calls, policy.failure_rate):
        return f"{label}, {stats.failed} of {calls} calls failed {window}"
    if policy.slow_call_rate is not None and exceeds(stats.slow, all_calls, policy.slow_call_rate):
        return f"{stats.slow} of {calls} calls took {slow} {window}"
    return None


def exceeds(count: int, calls: float, rate: float) -> bool:
    """Return whether so many of the calls show that the true share is `rate` or more.

    All of them do; else the lower end of Wilson's score interval must reach the rate, so that a few
    calls too many in a small window are no evidence.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22 (1927).

    Example:
        >>> exceeds(12, 20, 0.5), exceeds(15, 20, 0.5), exceeds(20, 20, 1.0)
        (False, True, True)
    """
    if count >= calls:
        return True
    share, z2 = count / calls, CONFIDENCE_Z**2
    margin = CONFIDENCE_Z * sqrt(share * (1 - share) / calls + z2 / (4 * calls**2))
    return (share + z2 / (2 * calls) - margin) / (1 + z2 / calls) >= rate


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
    failure: Verdict,
    dice: float,
) -> BreakerStatus:
    """Trip a closed breaker if a rule of its policy is reached.

    Args:
        failure: The verdict on the last failure.
    """
    if status.state != BreakerState.CLOSED or status.kept_closed(now):
        return status
    reason = why_trip(status, policy, stats, now, failure.reason)
    if reason is None:
        return status
    relapses = status.attempt + 1 if _relapsed(status, policy, stats, now) else 0
    again = replace(status, attempt=relapses)
    verdict = replace(failure, reason=reason, until=stats.retry_at)
    return opened(again, policy, now, verdict, dice)


def _relapsed(
    status: BreakerStatus, policy: ServicePolicy, stats: WindowStats, now: datetime
) -> bool:
    """Return whether a recovery did not last, because it was too recent or no call succeeded."""
    if status.closed_at is None:
        return False
    soon_s = max(policy.window_s, reset_timeout_s(policy, status.attempt, 0.0))
    if stats.last_ok_at is None:
        soon_s = max(soon_s, RELAPSE_S)
    return (now - status.closed_at).total_seconds() < soon_s


def after_answer(
    status: BreakerStatus, policy: ServicePolicy, verdict: Verdict, now: datetime, dice: float
) -> BreakerStatus:
    """Open a breaker whose service throttles or denies; one that is open stays so for longer."""
    if status.kept_closed(now) or status.is_denied:
        return status
    if verdict.kind == VerdictKind.DENIED or status.state == BreakerState.CLOSED:
        return opened(replace(status, attempt=0), policy, now, verdict, dice)
    if verdict.until is None or status.is_half_open:
        return status
    until = max(verdict.until, status.open_until or verdict.until)
    return status if until == status.open_until else replace(status, open_until=until)


def after_refusal(
    status: BreakerStatus,
    policy: ServicePolicy,
    verdict: Verdict,
    now: datetime,
    dice: float,
    *,
    used_up: str,
) -> BreakerStatus:
    """Throttle a breaker whose own limit or budget is used up; see `BreakerStatus.used_up`."""
    after = after_answer(status, policy, verdict, now, dice)
    return after if after.generation == status.generation else replace(after, used_up=used_up)


def opened(
    status: BreakerStatus, policy: ServicePolicy, now: datetime, verdict: Verdict, dice: float
) -> BreakerStatus:
    """Open a breaker for a verdict. An open one restarts its timeout.

    Where the policy is not enforced it stays closed and only notes that it would have opened.
    """
    cause = None if verdict.kind == VerdictKind.IGNORED else verdict.kind
    reason = verdict.reason or str(verdict.kind)
    if not policy.enforce and cause is not None:
        return _would_open(status, policy, now, reason)
    attempt = 0 if cause == VerdictKind.THROTTLED else status.attempt
    until = now + timedelta(seconds=reset_timeout_s(policy, attempt, dice))
    if cause == VerdictKind.DENIED:
        until = None
    elif verdict.until is not None and verdict.until > now:
        until = verdict.until if cause == VerdictKind.THROTTLED else max(until, verdict.until)
    return replace(
        status,
        state=BreakerState.OPEN,
        generation=status.generation + 1,
        changed_at=now,
        opened_at=status.opened_at or now,
        open_until=until,
        trial_successes=0,
        reason=reason,
        cause=cause,
        answer=verdict.answer,
        used_up=None,
        kept_closed_by=None,
        kept_closed_until=None,
    )


def _would_open(
    status: BreakerStatus, policy: ServicePolicy, now: datetime, reason: str
) -> BreakerStatus:
    last = status.would_open_at
    if last is not None and now < last + timedelta(seconds=policy.reset_timeout_s):
        return status
    return replace(
        status,
        generation=status.generation + 1,  # the counts start again
        changed_at=now,
        would_open_at=now,
        reason=reason,
    )


def opened_by_hand(
    status: BreakerStatus, policy: ServicePolicy, now: datetime, dice: float
) -> BreakerStatus:
    """Open a breaker because a program or a person asks for it."""
    return opened(status, policy, now, Verdict(VerdictKind.IGNORED, reason="opened by hand"), dice)


def half_opened(status: BreakerStatus, now: datetime) -> BreakerStatus:
    """Half open a breaker, due or not. A half open one stays as it is."""
    if status.is_half_open:
        return status
    return replace(
        status,
        state=BreakerState.HALF_OPEN,
        generation=status.generation + 1,
        changed_at=now,
        opened_at=status.opened_at or now,
        trial_successes=0,
        reason=status.reason or "on trial",
        cause=None if status.state == BreakerState.CLOSED else status.cause,
    )


def after_trial(
    status: BreakerStatus, policy: ServicePolicy, verdict: Verdict, now: datetime, dice: float
) -> BreakerStatus:
    """Apply the result of a trial call: close, open again for longer, or wait for more."""
    if not status.is_half_open:
        return status
    match verdict.kind:
        case VerdictKind.THROTTLED | VerdictKind.DENIED:
            return opened(status, policy, now, verdict, dice)
        case VerdictKind.FAILURE:
            return _opened_again(status, policy, now, verdict, dice)
        case VerdictKind.SLOW if policy.slow_call_rate is not None:
            return _opened_again(status, policy, now, verdict, dice)
        case VerdictKind.SUCCESS | VerdictKind.SLOW:
            counted = replace(status, trial_successes=status.trial_successes + 1)
            needed = 1 if status.cause == VerdictKind.THROTTLED else policy.success_threshold
            return closed(counted, now) if counted.trial_successes >= needed else counted
    return status


def _opened_again(
    status: BreakerStatus, policy: ServicePolicy, now: datetime, verdict: Verdict, dice: float
) -> BreakerStatus:
    again = replace(status, attempt=status.attempt + 1)
    # Why it opened at first says more than the failure of one trial call.
    former = status.reason if status.cause in (VerdictKind.FAILURE, VerdictKind.SLOW) else None
    reason = former or verdict.reason or "trial call failed"
    return opened(again, policy, now, replace(verdict, reason=reason), dice)


def closed(status: BreakerStatus, now: datetime) -> BreakerStatus:
    """Close a breaker. A closed one stays as it is.

    It keeps `attempt`, in case the recovery does not last, and `cause`, which says how the gate
    lets runs in again.
    """
    if status.state == BreakerState.CLOSED:
        return status
    return BreakerStatus(
        name=status.name,
        changed_at=now,
        generation=status.generation + 1,
        attempt=status.attempt,
        closed_at=now,
        cause=status.cause,
        kept_closed_by=status.kept_closed_by,
        kept_closed_until=status.kept_closed_until,
    )
