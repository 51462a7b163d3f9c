"""The limiter of a process: takes calls from its block, and leases the next one."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from threading import Lock
from typing import Protocol

from dagster_tidegate.breaker.limits import MAX_BLOCK, CallRequest, Grant, is_about, lease_time
from dagster_tidegate.breaker.policy import ServicePolicy, wait_in_place_s
from dagster_tidegate.breaker.quotas import Quota
from dagster_tidegate.breaker.readings import Reading, few_left, readings_of

MIN_PAUSE_S = 0.01
"""A process asks for calls no more often than this while there are none."""
SOON_S = 1.0
"""What is used up so soon, as fast as it becomes less, is little: processes lease it."""


class _CallLender(Protocol):
    """Leases blocks of calls, by the clock of the fleet; a `SharedState`."""

    @property
    def campaign(self) -> str: ...
    @property
    def monotonic(self) -> Callable[[], float]: ...
    def lease(self, policy: ServicePolicy, request: CallRequest) -> Grant: ...
    def seconds_until(self, grant: Grant) -> float: ...


class _Block:
    """Calls that this process may make from `start` to `deadline`. Threads share it, no lock."""

    __slots__ = ("deadline", "free", "size", "start", "used")

    def __init__(self, size: int, start: float, deadline: float) -> None:
        self.size = size
        self.start = start
        self.free = [None] * size
        self.used: list[float] = []
        self.deadline = deadline


class Limiter:
    """Lets this process make no more calls to a service than its limits permit.

    A call that is permitted costs no query while a block lasts.

    Args:
        policy: The policy of the service.
        lender: Leases the blocks.
        refills: Whether the quotas that the service names come back bit by bit.

    Attributes:
        few_left: Whether the service says that few calls are left.
    """

    def __init__(
        self, policy: ServicePolicy, lender: _CallLender, *, refills: bool = False
    ) -> None:
        self._policy = policy
        self._lender = lender
        self._refills = refills
        self.few_left = False
        self._lefts: dict[str, tuple[float, float]] = {}  # within the last second, and when
        # What the last answer said, up to when it counts calls, and when it came.
        self._heard: tuple[Sequence[Quota], float, float] | None = None
        self._monotonic = lender.monotonic
        self._asking = Lock()
        self._block = _Block(0, 0.0, float("-inf"))
        self._wanted = 1
        self._refusal: Grant | None = None
        self._ask_at = float("-inf")

    def take(self) -> bool:
        """Take a call from the block, if it has one; no I/O."""
        block = self._block
        now = self._monotonic()
        if not block.start <= now < block.deadline:
            return False
        try:
            block.free.pop()
        except IndexError:
            return False
        block.used.append(now)
        return True

    def put_back(self) -> None:
        """Return a call that was taken and is not made."""
        block = self._block
        try:
            block.used.pop()
        except IndexError:
            return  # it belongs to an earlier block, which has counted it
        block.free.append(None)

    def acquire(self, still: Callable[[], object]) -> Grant | None:
        """Take a call; wait for one if that takes no longer than the policy permits.

        Args:
            still: Called after each wait; raises if the call must not be made any more.

        Returns:
            None, or why there is none.
        """
        patience = wait_in_place_s(self._policy)
        while not self.take():
            with self._asking:
                if self.take():
                    return None
                refusal = None if self.wait_s > 0 else self.renew(patience)
            if refusal is not None:
                pause = max(self._lender.seconds_until(refusal), MIN_PAUSE_S)
                if pause > patience:
                    return refusal
            elif (pause := self.wait_s) <= 0:
                continue
            time.sleep(pause)
            patience -= pause
            still()
        return None

    def heed(self, quotas: Sequence[Quota], counted_at: float, now: datetime) -> Grant | None:
        """Take note of what an answer says of the calls that are left; no I/O.

        Args:
            counted_at: Calls that began later are not counted in it, by the monotonic clock.

        Returns:
            Until when there are none, if that is longer than a call waits.
        """
        heard_at = self._monotonic()
        self._heard = (quotas, counted_at, heard_at)
        self.few_left = few_left(quotas, times=2 if self.few_left else 1) or self._goes_fast(
            quotas, heard_at
        )
        block = self._block
        if self.few_left and min(_left(quotas), default=float("inf")) < len(block.free):
            block.deadline = min(block.deadline, heard_at)  # others used up what it counted on
        patience_s = wait_in_place_s(self._policy)
        for _, reported in self._readings():
            if reported.left > 0 or reported.until <= patience_s or self._refills:
                continue
            said = reported.moved(now.timestamp())
            if not any(is_about(said, rate) for rate in self._policy.limits):
                until = now + timedelta(seconds=reported.until)
                return Grant(0, retry_at=until, limit=str(said))
        return None

    def _goes_fast(self, quotas: Sequence[Quota], now: float) -> bool:
        """Return whether what is left is used up within a second, as fast as it becomes less."""
        fast = False
        for quota in quotas:
            if quota.left is None or not quota.of_calls:
                continue
            left, at = self._lefts.get(quota.name, (quota.left, now))
            if not quota.left <= left or now >= at + SOON_S:
                self._lefts[quota.name] = (quota.left, now)
                continue
            self._lefts.setdefault(quota.name, (quota.left, now))
            fast = fast or quota.left * (now - at) < (left - quota.left) * SOON_S
        return fast

    def _readings(self) -> list[Reading]:
        if self._heard is None:
            return []
        (quotas, counted_at, heard_at), now = self._heard, self._monotonic()
        return readings_of(
            quotas, counted_s=now - counted_at, heard_s=now - heard_at, refills=self._refills
        )

    def settle(self, *, final: bool = False) -> None:
        """Give back what is left of a block that has expired; with `final`, of any."""
        if not self._asking.acquire(blocking=False):
            return
        try:
            block = self._block
            if block.size and (final or self._monotonic() >= block.deadline):
                campaign = self._lender.campaign
                self._lender.lease(
                    self._policy, CallRequest(0, self._close(block), campaign=campaign)
                )
        finally:
            self._asking.release()

    @property
    def wait_s(self) -> float:
        """In how many seconds the block begins; 0 if it has begun, or there is none."""
        block = self._block
        return max(0.0, block.start - self._monotonic()) if block.free else 0.0

    def renew(self, patience_s: float = 0.0) -> Grant | None:
        """Give back the block, and lease the next one. By one thread at a time.

        Args:
            patience_s: How many seconds later it may begin.

        Returns:
            None, or why there is none.
        """
        now = self._monotonic()
        refusal = self._refusal
        # Where it is another one's turn, a thread that can't wait for that asks itself.
        if (
            refusal is not None
            and now < self._ask_at
            and (refusal.limit or self._lender.seconds_until(refusal) <= patience_s)
        ):
            return refusal
        block = self._block
        ages = self._close(block)
        if block.size:
            unused = block.size - len(ages)
            soon = now < block.deadline - lease_time(self._policy.limits) / 2
            if unused:
                self._wanted = max(1, len(ages))
            elif soon:
                self._wanted = min(2 * self._wanted, MAX_BLOCK)
        readings, self._heard = self._readings(), None
        request = CallRequest(self._wanted, ages, patience_s, readings, self._lender.campaign)
        grant = self._lender.lease(self._policy, request)
        if not grant.calls:
            self._refusal = grant
            self._ask_at = self._monotonic() + MIN_PAUSE_S
            return grant
        self._refusal = None
        # Counted from before the request: by the clock of the store, the block expires later.
        # And begins at the latest by then: counted from after the answer.
        start = now if grant.starts_s == 0 else self._monotonic() + grant.starts_s
        self._block = _Block(grant.calls, start, now + grant.lease_s)
        return None

    def _close(self, block: _Block) -> list[float]:
        """Take all that is left of a block; return how long ago each of its calls was made."""
        unused = 0
        while True:
            try:
                block.free.pop()
            except IndexError:
                break
            unused += 1
        self._block = _Block(0, 0.0, float("-inf"))
        now = self._monotonic()
        used = list(block.used)
        # A thread that has taken a call and not noted it yet makes it now.
        used += [now] * (block.size - unused - len(used))
        return [now - at for at in used[: block.size - unused]]


def _left(quotas: Sequence[Quota]) -> list[float]:
    return [quota.left for quota in quotas if quota.of_calls and quota.left is not None]
