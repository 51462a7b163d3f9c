"""Rate limits of a service: who may make how many calls, decided from the fleet's state. Pure.

A process leases calls in blocks and says later when it made them. A block that is out counts as
calls that may be made at any moment until it expires; a call that was made counts from its own
time on. Where no call is free, a block may begin later, so that nobody has to ask again and again.

At every grant, the calls that may be in a window together with the block's first call, and the
block itself, are within the limit. Of all the blocks with calls in some window, consider the one
that was granted last: all others were counted then. So no window has more calls than its limit,
whatever processes do with their blocks.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil, floor
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dagster_tidegate.breaker.calendar import PERIODS, check_timezone, period
from dagster_tidegate.breaker.concurrency import SlotState
from dagster_tidegate.breaker.readings import Reading, Said, with_made
from dagster_tidegate.breaker.turns import Turn, ask, others_first

LENGTHS = {"hour": 3600.0, "day": 86400.0}
"""How long these are, as services say it."""
MAX_WINDOW_S = 31 * 86400.0
SHOWN_S = 7 * 86400.0
"""For how long a limit is shown that no process has asked for."""
MAX_BLOCK = 4096
MIN_LEASE_S = 0.5
MAX_LEASE_S = 5.0
MAX_AHEAD_S = 10.0
"""How long before it begins a block may be leased."""
RECHECK_S = 0.25
"""After this time a process asks again, while others have calls that they may give back: none is
refused, and no service throttled, before all calls of the window are made."""
GRACE_S = 30.0
"""How long after the end of a block its process can still say that it did not use all of it."""
MARGIN = 0.01
"""How much longer than its length a window counts, as a share of it: calls take different times to
reach the service."""
MAX_MARGIN_S = 1.0
CLOCKS_DIFFER_S = 1.0
"""How far the clocks of the store and of a service may differ where a calendar period ends."""
RESOLUTION = 200
"""Into how many steps a window is divided; a call counts until the end of its step."""


class RateLimit(BaseModel):
    """How many calls a service permits in a time: `dagster_tidegate.Rate`.

    Either in any time of `per_s` seconds, or in each hour, day or month of the calendar.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    calls: int = Field(ge=1, description="How many calls.")
    per_s: float | None = Field(
        default=None,
        gt=0.01,
        le=MAX_WINDOW_S,
        description="In any period of this many seconds.",
    )
    per: str | None = Field(
        default=None, description="In each `hour`, `day` or `month` of the calendar."
    )
    timezone: str = Field(
        default="UTC",
        max_length=64,
        description="Time zone of the calendar, for `per`.",
    )

    _timezone_exists = field_validator("timezone")(check_timezone)

    @model_validator(mode="after")
    def _one_period(self) -> Self:
        if (self.per_s is None) == (self.per is None):
            raise ValueError("a rate needs either per_s or per")
        if self.per is not None and self.per not in PERIODS:
            raise ValueError(f"per={self.per!r}: use {', '.join(PERIODS)}, or per_s")
        return self

    @property
    def key(self) -> str:
        """What its calls are counted under; not `calls`, so that a change of it forgets nothing."""
        return f"{self.per_s:g}" if self.per is None else f"{self.per} {self.timezone}"

    def __str__(self) -> str:
        return f"{self.calls:,} calls per {self.per or f'{self.per_s:g} s'}"

    @property
    def window_s(self) -> float:
        """How long a call counts in a sliding window."""
        length = self.per_s or 0.0
        return length + min(MARGIN * length, MAX_MARGIN_S)

    def period(self, now: float) -> tuple[float, float]:
        """Return the beginning and the end of the calendar's period that a time is in."""
        return period(self.per or "day", self.timezone, now)


@dataclass(frozen=True)
class Block:
    """Calls that a process may make until they expire."""

    size: int
    expires_at: float


@dataclass(frozen=True)
class CallRequest:
    """What a process asks for, and what became of its last block.

    Attributes:
        wanted: How many calls it would like to make; 0: it only gives back what is left.
        ages: For each call that it made from its last block, how many seconds ago.
        patience_s: How many seconds it waits for a block that is free later.
        readings: What the service has said since of the calls that are left.
        campaign: The campaign that it works for; empty if for none.
    """

    wanted: int
    ages: Sequence[float] = ()
    patience_s: float = 0.0
    readings: Sequence[Reading] = ()
    campaign: str = ""


@dataclass(frozen=True)
class Grant:
    """The answer to a request. Times are UTC.

    Attributes:
        calls: How many calls the process may make; 0: none so soon.
        lease_s: When they expire, in seconds from now.
        starts_s: When it may begin, in seconds from now.
        retry_at: When to ask again, if there are none.
        limit: The limit or budget that is used up, for people; empty: it is another one's turn.
        kind: Which of the two it is.
    """

    calls: int
    lease_s: float = 0.0
    starts_s: float = 0.0
    retry_at: datetime | None = None
    limit: str = ""
    kind: str = "limit"


@dataclass(frozen=True)
class Usage:
    """How much of a limit is used up in its present window.

    Attributes:
        limit: The limit, for people.
        used: Calls that were made, and those that processes have leased.
    """

    limit: str
    calls: int
    used: int


@dataclass
class LimitState:
    """What the fleet knows of the calls to a service. Times are seconds since 1970.

    Attributes:
        blocks: The last block of each process, until it has said what became of it.
        made: For each limit, how many calls count until the end of each step.
        rates: All limits that processes have had, by key, and when one last asked. Each call counts
            in all: another code location, or a version that is being replaced, may have others.
        said: What the service last said of each of its quotas, by name.
        recent: When calls were made since then, and how many, the oldest first.
        slots: Who may have how many calls in flight.
        turns: How many calls each campaign had, and which of them wait.
    """

    blocks: dict[str, Block] = field(default_factory=dict)
    made: dict[str, dict[float, int]] = field(default_factory=dict)
    rates: dict[str, tuple[RateLimit, float]] = field(default_factory=dict)
    said: dict[str, Said] = field(default_factory=dict)
    recent: list[tuple[float, int]] = field(default_factory=list)
    slots: SlotState = field(default_factory=SlotState)
    turns: dict[str, Turn] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str | None) -> "LimitState":
        """Read it from the store."""
        if text is None:
            return cls()
        stored = json.loads(text)
        return cls(
            {worker: Block(*block) for worker, block in stored["blocks"].items()},
            {key: dict(made) for key, made in stored["made"].items()},
            {key: (RateLimit(**rate), at) for key, (rate, at) in stored["rates"].items()},
            {name: Said(**said) for name, said in stored.get("said", {}).items()},
            [(at, calls) for at, calls in stored.get("recent", ())],
            _slots(stored.get("slots", {})),
            {name: Turn(*turn) for name, turn in stored.get("turns", {}).items()},
        )

    def to_json(self) -> str:
        """Write it for the store."""
        return json.dumps(
            {
                "blocks": {worker: [b.size, b.expires_at] for worker, b in self.blocks.items()},
                "made": {key: sorted(made.items()) for key, made in self.made.items()},
                "rates": {key: [rate.model_dump(), at] for key, (rate, at) in self.rates.items()},
                "said": {name: vars(said) for name, said in self.said.items()},
                "recent": self.recent,
                "slots": vars(self.slots),
                "turns": {name: [*vars(turn).values()] for name, turn in self.turns.items()},
            },
            separators=(",", ":"),
        )


def _slots(stored: dict[str, Any]) -> SlotState:
    state = SlotState(**stored)
    state.held = {worker: (slots, at) for worker, (slots, at) in state.held.items()}
    state.waiting = {worker: (since, at) for worker, (since, at) in state.waiting.items()}
    return state


def lease(
    state: LimitState,
    rates: Sequence[RateLimit],
    now: datetime,
    worker: str,
    request: CallRequest,
    *,
    priority: int = 0,
) -> Grant:
    """Settle the last block of a process, and lease it the next one. Changes the state.

    Args:
        priority: That of the campaign for which it asks.
    """
    at = now.timestamp()
    lease_s = lease_time(rates)
    state.rates |= {rate.key: (rate, at) for rate in rates}
    known = [rate for rate, asked_at in state.rates.values() if asked_at >= at - MAX_WINDOW_S]
    _correct(state, known, at)
    if (block := state.blocks.get(worker)) and (mine := state.turns.get(request.campaign)):
        mine.calls -= block.size - len(request.ages)
    _settle(state, known, at, worker, request.ages, request.readings)
    _forget(state, known, at)
    if not request.wanted:
        return Grant(0)
    said = undeclared(state, rates, at)
    limits = [*rates, *said]
    starts_at, last = _earliest(state, limits, at, needed=1)
    if starts_at > at:  # by then, for a little more than one call: fewer requests
        starts_at, last = _earliest(state, limits, at, needed=None)
    calls = _fewest(limits)
    turn = ask(state.turns, request.campaign, priority, at, calls)
    # Not for longer than half of its patience, so that it does not go away empty-handed.
    lets_others = request.patience_s > 2 * (starts_at - at + RECHECK_S)
    if lets_others and others_first(state.turns, turn, at, calls):
        turn.waits_until = max(turn.waits_until, at + 2 * RECHECK_S)
        return Grant(0, retry_at=datetime.fromtimestamp(at + RECHECK_S, UTC))
    free = min((_free(state, each, starts_at) for each in limits), default=MAX_BLOCK)
    if free < 1 or starts_at - at > min(request.patience_s, MAX_AHEAD_S):
        if request.patience_s > RECHECK_S and _some_may_come_back(state, at):
            starts_at = min(starts_at, at + RECHECK_S)
        if starts_at - at <= request.patience_s:
            turn.waits_until = max(turn.waits_until, starts_at + RECHECK_S)
        return Grant(0, retry_at=datetime.fromtimestamp(starts_at, UTC), limit=str(last))
    # What is free now is shared with who may use up more soon. A block that begins later counts
    # for longer than its calls, so that it is small: half of an even share of the limit.
    asking = 1 + sum(at < block.expires_at for block in state.blocks.values())
    free = min(free, ceil((free if starts_at == at else calls / 2) / asking))
    if starts_at > at:
        turn.waits_until = max(turn.waits_until, starts_at)
    size = min(request.wanted, MAX_BLOCK, free)
    turn.calls += size
    ends = [each.period(starts_at)[1] - CLOCKS_DIFFER_S for each in rates if each.per]
    ends += [each.until for each in said if each.until > starts_at]
    expires_at = min([starts_at + lease_s, *ends])
    state.blocks[worker] = Block(size, expires_at)
    return Grant(size, expires_at - at, starts_at - at)


def usage(state: LimitState, now: datetime) -> list[Usage]:
    """Return how much of each limit is used up, with what processes have leased."""
    at = now.timestamp()
    rates = [rate for rate, asked_at in state.rates.values() if asked_at >= at - SHOWN_S]
    used = [Usage(str(rate), rate.calls, _counted(state, rate, at)) for rate in rates]
    for said in undeclared(state, rates, at):
        calls = int(said.left if said.calls is None else said.calls)
        left = min(calls, max(0, _free(state, said, at))) if said.of_calls else int(said.left)
        used.append(Usage(str(said), calls, calls - left))
    slots = state.slots
    if slots.limit is not None and slots.asked_at >= at - SHOWN_S:
        used.append(Usage(f"{slots.limit} calls at a time", slots.limit, slots.taken(at)))
    return used


def lease_time(rates: Iterable[RateLimit]) -> float:
    """Return for how long a block is leased, in seconds.

    Longer than the store takes to answer. A block that is used up or given back earlier counts no
    longer than its calls.
    """
    shortest = min((rate.per_s for rate in rates if rate.per_s), default=float("inf"))
    return min(max(shortest / 4, MIN_LEASE_S), MAX_LEASE_S)


def _fewest(limits: Sequence[RateLimit | Said]) -> int:
    """Return how many calls the tightest of some limits permits."""
    counts = (each.left if each.calls is None else each.calls for each in limits)
    return max(1, int(min(counts, default=MAX_BLOCK)))


def _some_may_come_back(state: LimitState, now: float) -> bool:
    """Return whether another process may still use up, or give back, what it has leased."""
    return any(now < block.expires_at for block in state.blocks.values())


def undeclared(state: LimitState, rates: Sequence[RateLimit], now: float) -> list[Said]:
    """Return what the service says of quotas that are none of the limits that are declared."""
    return [
        said
        for said in state.said.values()
        if now < said.until and not any(is_about(said, rate) for rate in rates)
    ]


def is_about(said: Said, rate: RateLimit) -> bool:
    """Return whether a quota of the service is a limit that is declared."""
    length = rate.per_s or LENGTHS.get(rate.per or "")
    if length is None or not said.of_calls:
        return False
    if said.left < 1 and rate.per_s and said.until - said.at > 1.1 * length + CLOCKS_DIFFER_S:
        return False  # nothing for longer than the limit says
    if said.window_s is None:
        return said.calls == rate.calls
    return abs(said.window_s - length) <= 0.01 * length


def _earliest(
    state: LimitState, limits: Sequence[RateLimit | Said], now: float, *, needed: int | None
) -> tuple[float, RateLimit | Said | None]:
    """Return when all limits have calls, if no block comes back earlier, and which one is last.

    Args:
        needed: How many calls; None: a hundredth of each limit.
    """
    at, last = now, limits[0] if limits else None
    for _ in range(4 * len(limits)):  # each may move it past the period of another
        before = at
        for limit in limits:
            if isinstance(limit, Said):
                free_at = limit.free_at(at, *_since_said(state, limit))
            else:
                wanted = max(1, limit.calls // 100) if needed is None else needed
                free_at = _free_at(state, limit, at, wanted)
            if free_at > at:
                at, last = free_at, limit
        if at == before:
            break
    return at, last


def _free(state: LimitState, limit: RateLimit | Said, at: float) -> int:
    """Return how many calls of a limit are free at a time."""
    if isinstance(limit, Said):
        return limit.free(at, sum(_since_said(state, limit)))
    return limit.calls - _counted(state, limit, at)


def _since_said(state: LimitState, said: Said) -> tuple[int, int]:
    """Return how many calls were made since the service said something, and may still be made."""
    made = sum(calls for at, calls in state.recent if at > said.at)
    return made, sum(block.size for block in state.blocks.values())


def _note(
    state: LimitState, rates: Sequence[RateLimit], readings: Sequence[Reading], now: float
) -> None:
    """Take note of what the service says of its quotas: the latest word counts."""
    for name, reported in readings:
        said = reported.moved(now)
        if said.replaces(state.said.get(name), now):
            state.said[name] = said
    state.said = {
        name: said
        for name, said in state.said.items()
        if now < said.until
        or any(is_about(said, rate) and now < _counts_until(rate, said.at) for rate in rates)
    }


def _counts_until(rate: RateLimit, at: float) -> float:
    return rate.period(at)[1] if rate.per else at + rate.window_s


def _correct(state: LimitState, rates: Sequence[RateLimit], now: float) -> None:
    """After the clock was set back: what seems to be later than now was made now at the latest."""
    latest = now + MAX_AHEAD_S + MAX_LEASE_S
    for worker, block in state.blocks.items():
        if block.expires_at > latest:
            state.blocks[worker] = Block(block.size, latest)
    for rate in rates:
        latest = _step(rate, now)
        made = state.made.get(rate.key, {})
        for step in [step for step in made if step > latest]:
            made[latest] = made.get(latest, 0) + made.pop(step)
    state.recent = [(min(at, now), calls) for at, calls in state.recent]
    for name, said in state.said.items():
        if said.at > now:
            state.said[name] = said.moved(now - said.at)


def _settle(
    state: LimitState,
    rates: Sequence[RateLimit],
    now: float,
    worker: str,
    ages: Sequence[float],
    readings: Sequence[Reading],
) -> None:
    block = state.blocks.pop(worker, None)
    lost: list[tuple[float, int]] = []
    for other, each in list(state.blocks.items()):
        if each.expires_at + GRACE_S <= now:
            # Its process is dead: any of its calls may have been made at the last moment.
            del state.blocks[other]
            for rate in rates:
                _count(state, rate, each.expires_at, each.size)
            lost.append((each.expires_at, each.size))
    _note(state, rates, readings, now)
    since = min((said.at for said in state.said.values()), default=float("inf"))
    made = [(now - max(age, 0.0), 1) for age in ages] if block is not None else []
    state.recent = with_made(state.recent, [*lost, *made], since)
    if block is None:
        return
    for rate in rates:
        if rate.per and ages:  # no block reaches beyond the end of a period
            _count(state, rate, now - max(ages), len(ages))
        elif ages:
            steps = Counter(_step_end(rate, now - max(age, 0.0)) for age in ages)
            for step, calls in steps.items():
                _add(state, rate, step, calls)


def _count(state: LimitState, rate: RateLimit, at: float, calls: int) -> None:
    _add(state, rate, _step(rate, at), calls)


def _add(state: LimitState, rate: RateLimit, step: float, calls: int) -> None:
    made = state.made.setdefault(rate.key, {})
    made[step] = made.get(step, 0) + calls


def _step(rate: RateLimit, at: float) -> float:
    """What a call at a time is counted under: the start of its period, or the end of its step."""
    return rate.period(at)[0] if rate.per else _step_end(rate, at)


def _since(rate: RateLimit, now: float) -> float:
    """Return when the window of a limit that ends now begins."""
    return rate.period(now)[0] if rate.per else now - rate.window_s


def _step_end(rate: RateLimit, at: float) -> float:
    step_s = (rate.per_s or 1.0) / RESOLUTION
    return (floor(at / step_s) + 1) * step_s


def _forget(state: LimitState, rates: Sequence[RateLimit], now: float) -> None:
    kept = {}
    for rate in rates:
        since = _since(rate, now)
        made = state.made.get(rate.key, {})
        kept[rate.key] = {step: calls for step, calls in made.items() if step >= since}
    state.made = kept
    state.rates = {rate.key: state.rates[rate.key] for rate in rates}


def _counted(state: LimitState, rate: RateLimit, now: float) -> int:
    """Return the calls of the limit's window that may reach beyond now, with the blocks out."""
    since = _since(rate, now)
    made = sum(calls for step, calls in state.made.get(rate.key, {}).items() if step >= since)
    made += _of_others(state, rate, now)
    return made + sum(b.size for b in state.blocks.values() if b.expires_at > since)


def _of_others(state: LimitState, rate: RateLimit, now: float) -> int:
    """Return the calls of a limit's window that other programs made, as the service says."""
    most = 0
    for said in state.said.values():
        since = _since(rate, said.at)
        if not is_about(said, rate) or now >= _counts_until(rate, said.at):
            continue
        calls = rate.calls if said.calls is None else min(said.calls, rate.calls)
        made = state.made.get(rate.key, {}).items()
        own = sum(count for step, count in made if step >= since)
        own -= sum(count for at, count in state.recent if at > said.at)
        # Of a limit that the service says is lower, the rest counts as used up.
        most = max(most, int(calls - said.left) - own + (rate.calls - int(calls)))
    return most


def _free_at(state: LimitState, rate: RateLimit, at: float, needed: int) -> float:
    """Return when a limit has so many calls, at `at` or later, if no block comes back earlier."""
    if rate.per:
        begins, ends = rate.period(at)
        if _counted(state, rate, at) + needed > rate.calls or at >= ends - CLOCKS_DIFFER_S:
            return ends + CLOCKS_DIFFER_S
        return max(at, begins + CLOCKS_DIFFER_S)
    left = rate.calls - _counted(state, rate, at)
    if left >= needed:
        return at
    counted = [
        *state.made.get(rate.key, {}).items(),
        *((block.expires_at, block.size) for block in state.blocks.values()),
        *((said.at, _of_others(state, rate, at)) for said in state.said.values()),
    ]
    step = at
    for step, calls in sorted(counted):
        if step >= at - rate.window_s:
            left += calls
            if left >= needed:
                break
    # A moment later: what ends just then is not counted any more.
    return max(at, step + rate.window_s) + 1e-4
