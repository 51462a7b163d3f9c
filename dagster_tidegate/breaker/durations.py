"""How long the calls of a process usually take, so that a brownout is noticed."""

import math
from collections import deque

TIMES_USUAL = 20.0
"""A call that takes this many times as long as usual is slow."""
MIN_SLOW_S = 2.0
"""A call that takes less is never slow, unless the policy says so."""
MIN_CALLS = 20
"""So many calls are needed to know how long they usually take."""
EACH_OF = 64
RECENT = 256
"""Of so many of the latest calls that were added, the 95th percentile is known."""
WEIGHT = 0.05
WEIGHT_OF_SLOW = 0.01  # so that a service that is slow for good becomes usual


class Durations:
    """The usual duration of a call: an exponentially weighted geometric mean.

    Approximate where threads add at the same time; that is cheaper than a lock.

    Args:
        fixed_s: From when on a call is slow, in seconds; None: by the usual duration.
        enabled: False: no call is slow.

    Attributes:
        limit_s: A call that takes this long or longer is slow, in seconds.
        sampling: A call is to be added if its number has none of these bits: each of the first
            ones, then every 16th, which is cheaper.

    Example:
        >>> durations = Durations(None)
        >>> for _ in range(20):
        ...     durations.add(0.5)
        >>> round(durations.limit_s, 3)
        10.0
    """

    __slots__ = ("_calls", "_is_learning", "_log_mean", "_recent", "limit_s", "sampling")

    def __init__(self, fixed_s: float | None, *, enabled: bool = True) -> None:
        self.limit_s = math.inf if fixed_s is None or not enabled else fixed_s
        self._is_learning = enabled and fixed_s is None
        self.sampling = 0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._calls = 0
        self._log_mean = 0.0

    def add(self, took_s: float) -> None:
        """Add the duration of a call that succeeded."""
        self._recent.append(took_s)
        self._calls += 1
        if self._calls == EACH_OF:
            self.sampling = 15
        if not self._is_learning:
            return
        weight = WEIGHT_OF_SLOW if took_s >= self.limit_s else max(WEIGHT, 1 / self._calls)
        self._log_mean += weight * (math.log(max(took_s, 1e-4)) - self._log_mean)
        if self._calls >= MIN_CALLS:
            self.limit_s = max(MIN_SLOW_S, TIMES_USUAL * math.exp(self._log_mean))

    @property
    def p95_s(self) -> float | None:
        """The 95th percentile of the latest calls, in seconds; None without any."""
        recent = sorted(self._recent)
        return recent[math.ceil(0.95 * len(recent)) - 1] if recent else None
