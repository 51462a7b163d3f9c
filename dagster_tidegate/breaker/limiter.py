"""The limiter of a process: takes calls from its block, and leases the next one."""

import time
from collections.abc import Callable
from threading import Lock
from typing import Protocol

from dagster_tidegate.breaker.limits import MAX_BLOCK, Grant, Request, lease_time
from dagster_tidegate.breaker.policy import ServicePolicy

MIN_PAUSE_S = 0.01
"""A process asks for calls no more often than this while there are none."""
MIN_WAIT_S = 5.0
"""A call waits for so long at least before it is refused: to pause a run takes longer."""


class _Lender(Protocol):
    """Leases blocks of calls, by the clock of the fleet; a `SharedState`."""

    @property
    def monotonic(self) -> Callable[[], float]: ...
    def lease(self, policy: ServicePolicy, request: Request) -> Grant: ...
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
        policy: The policy of the service, with at least one limit.
        lender: Leases the blocks.
    """

    def __init__(self, policy: ServicePolicy, lender: _Lender) -> None:
        self._policy = policy
        self._lender = lender
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
        patience = max(self._policy.linger_s, MIN_WAIT_S)
        while not self.take():
            with self._asking:
                if self.take():
                    return None
                refusal = None if self.pending else self.renew(patience)
            if refusal is not None:
                pause = max(self._lender.seconds_until(refusal), MIN_PAUSE_S)
                if pause > patience:
                    return refusal
            elif (pause := self._block.start - self._monotonic()) <= 0:
                continue
            time.sleep(pause)
            patience -= pause
            still()
        return None

    def settle(self, *, final: bool = False) -> None:
        """Give back what is left of a block that has expired; with `final`, of any."""
        if not self._asking.acquire(blocking=False):
            return
        try:
            block = self._block
            if block.size and (final or self._monotonic() >= block.deadline):
                self._lender.lease(self._policy, Request(0, self._close(block)))
        finally:
            self._asking.release()

    @property
    def pending(self) -> bool:
        """Whether the block begins later."""
        return bool(self._block.free) and self._monotonic() < self._block.start

    def renew(self, patience_s: float = 0.0) -> Grant | None:
        """Give back the block, and lease the next one. By one thread at a time.

        Args:
            patience_s: How many seconds later it may begin.

        Returns:
            None, or why there is none.
        """
        now = self._monotonic()
        if self._refusal is not None and now < self._ask_at:
            return self._refusal
        block = self._block
        ages = self._close(block)
        if block.size:
            unused = block.size - len(ages)
            soon = now < block.deadline - lease_time(self._policy.limits) / 2
            if unused:
                self._wanted = max(1, len(ages))
            elif soon:
                self._wanted = min(2 * self._wanted, MAX_BLOCK)
        grant = self._lender.lease(self._policy, Request(self._wanted, ages, patience_s))
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
