"""How many records of `map` are in flight: as many as the service copes with. Pure."""

from math import exp, log

TIMES_USUAL = 4.0
"""A record that takes this many times as long as usual is slow."""
MIN_SLOW_S = 0.5
"""A record that takes less is never slow."""
MIN_RECORDS = 20
"""So many records are needed to know how long they usually take."""
MIN_ROUND = 4
SLOW_SHARE = 0.5
"""If more of a round than this is slow or fails, half as many are in flight in the next one."""
WEIGHT = 0.05
WEIGHT_OF_SLOW = 0.001  # so that a service that is slow for good becomes usual


class Pace:
    """Adapts the number of records in flight: up by one, down by half (AIMD).

    A round is as many records as may be in flight. After a healthy one there may be one more, after
    one that was slow or failed half as many, and after a record that was throttled half as many at
    once. Records that began before a change do not cause another.

    Args:
        most: How many there may be at most, and at the beginning.

    Example:
        >>> pace = Pace(8)
        >>> pace.ended(began=0.0, now=0.1, throttled=True)
        >>> pace.limit
        4
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.limit = most
        self._since = float("-inf")  # when the round began
        self._records = self._slow = self._known = 0
        self._log_mean = 0.0

    def ended(
        self, *, began: float, now: float, failed: bool = False, throttled: bool = False
    ) -> None:
        """Take note of how a record ended.

        Args:
            began: When it began, by the same clock as `now`.
            failed: Whether the service failed.
            throttled: Whether it asked for fewer calls.
        """
        slow = failed or self._is_slow(now - began)
        if began < self._since:
            return
        if throttled:
            self._change(self.limit // 2, now)
            return
        self._records += 1
        self._slow += slow
        if self._records >= max(self.limit, MIN_ROUND):
            half = self._slow > SLOW_SHARE * self._records
            self._change(self.limit // 2 if half else self.limit + 1, now)

    def _change(self, limit: int, now: float) -> None:
        if limit < self.limit:
            self._since = now
        self.limit = min(max(limit, 1), self._most)
        self._records = self._slow = 0

    def _is_slow(self, took_s: float) -> bool:
        """Whether a record took much longer than usual, which is learned from it."""
        usual_s = exp(self._log_mean) if self._known >= MIN_RECORDS else float("inf")
        slow = took_s >= max(MIN_SLOW_S, TIMES_USUAL * usual_s)
        self._known += 1
        weight = WEIGHT_OF_SLOW if slow else max(WEIGHT, 1 / self._known)
        self._log_mean += weight * (log(max(took_s, 1e-4)) - self._log_mean)
        return slow
