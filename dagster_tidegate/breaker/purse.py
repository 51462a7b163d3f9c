"""The purse of a process: pays for calls out of what it is allowed, and asks for more."""

import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from threading import Lock, RLock
from typing import Protocol

from dagster_tidegate.breaker.budget import LEASE_S, Allowance, SpendRequest, Spent
from dagster_tidegate.breaker.limits import Grant
from dagster_tidegate.breaker.policy import ServicePolicy

PATIENCE_S = LEASE_S + 2.0
"""How long a call waits for what other processes do not spend, before it is refused."""
MIN_PAUSE_S, MAX_PAUSE_S = 0.05, 1.0


class _Treasurer(Protocol):
    """Knows what the fleet has spent; a `SharedState`."""

    campaign: str

    @property
    def monotonic(self) -> Callable[[], float]: ...
    def now(self) -> datetime: ...
    def spend(self, policy: ServicePolicy, request: SpendRequest) -> Allowance: ...


class Purse:
    """Pays for the calls of this process to a service with a budget. No I/O while it has enough.

    Args:
        policy: The policy of the service, with a budget.
    """

    def __init__(self, policy: ServicePolicy, treasurer: _Treasurer) -> None:
        self._policy = policy
        self._treasurer = treasurer
        self._monotonic = treasurer.monotonic
        self._asking = Lock()
        # An abandoned generator ends its call wherever it is collected: here, too.
        self._lock = RLock()
        self._free = 0
        self._deadline = float("-inf")
        self._spent: Counter[Spent] = Counter()  # not reported yet
        self._used = 0  # since the last answer
        self._period: float | None = None
        self._since = float("-inf")  # when this process learned of the period
        self._known = (0.0, 0)

    def take(self, cost: int) -> bool:
        """Pay a cost, if there is enough; no I/O. Where the cost is 0, there must be something."""
        with self._lock:
            if self._free < max(cost, 1) or self._monotonic() >= self._deadline:
                return False
            self.spend(cost)
        return True

    def put_back(self, cost: int, started: float = float("inf")) -> None:
        """Return the cost of a call that cost nothing.

        Args:
            started: When it was paid; what was paid in an earlier period is lost.
        """
        with self._lock:
            if started >= self._since:
                self.spend(-cost)

    def spend(self, cost: int) -> None:
        """Count what was spent already, whether there is enough or not."""
        with self._lock:
            self._free -= cost
            self._used += cost
            self._spent[Spent(self._period, self._treasurer.campaign)] += cost

    def acquire(self, cost: int, still: Callable[[], object]) -> Grant | None:
        """Pay a cost; wait a little for what other processes do not spend.

        Args:
            still: Called after each wait; raises if the call must not be made any more.

        Returns:
            None, or why the call can't be paid.
        """
        patience = PATIENCE_S
        while not self.take(cost):
            with self._asking:
                if self.take(cost):
                    return None
                answer = self._report(max(cost, 1))
            if answer.retry_at is None:
                continue
            if answer.used_up or patience <= 0:
                budget = self._policy.budget
                return Grant(0, retry_at=answer.retry_at, limit=str(budget), kind="budget")
            wait_s = (answer.retry_at - self._treasurer.now()).total_seconds()
            pause = min(max(wait_s, MIN_PAUSE_S), MAX_PAUSE_S)
            time.sleep(pause)
            patience -= pause
            still()
        return None

    def settle(self, *, final: bool = False) -> None:
        """Report what was spent once the time for it has come; with `final`, now."""
        if not self._asking.acquire(blocking=final):
            return
        try:
            with self._lock:
                owes = self._deadline > float("-inf") or any(v > 0 for v in self._spent.values())
                due = owes and (final or self._monotonic() >= self._deadline)
            if due:
                self._report(0)
        finally:
            self._asking.release()

    def _report(self, needed: int) -> Allowance:
        """Report what was spent, and ask for as much as is used up in a while. One at a time."""
        with self._lock:
            now = self._monotonic()
            soon = now < self._deadline - LEASE_S / 2
            wanted = 2 * self._used if soon else self._used
            # What came back is kept until as much was spent: what is written never shrinks.
            spent = {what: amount for what, amount in self._spent.items() if amount > 0}
            self._free, self._used, self._deadline = 0, 0, float("-inf")
        answer = self._treasurer.spend(
            self._policy, SpendRequest(spent, needed, max(wanted, needed), self._known)
        )
        with self._lock:
            if answer.kept:
                self._spent.subtract(spent)
                self._known = (answer.period, answer.total)
            is_new = answer.period != self._period
            if is_new:
                self._period, self._since = answer.period, now
            self._spent = Counter(
                {what: v for what, v in self._spent.items() if (v > 0 if is_new else v)}
            )
            if answer.amount:
                self._free += answer.amount
                self._deadline = now + answer.lease_s
        return answer


class Fare:
    """What each call to a service, or to one of its parts, pays into a purse: like a `Limiter`.

    Args:
        cost: What is paid before each call.
        free: Whether calls pass although there is not enough.
    """

    def __init__(self, purse: Purse, cost: int, free: Callable[[], bool]) -> None:
        self._purse, self._cost, self._free = purse, cost, free

    def take(self) -> bool:
        """Pay for a call, if that needs no I/O."""
        return self._purse.take(self._cost)

    def put_back(self, started: float = float("inf")) -> None:
        """Return what was paid for a call that cost nothing; see `Purse.put_back`."""
        self._purse.put_back(self._cost, started)

    def acquire(self, still: Callable[[], object]) -> Grant | None:
        """Pay for a call; return None, or why it can't be paid."""
        if self._free():
            self._purse.spend(self._cost)
            return None
        return self._purse.acquire(self._cost, still)
