"""How many calls to a service may be in flight at once, shared by the fleet. Pure.

A process leases slots, several at once, and keeps them from one call to the next. When its turn is
over it asks anew, and gives up what others wait for: each process gets its share, and where there
are more processes than slots, each its turn. Slots of a process that died expire.
"""

from dataclasses import dataclass, field

LEASE_S = 30.0
"""After this time without a word the slots of a process come back."""
RENEW_S = 10.0
TURN_S = 5.0
"""So long a process begins calls in its slots before it asks anew."""
TURN_WHILE_OTHERS_WAIT_S = 1.0
WAITS_S = 2.0
"""A process that has not asked again for so long waits no more."""


@dataclass
class SlotState:
    """Who has how many slots of a service. Times are seconds since 1970.

    Attributes:
        limit: How many slots there are, as the process says that asked last; None: no limit.
        asked_at: When that was.
        held: For each process its slots, and when they expire.
        waiting: For each process that wants more since when it waits, and when it last asked.
    """

    limit: int | None = None
    asked_at: float = 0.0
    held: dict[str, tuple[int, float]] = field(default_factory=dict)
    waiting: dict[str, tuple[float, float]] = field(default_factory=dict)

    def taken(self, now: float) -> int:
        """Return how many slots processes have."""
        return sum(slots for slots, expires_at in self.held.values() if now < expires_at)


@dataclass(frozen=True)
class SlotRequest:
    """What a process asks for.

    Attributes:
        in_use: How many of its calls are in flight.
        wanted: How many more it would like to begin; 0: it gives back what is not in use.
    """

    in_use: int
    wanted: int = 0


@dataclass(frozen=True)
class SlotGrant:
    """The answer: how many calls may be in flight, and for how long it may begin any."""

    slots: int
    turn_s: float


def lease_slots(
    state: SlotState, limit: int, now: float, worker: str, request: SlotRequest
) -> SlotGrant:
    """Renew the slots of a process, and lease it more if others leave any. Changes the state."""
    state.limit, state.asked_at = limit, now
    # After the clock was set back, nothing expires later than it would now.
    state.held = {
        name: (slots, min(expires_at, now + LEASE_S))
        for name, (slots, expires_at) in state.held.items()
        if now < expires_at and name != worker
    }
    waiting = {
        name: (min(since, now), min(asked_at, now))
        for name, (since, asked_at) in state.waiting.items()
        if now < asked_at + WAITS_S
    }
    since = waiting.pop(worker, (now, now))[0]
    slots = request.in_use
    if request.wanted:
        # Those who have none, and have waited for longer, come first.
        ahead = sum(
            other <= since for name, (other, _) in waiting.items() if name not in state.held
        )
        free = limit - state.taken(now) - ahead
        share = max(1, limit // len({worker, *state.held, *waiting}))
        most = request.in_use + request.wanted
        slots = max(request.in_use, min(most, free, share if waiting else most))
        if slots < most:
            waiting[worker] = (now if slots else since, now)
    state.waiting = waiting
    if slots:
        state.held[worker] = (slots, now + LEASE_S)
    others_wait = bool(waiting.keys() - {worker})
    return SlotGrant(slots, TURN_WHILE_OTHERS_WAIT_S if others_wait else TURN_S)
