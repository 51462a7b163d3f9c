"""What a service says of its quotas, as the fleet knows it. Pure.

A service says how many calls were left when it answered. Those that the fleet has made since, and
those that it may still make, are taken off. The latest answer counts: it knows of the calls that
other programs make with the same key.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import NamedTuple

from dagster_tidegate.breaker.quotas import Quota

UNKNOWN_RESET_S = 60.0
"""After this time it is tried whether a quota has calls again that does not say when."""
LATE_S = 1.0
"""How much later than it says a quota may be full again: its seconds are whole ones, and clocks
differ."""
LATE_SHARE = 0.1
"""The same, at most, as a share of its window."""
MAX_RECENT = 200
MAX_FREE = 1 << 30
FEW_SHARE = 0.1
FEW = 16
"""So many calls, or this share of all, are few: processes lease them, so as not to collide."""


@dataclass(frozen=True)
class Said:
    """What the service last said of a quota.

    Times are seconds since 1970; in a `Reading`, they are seconds from now.

    Attributes:
        left: How many calls were left at `at`. Calls that began later are not counted in it.
        until: When it is full again.
        calls: How many calls there are in all; None if unknown.
        window_s: In which time; None if unknown.
        of_calls: Whether it counts calls.
        refills: Whether it comes back bit by bit until then, and not all at once.
        has_reset: Whether the service says when it is full again.
    """

    left: float
    at: float
    until: float
    calls: float | None = None
    window_s: float | None = None
    of_calls: bool = True
    refills: bool = False
    has_reset: bool = True

    def __str__(self) -> str:
        calls = "calls" if self.calls is None else f"{self.calls:g} calls"
        return f"{calls} (by its headers)"

    def replaces(self, former: "Said | None", now: float) -> bool:
        """Return whether this is a later word than another, of the same quota.

        Answers overtake each other. Within one window, calls that are left only become fewer.
        """
        if former is None or former.until <= now:
            return True
        late_s = max(2 * LATE_S, (self.window_s or 0.0) / 2)
        same_window = self.until - former.until < late_s
        if self.has_reset and not self.refills and same_window:
            return (self.left, -self.at) <= (former.left, -former.at)
        return former.at <= self.at

    def moved(self, seconds: float) -> "Said":
        """Return it as said at another time."""
        return replace(self, at=self.at + seconds, until=self.until + seconds)

    def free(self, now: float, taken: int) -> int:
        """Return how many calls are left.

        Args:
            taken: How many were made since, and may still be made.
        """
        if now >= self.until:
            return MAX_FREE
        if not self.of_calls:
            return 0 if self.left <= 0 else MAX_FREE
        return floor(self.left + self._per_s * (now - self.at)) - taken

    def free_at(self, now: float, made: int, leased: int) -> float:
        """Return when there is a call, at `now` or later."""
        if self.free(now, made + leased) >= 1:
            return now
        if self._per_s:
            return min(self.until, self.at + (made + leased + 1 - self.left) / self._per_s + 1e-3)
        return self.until

    @property
    def _per_s(self) -> float:
        """How many calls come back in a second."""
        if not self.refills or self.calls is None or self.until <= self.at:
            return 0.0
        return (self.calls - self.left) / (self.until - self.at)


class Reading(NamedTuple):
    """What an answer said of a quota, as a process reports it: clocks of processes differ."""

    name: str
    said: Said


def wait_s(quota: Quota) -> float:
    """Return how many seconds after the answer a quota is full again, at the latest."""
    if quota.reset_s is None:
        return min(quota.window_s or UNKNOWN_RESET_S, UNKNOWN_RESET_S)
    return quota.reset_s + min(LATE_S, LATE_SHARE * (quota.window_s or LATE_S / LATE_SHARE))


def readings_of(
    quotas: Sequence[Quota], *, counted_s: float, heard_s: float, refills: bool
) -> list[Reading]:
    """Return what to report of the quotas that an answer named.

    Args:
        counted_s: Calls that began later than so many seconds ago are not counted in them.
        heard_s: How many seconds ago the answer came.
        refills: Whether the quotas of this service come back bit by bit.
    """
    return [
        Reading(
            quota.name,
            Said(
                left=quota.left if quota.calls is None else min(quota.left, quota.calls),
                at=-counted_s,
                until=wait_s(quota) - heard_s,
                calls=quota.calls,
                window_s=quota.window_s,
                of_calls=quota.of_calls,
                refills=refills,
                has_reset=quota.reset_s is not None,
            ),
        )
        for quota in quotas
        if is_honest(quota) and quota.left is not None and wait_s(quota) > heard_s
    ]


def few_left(quotas: Sequence[Quota], *, times: int = 1) -> bool:
    """Return whether a quota has few calls left, or so many times a few."""
    return any(
        is_honest(quota)
        and quota.left is not None
        and quota.left <= times * max(FEW, FEW_SHARE * (quota.calls or 0))
        if quota.of_calls
        else quota.left == 0
        for quota in quotas
    )


def is_honest(quota: Quota) -> bool:
    """Return whether a quota says how many calls are left: -1, or 0 of 0, means that all are."""
    return quota.left is not None and quota.left >= 0 and (quota.calls is None or quota.calls > 0)


def with_made(
    recent: Sequence[tuple[float, int]], calls: Sequence[tuple[float, int]], since: float
) -> list[tuple[float, int]]:
    """Return when calls were made since a time, and how many, the oldest first.

    Of more than `MAX_RECENT`, the oldest count as made at one time, the latest of them.
    """
    known = sorted(each for each in (*recent, *calls) if each[0] > since)
    if (many := len(known) - MAX_RECENT) <= 0:
        return known
    oldest = known[: many + 1]
    return [(oldest[-1][0], sum(count for _, count in oldest)), *known[many + 1 :]]
