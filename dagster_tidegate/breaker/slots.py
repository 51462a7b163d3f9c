"""The slots of a process: how many of its calls to a service may be in flight at once."""

from collections.abc import Callable, Sequence
from threading import Condition, Lock
from typing import Protocol

from dagster_tidegate.breaker.concurrency import RENEW_S, SlotGrant, SlotRequest
from dagster_tidegate.breaker.policy import ServicePolicy

MIN_PAUSE_S, MAX_PAUSE_S = 0.01, 0.25
"""A process that waits for a slot asks again so often: rarer, the longer it waits."""


class _SlotLender(Protocol):
    """Leases slots; a `SharedState`."""

    @property
    def monotonic(self) -> Callable[[], float]: ...
    def lease_slots(self, policy: ServicePolicy, request: SlotRequest) -> SlotGrant: ...


class Slots:
    """Lets no more calls of the fleet be in flight than a service permits.

    A call needs no query while its process has a free slot.

    Args:
        policy: The policy of the service, with a `max_concurrency`.
        lender: Leases the slots.
    """

    def __init__(self, policy: ServicePolicy, lender: _SlotLender) -> None:
        self._policy = policy
        self._lender = lender
        self._monotonic = lender.monotonic
        self._asking, self._lock = Lock(), Condition()
        self._slots = self._in_use = self._peak = self._waiting = 0
        self._turn_ends = self._renewed_at = self._ask_at = float("-inf")
        self._pause_s = MIN_PAUSE_S

    def take(self) -> bool:
        """Take a slot, if this process has a free one; no I/O."""
        with self._lock:
            if self._in_use >= self._slots or self._monotonic() >= self._turn_ends:
                return False
            self._in_use += 1
            self._peak = max(self._peak, self._in_use)
            return True

    def put_back(self) -> None:
        """Return a slot whose call has ended."""
        with self._lock:
            self._in_use -= 1
            self._lock.notify()

    def acquire(self, still: Callable[[], object]) -> None:
        """Take a slot; wait for one, however long the calls of others take.

        Args:
            still: Called after each wait; raises if the call must not be made any more.
        """
        with self._lock:
            self._waiting += 1
        try:
            while not self.take():
                with self._asking:
                    if self._monotonic() >= min(self._ask_at, self._turn_ends):
                        self._renew(wanted=True)
                if self.take():
                    return
                with self._lock:
                    self._lock.wait(self._pause_s)
                still()
        finally:
            with self._lock:
                self._waiting -= 1

    def settle(self, *, final: bool = False) -> None:
        """Give back what is not in use once the turn is over; with `final`, everything."""
        if not self._asking.acquire(blocking=False):
            return
        try:
            now = self._monotonic()
            if final and self._slots:
                self._lender.lease_slots(self._policy, SlotRequest(0))
                self._slots = 0
            elif self._slots and now >= self._turn_ends:
                idle = self._in_use < self._slots
                if idle or now >= self._renewed_at + RENEW_S:
                    self._renew(wanted=False)
        finally:
            self._asking.release()

    def _renew(self, *, wanted: bool) -> None:
        """Ask for as many slots as there are calls that wait, or were in flight before."""
        with self._lock:
            self._turn_ends = float("-inf")  # no other thread takes one meanwhile
            in_use = self._in_use
            more = max(self._waiting, self._peak - in_use) if wanted else 0
            self._peak = in_use
        asked_at = self._monotonic()
        grant = self._lender.lease_slots(self._policy, SlotRequest(in_use, more))
        with self._lock:
            self._slots = grant.slots
            self._renewed_at = asked_at
            if not wanted:
                return
            self._turn_ends = asked_at + grant.turn_s
            if grant.slots > in_use:
                self._pause_s, self._ask_at = MIN_PAUSE_S, float("-inf")
            else:
                self._pause_s = min(1.5 * self._pause_s, MAX_PAUSE_S)
                self._ask_at = asked_at + self._pause_s
            self._lock.notify_all()


class HeldSlots:
    """The slots of a call that is in flight. They are returned once, at its end.

    A call may be abandoned before it ends: a coroutine that nobody awaits.
    """

    __slots__ = ("_slots",)

    def __init__(self, slots: Sequence[Slots] = ()) -> None:
        self._slots = list(slots)

    def add(self, slots: Slots) -> None:
        """Note a slot that was taken."""
        self._slots.append(slots)

    def release(self) -> None:
        """Return them."""
        while self._slots:
            self._slots.pop().put_back()

    def __del__(self) -> None:
        self.release()
