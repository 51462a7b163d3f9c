"""Which record of a loop is tried next, and when. Pure: the time is an argument."""

import heapq
from collections import deque
from itertools import count
from typing import Generic, TypeVar

R = TypeVar("R")

MAX_FAILED_ASIDE = 100
MAX_ASIDE = 10_000


class Schedule(Generic[R]):
    """The records of a loop that are left to try, of those that were read.

    A record that failed is set aside until it is due. After a success, due records come first;
    after a failure, records that were not tried yet, so that a dead service is noticed by the
    failures of different records and one bad record is not repeated in a row. Times are seconds of
    any one clock.

    Attributes:
        is_open: Whether the input may have more records.
    """

    def __init__(self) -> None:
        self.is_open = True
        self._untried: deque[R] = deque()
        self._aside: list[tuple[float, int, bool, R]] = []
        self._failed_aside = 0
        self._order = count()
        self._prefers_aside = False
        self._not_before = float("-inf")

    def __len__(self) -> int:
        return len(self._untried) + len(self._aside)

    @property
    def wants_input(self) -> bool:
        """Whether to read more records before any other is tried."""
        return self.is_open and not self._untried and not self._is_full and not self._prefers_aside

    @property
    def _is_full(self) -> bool:
        return self._failed_aside >= MAX_FAILED_ASIDE or len(self._aside) >= MAX_ASIDE

    def add(self, record: R) -> None:
        """Add a record that was not tried yet."""
        self._untried.append(record)

    def set_aside(self, record: R, due: float, *, failed: bool = True) -> None:
        """Add a record that is not tried again before a time.

        Args:
            failed: Whether it failed; False: the service has no answer for it yet.
        """
        heapq.heappush(self._aside, (due, next(self._order), failed, record))
        self._failed_aside += failed

    def put_back(self, record: R) -> None:
        """Add a record whose call was refused: it comes first, once anything may be tried."""
        self._untried.appendleft(record)

    def pause(self, until: float) -> None:
        """Let nothing be tried before a time."""
        self._not_before = max(self._not_before, until)

    def end_pause(self) -> None:
        """Let records be tried again."""
        self._not_before = float("-inf")

    def note(self, *, succeeded: bool) -> None:
        """Note how a try ended that reached the service."""
        self._prefers_aside = succeeded

    def next(self, now: float) -> R | None:
        """Remove and return the record to try now, or None if there is none yet."""
        if now < self._not_before:
            return None
        is_due = bool(self._aside) and self._aside[0][0] <= now
        if not is_due:
            self._prefers_aside = False
        elif self._prefers_aside or not (self._untried or self.wants_input):
            _due, _order, failed, record = heapq.heappop(self._aside)
            self._failed_aside -= failed
            return record
        return self._untried.popleft() if self._untried else None

    def next_at(self) -> float:
        """Return when a record can be tried; infinity if none is left."""
        if self._untried:
            return self._not_before
        return max(self._aside[0][0], self._not_before) if self._aside else float("inf")
