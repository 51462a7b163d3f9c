"""What a simulated service received, so that a test can verify the far end."""

from collections import Counter, OrderedDict, deque
from datetime import datetime
from typing import Any

from demo.sandbox.faults import Episode, Fault, Mode

MAX_KEYS = 100_000
MAX_CALLS = 50_000
MAX_EPISODES = 200


class KeyCount:
    """Counters of one idempotency key.

    Attributes:
        arrivals: Calls, failed ones included.
        effects: Calls that took effect; at most 1.
        repeats: Calls that the service deduplicated by the key.
    """

    __slots__ = ("arrivals", "effects", "repeats")

    def __init__(self) -> None:
        self.arrivals = self.effects = self.repeats = 0

    def as_json(self) -> dict[str, int]:
        """Return the counters."""
        return {"arrivals": self.arrivals, "effects": self.effects, "repeats": self.repeats}


class CallLog:
    """Counters and faults of one service. The number of keys and subjects kept is bounded."""

    def __init__(self) -> None:
        self.episodes: deque[Episode] = deque(maxlen=MAX_EPISODES)
        self.reset()

    def reset(self) -> None:
        """Reset the counters; an active fault stays."""
        self.calls = self.health_calls = self.calls_during_fault = self.failures_served = 0
        self.effects = self.keys_repeated = self.subjects_repeated = 0
        self.without_key = self.forgotten = self.over_limit = 0
        self.by_status: Counter[int] = Counter()
        self.first_call_at: datetime | None = None
        self.last_call_at: datetime | None = None
        self.keys: OrderedDict[str, KeyCount] = OrderedDict()
        self.subjects: OrderedDict[str, int] = OrderedDict()

    def active_episode(self, now: datetime) -> Episode | None:
        """Return the fault that is active at `now`, or None."""
        if self.episodes and self.episodes[-1].is_active(now):
            return self.episodes[-1]
        return None

    def place(self, now: datetime, fault: Fault) -> Episode:
        """Start a fault; it replaces the active one."""
        self.heal(now)
        self.episodes.append(Episode(fault, now))
        return self.episodes[-1]

    def heal(self, now: datetime) -> bool:
        """End the active fault. Returns whether there was one."""
        live = self.active_episode(now)
        if live is None:
            return False
        live.heal(now)
        return True

    def arrive(self, now: datetime, key: str | None, said: str = "") -> Episode | None:
        """Count a call. Returns the fault that affects it, or None.

        Args:
            key: Its idempotency key.
            said: Its key, parameters and body, as one text.
        """
        self.calls += 1
        self.first_call_at = self.first_call_at or now
        self.last_call_at = now
        if key is None:
            self.without_key += 1
        else:
            self._key(key).arrivals += 1
        live = self.active_episode(now)
        if live is None:
            return None
        self.calls_during_fault += 1
        if not live.fault.concerns(said):
            return None
        affected = live.affects_next(now)
        self.over_limit += affected and live.fault.mode is Mode.LIMIT
        return live if affected else None

    def take_effect(self, key: str | None, subject: str) -> None:
        """Count the effect of a call, or a repeat if its key has taken effect before."""
        if key is not None:
            count = self._key(key)
            if count.effects:
                self.keys_repeated += not count.repeats
                count.repeats += 1
                return
            count.effects += 1
        self.effects += 1
        before = self.subjects.pop(subject, 0)
        self.subjects_repeated += before == 1
        self.subjects[subject] = before + 1
        self._bound(self.subjects)

    def as_json(self, now: datetime) -> dict[str, Any]:
        """Return the counters as `GET /_stats` shows them."""
        live = self.active_episode(now)
        return {
            "calls": self.calls,
            "by_status": {str(status): n for status, n in sorted(self.by_status.items())},
            "failures_served": self.failures_served,
            "over_limit": self.over_limit,
            "calls_during_fault": self.calls_during_fault,
            "health_calls": self.health_calls,
            "first_call_at": _iso(self.first_call_at),
            "last_call_at": _iso(self.last_call_at),
            "keys": len(self.keys),
            "keys_repeated": self.keys_repeated,
            "without_key": self.without_key,
            "effects": self.effects,
            "subjects": len(self.subjects),
            "subjects_repeated": self.subjects_repeated,
            "forgotten": self.forgotten,
            "fault": None if live is None else _episode_json(live),
            "faults": [_episode_json(episode) for episode in self.episodes],
        }

    def _key(self, key: str) -> KeyCount:
        count = self.keys.pop(key, None) or KeyCount()
        self.keys[key] = count
        self._bound(self.keys)
        return count

    def _bound(self, entries: OrderedDict[str, Any]) -> None:
        while len(entries) > MAX_KEYS:
            entries.popitem(last=False)
            self.forgotten += 1


def _episode_json(episode: Episode) -> dict[str, Any]:
    return {
        **episode.fault.model_dump(mode="json", exclude_none=True),
        "placed_at": _iso(episode.placed_at),
        "healed_at": _iso(episode.healed_at),
        "calls": episode.calls,
    }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="microseconds")
