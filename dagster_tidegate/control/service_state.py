"""What matters most to people about the state of a service: one word, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.holds import Hold, HoldSource, Target, TargetKind
from dagster_tidegate.pools import whole_of
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.text import plural, utc

STATUSES = ("denied", "open", "throttled", "half_open", "held", "kept_closed", "closed")
"""Those that need a look come first."""


@dataclass(frozen=True)
class ServiceState:
    """The state of a service.

    Attributes:
        status: One of `STATUSES`: the state of its breaker, or what makes more difference to
            people than that.
        since: When that began (UTC); None if its breaker has never made a call.
        reason: Why, for people; empty if there is nothing to say.
        next_at: When the next thing happens by itself (UTC): a probe, the end of a hold, or the
            beginning of a maintenance window.
        next_what: What that is: "next probe".
        held_by: The holds of people on it, or on the service that it is a part of.
    """

    status: str
    since: datetime | None
    reason: str = ""
    next_at: datetime | None = None
    next_what: str = ""
    held_by: Sequence[Hold] = ()


def service_state(situation: Situation, name: str) -> ServiceState:
    """Return the state of a service. It may have a hold and no breaker yet."""
    targets = [Target(TargetKind.SERVICE, each) for each in (name, whole_of(name))]
    held_by = [
        hold
        for hold in situation.holds
        if hold.source is not HoldSource.BREAKER and hold.target in targets
    ]
    breaker = situation.breakers.get(name)
    if breaker is not None and breaker.state is not BreakerState.CLOSED:
        return _of_open(breaker, situation.trials.get(name, 0), held_by)
    if held_by:
        ends = [hold.expires_at for hold in held_by]
        end = None if None in ends else max(each for each in ends if each)
        reason = "; ".join(f"{hold.reason} ({hold.actor})" for hold in held_by)
        return ServiceState("held", held_by[0].placed_at, reason, end, "hold ends", held_by)
    since = None if breaker is None else breaker.changed_at
    if breaker is not None and breaker.kept_closed(situation.now):
        end = breaker.kept_closed_until
        until = f" until {utc(end)}" if end else ""
        reason = f"kept closed by {breaker.kept_closed_by}{until}"
        return ServiceState("kept_closed", since, reason, end, "may trip")
    reason = ""
    if breaker is not None and breaker.would_open_at is not None:
        campaigns = plural(len(situation.would_pause(name)), "campaign")
        reason = (
            f"not enforced: would have opened at {utc(breaker.would_open_at)} ({breaker.reason}) "
            f"and paused {campaigns}"
        )
    window = next(iter(situation.windows_of(name)), None)
    if window is not None and window.is_soon(situation.now):
        return ServiceState("closed", since, reason, window.starts_at, "pauses")
    return ServiceState("closed", since, reason)


def _of_open(breaker: BreakerStatus, trials: int, held_by: Sequence[Hold]) -> ServiceState:
    since, reason = breaker.opened_at or breaker.changed_at, breaker.reason or ""
    if breaker.is_denied:
        return ServiceState("denied", since, reason, held_by=held_by)
    if breaker.is_half_open:
        reason += f"; {plural(trials, 'trial call')} in flight" if trials else ""
        return ServiceState("half_open", since, reason, held_by=held_by)
    if breaker.throttled_until is not None:
        until = breaker.throttled_until
        return ServiceState("throttled", since, reason, until, "called again", held_by)
    return ServiceState("open", since, reason, breaker.open_until, "next probe", held_by)
