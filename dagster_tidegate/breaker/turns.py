"""Whose turn it is, where several campaigns wait for calls of the same limits. Pure.

A campaign of higher priority goes first; among equals, the one that has had fewer calls lately.
Only who waits can go first: what nobody else waits for, anybody may have.
"""

from dataclasses import dataclass

FORGOTTEN_AFTER_S = 15.0
"""A campaign that has not asked for so long starts again beside the others, with no calls ahead."""
EVEN = 20
"""Campaigns are even while they differ by no more than one in so many calls of the limit."""
MAX_BEHIND = 10
"""How far behind a campaign can be at most, in the unit above, that has wanted fewer calls."""


@dataclass
class Turn:
    """What a campaign had, and whether it waits. Times are seconds since 1970.

    Attributes:
        calls: How many calls it was granted, as far as the difference to the others matters.
        asked_at: When one of its processes last asked.
        waits_until: Until when one of them waits, at least.
    """

    priority: int
    calls: int
    asked_at: float
    waits_until: float = 0.0


def ask(turns: dict[str, Turn], campaign: str, priority: int, now: float, limit: int) -> Turn:
    """Take note that a campaign asks for calls; return what is known of it.

    Args:
        limit: How many calls there are in all.
    """
    for name, each in list(turns.items()):
        until = max(each.asked_at + FORGOTTEN_AFTER_S, each.waits_until)
        if not each.asked_at <= now < until:  # or the clock was set back
            del turns[name]
    most = max((each.calls for each in turns.values()), default=0)
    turn = turns.setdefault(campaign, Turn(priority, most, now))
    turn.priority, turn.asked_at = priority, now
    turn.calls = max(turn.calls, most - MAX_BEHIND * _even(limit))
    return turn


def others_first(turns: dict[str, Turn], turn: Turn, now: float, limit: int) -> bool:
    """Return whether another campaign waits that goes before this one."""
    ahead = turn.calls - _even(limit)
    return any(
        other.priority > turn.priority or (other.priority == turn.priority and other.calls < ahead)
        for other in turns.values()
        if other is not turn and now < other.waits_until
    )


def _even(limit: int) -> int:
    return max(1, limit // EVEN)
