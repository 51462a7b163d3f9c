"""The state machine of a breaker. Pure: the time, the dice and what was seen are arguments.

            trip                    due, a trial call is let in
  closed ---------->  open  ------------------------------------->  half open
     ^                 ^                                             |    |
     |                 +------------- a trial call failed -----------+    |
     +------------------- enough trial calls succeeded -------------------+

A function takes a `BreakerStatus` and returns the next one, or the same if nothing changes. Each
change of the state has the next generation; whatever began in an older one changes nothing.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.verdicts import Outcome
from dagster_tidegate.statuses import BreakerState

FLUSH_S = 1.0
"""Workers tell the fleet of their successes this often, in seconds; of a failure at once."""


@dataclass(frozen=True, slots=True)
class BreakerStatus:
    """The breaker of a service at a moment. Times are UTC.

    Attributes:
        name: Name of the service.
        state: Closed, open or half open.
        generation: Counts the changes of the state.
        changed_at: When the state changed last.
        opened_at: Since when it is not closed, through half open; None while closed.
        open_until: Not probed before; None while closed.
        attempt: Probes that failed since it opened.
        trial_successes: Trial calls that succeeded in this half open.
        reason: Why it opened, for people; None while closed.
        closed_at: When it last recovered, or None.
        kept_closed_by: The operator who wants it never to trip, or None.
        kept_closed_until: When that ends by itself, or None.
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

    def kept_closed(self, now: datetime) -> bool:
        """Return whether an operator keeps it closed at `now`."""
        until = self.kept_closed_until
        return self.kept_closed_by is not None and (until is None or now < until)

    def due(self, now: datetime) -> bool:
        """Return whether it is open and may be probed at `now`."""
        return self.state == BreakerState.OPEN and (
            self.open_until is None or now >= self.open_until
        )


@dataclass(frozen=True, slots=True)
class WindowStats:
    """What the fleet saw of a service within the window, in the present generation.

    Attributes:
        ok: Calls that succeeded, the slow ones included.
        slow: Calls that succeeded and took too long.
        failed: Calls that failed.
        failed_in_row: Failures since the last success that is known of.
        row_since: The first of these.
        row_workers: Workers that had these.
        silent_ok_per_s: Successes a second, lately, of the workers that have told nothing since
            `row_since`: they may have had some that nobody knows of yet.
        workers: Workers that made calls.
        failing_workers: Workers that had failures or slow calls.
        last_ok_at: The last success that is known of.
        retry_at: The service asked not to be called before.
    """

    ok: int = 0
    slow: int = 0
    failed: int = 0
    failed_in_row: int = 0
    row_since: datetime | None = None
    row_workers: int = 0
    silent_ok_per_s: float = 0.0
    workers: int = 0
    failing_workers: int = 0
    last_ok_at: datetime | None = None
    retry_at: datetime | None = None


def why_trip(
    circuit: BreakerStatus, policy: ServicePolicy, tally: WindowStats, now: datetime, label: str
) -> str | None:
    """Return why the breaker should trip, for people, or None if it should not.

    The consecutive count alone would mistake a busy, healthy fleet for a dead service: failures
    are told at once, successes up to `FLUSH_S` later. So either the failures in a row are as many
    as the successes that silent workers may still be keeping to themselves, or several workers
    have seen nothing but failures, three each on average. The rates count those hidden successes
    too, and say nothing just after a change of state, when nobody has told of any yet.

    Args:
        circuit: The breaker.
        policy: The service's policy.
        tally: What the fleet saw.
        now: The time, UTC.
        label: A short name of the last failure: "503".
    """
    if tally.failing_workers < min(policy.min_workers, tally.workers):
        return None
    if policy.consecutive_failures is not None and tally.row_since is not None:
        row_age_s = max(0.0, (now - tally.row_since).total_seconds())
        hidden = tally.silent_ok_per_s * min(row_age_s, FLUSH_S)
        agreed = tally.row_workers >= 2 and tally.failed_in_row >= 3 * tally.row_workers
        if tally.failed_in_row >= policy.consecutive_failures and (
            agreed or tally.failed_in_row >= hidden
        ):
            return f"{label} x{tally.failed_in_row}"
    window = f"in {policy.window_s:g} s"
    if policy.window_failures is not None and tally.failed >= policy.window_failures:
        return f"{label}, {tally.failed} failures {window}"
    calls = tally.ok + tally.failed
    young = (now - circuit.changed_at).total_seconds() < 2 * FLUSH_S
    if calls < policy.min_calls or (young and tally.workers > 1):
        return None
    all_calls = calls + tally.silent_ok_per_s * FLUSH_S
    if policy.failure_rate is not None and tally.failed >= policy.failure_rate * all_calls:
        return f"{label}, {tally.failed} of {calls} calls failed {window}"
    if policy.slow_call_rate is not None and tally.slow >= policy.slow_call_rate * all_calls:
        return f"{tally.slow} of {calls} calls took {policy.slow_call_s:g} s or more {window}"
    return None


def reset_timeout_s(policy: ServicePolicy, attempt: int, dice: float) -> float:
    """Return how long it stays open after `attempt` failed probes, in seconds.

    Args:
        policy: The service's policy.
        attempt: Probes that failed since it opened.
        dice: A random number from 0 to 1, for the jitter.
    """
    # Beyond 64 doublings every cap is reached; the bound keeps the power from overflowing.
    grown = policy.reset_timeout_s * policy.backoff_factor ** min(attempt, 64)
    return min(grown, policy.reset_timeout_cap_s) * (1 + policy.jitter * dice)


def after_calls(
    circuit: BreakerStatus,
    policy: ServicePolicy,
    tally: WindowStats,
    now: datetime,
    label: str,
    dice: float,
) -> BreakerStatus:
    """Trip a closed breaker if what the fleet saw says so."""
    if circuit.state != BreakerState.CLOSED or circuit.kept_closed(now):
        return circuit
    reason = why_trip(circuit, policy, tally, now, label)
    if reason is None:
        return circuit
    return opened(circuit, policy, now, reason, dice, tally.retry_at)


def opened(
    circuit: BreakerStatus,
    policy: ServicePolicy,
    now: datetime,
    reason: str,
    dice: float,
    retry_at: datetime | None = None,
) -> BreakerStatus:
    """Open a breaker, by its own decision or by hand. An open one begins its timeout anew."""
    until = now + timedelta(seconds=reset_timeout_s(policy, circuit.attempt, dice))
    return replace(
        circuit,
        state=BreakerState.OPEN,
        generation=circuit.generation + 1,
        changed_at=now,
        opened_at=circuit.opened_at or now,
        open_until=until if retry_at is None else max(until, retry_at),
        trial_successes=0,
        reason=circuit.reason or reason,
        kept_closed_by=None,
        kept_closed_until=None,
    )


def half_opened(circuit: BreakerStatus, now: datetime) -> BreakerStatus:
    """Let trial calls in, whether due or not. A half open one stays as it is."""
    if circuit.state == BreakerState.HALF_OPEN:
        return circuit
    return replace(
        circuit,
        state=BreakerState.HALF_OPEN,
        generation=circuit.generation + 1,
        changed_at=now,
        opened_at=circuit.opened_at or now,
        trial_successes=0,
        reason=circuit.reason or "on trial",
    )


def after_trial(
    circuit: BreakerStatus,
    policy: ServicePolicy,
    outcome: Outcome,
    now: datetime,
    dice: float,
    retry_at: datetime | None = None,
) -> BreakerStatus:
    """Take the result of a trial call: close, open again for longer, or wait for more."""
    if circuit.state != BreakerState.HALF_OPEN or outcome == Outcome.IGNORED:
        return circuit
    slow_is_bad = policy.slow_call_rate is not None
    if outcome == Outcome.FAILURE or (outcome == Outcome.SLOW and slow_is_bad):
        again = replace(circuit, attempt=circuit.attempt + 1)
        return opened(again, policy, now, circuit.reason or "trial call failed", dice, retry_at)
    counted = replace(circuit, trial_successes=circuit.trial_successes + 1)
    return closed(counted, now) if counted.trial_successes >= policy.success_threshold else counted


def closed(circuit: BreakerStatus, now: datetime) -> BreakerStatus:
    """Close a breaker, by its own decision or by hand. A closed one stays as it is."""
    if circuit.state == BreakerState.CLOSED:
        return circuit
    return BreakerStatus(
        name=circuit.name,
        changed_at=now,
        generation=circuit.generation + 1,
        closed_at=now,
        kept_closed_by=circuit.kept_closed_by,
        kept_closed_until=circuit.kept_closed_until,
    )
