"""Budgets of a service: who may spend how much, decided from what the fleet has spent. Pure.

A process is allowed an amount at a time, takes the cost of each call from it, and reports later
what it has spent. An amount that is out counts as spent until its process has said what became of
it. So the fleet never spends more than its budget on calls whose cost is known before; where the
answer says what a call has cost, the calls in flight may exceed it.

Amounts are whole numbers of billionths of the budget's unit, so that sums are exact.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dagster_tidegate.breaker.calendar import PERIODS, check_timezone, period

BILLIONTH = 10**9
MAX_AMOUNT = 10**9
LEASE_S = 5.0
"""For how long a process may spend what it is allowed before it reports."""
GRACE_S = 30.0
"""How long after that it can still say that it did not spend all of it."""


def billionths(amount: object) -> int:
    """Return an amount as a whole number of billionths. A float counts as it is written.

    Raises:
        ValueError: If it is no number, negative, not finite, or more than `MAX_AMOUNT`.

    Example:
        >>> billionths(0.1) + billionths("0.2") == billionths(0.3)
        True
    """
    try:
        number = Decimal(str(amount))
        if 0 <= number <= MAX_AMOUNT:
            return round(number * BILLIONTH)
    except InvalidOperation:  # no number, or NaN
        pass
    raise ValueError(f"{amount!r} can't be spent: use a number from 0 to {MAX_AMOUNT}")


def written(amount: int) -> str:
    """Return a number of billionths as people write it.

    Example:
        >>> written(1_500_000_000), written(20_000_000_000)
        ('1.5', '20')
    """
    text = f"{Decimal(amount) / BILLIONTH:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


class SpendingLimit(BaseModel):
    """How much may be spent on a service in a period: `dagster_tidegate.Budget`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    amount: float = Field(gt=0, le=MAX_AMOUNT, description="How much.")
    per: str = Field(default="day", description="In each `hour`, `day` or `month` of the calendar.")
    unit: str = Field(
        default="credits",
        min_length=1,
        max_length=32,
        description="Unit of the amount, for display.",
    )
    timezone: str = Field(default="UTC", max_length=64, description="Time zone of the calendar.")
    balance: str | None = Field(
        default=None,
        description="How to find out what is left in the account, once a minute: your own "
        'function, as "package.module:function", or a URL that answers GET with a number, or with '
        "JSON that has the number at the JSON pointer after `#`, such as "
        "`https://api.example.com/credits#/data/left`. It must be free of charge.",
    )

    @field_validator("balance")
    @classmethod
    def _balance_can_be_asked(cls, balance: str | None) -> str | None:
        if balance is None or re.fullmatch(r"[\w.]+:\w+", balance):
            return balance
        parts = urlsplit(balance)
        if "@" in parts.netloc:  # not repeated in the message: it may contain a password
            raise ValueError("balance can't contain a user or password: name a function")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"balance={balance!r}: use package.module:function, or an http:// or https:// URL"
            )
        return balance

    _timezone_exists = field_validator("timezone")(check_timezone)

    @field_validator("per")
    @classmethod
    def _period_exists(cls, per: str) -> str:
        if per not in PERIODS:
            raise ValueError(f"per={per!r}: use {', '.join(PERIODS)}")
        return per

    def __str__(self) -> str:
        return f"{written(billionths(self.amount))} {self.unit} per {self.per}"

    def period(self, now: float) -> tuple[float, float]:
        """Return the beginning and the end of the period that a time is in."""
        return period(self.per, self.timezone, now)


class Spent(NamedTuple):
    """What an amount was spent in and by: `period` is its beginning, None if it isn't known yet."""

    period: float | None
    campaign: str


@dataclass(frozen=True)
class SpendRequest:
    """What a process has spent since its last report, and what it asks for.

    Attributes:
        needed: How much the next call needs at least; 0: the process only reports.
        wanted: How much it would like.
        known: What the fleet had spent at its last answer, in the period that began then.
    """

    spent: Mapping[Spent, int]
    needed: int = 0
    wanted: int = 0
    known: tuple[float, int] = (0.0, 0)


@dataclass(frozen=True)
class Allowance:
    """The answer to a request.

    Attributes:
        amount: How much the process may spend; 0: nothing, or less than it needs.
        lease_s: When that expires, in seconds from now.
        period: When the present period began.
        total: What the fleet has spent in it.
        retry_at: When to ask again (UTC), if there is nothing.
        used_up: There will be nothing before the next period.
        kept: What was reported is written, so that it is not reported again.
    """

    amount: int
    period: float
    total: int
    lease_s: float = 0.0
    retry_at: datetime | None = None
    used_up: bool = False
    kept: bool = True


@dataclass(frozen=True)
class Advance:
    """An amount that a process may spend until it expires."""

    amount: int
    expires_at: float


@dataclass(frozen=True)
class Balance:
    """What the service says is left.

    Attributes:
        at: When it said so.
        period: The beginning of the period then.
        total: What the fleet had spent in it.
    """

    left: int
    at: float
    period: float
    total: int


@dataclass
class BudgetState:
    """What the fleet knows of a budget, beside what was spent. Times are seconds since 1970.

    Attributes:
        budget: As the last process had it that asked.
        blocks: What each process may spend until it has reported.
    """

    budget: SpendingLimit
    blocks: dict[str, Advance] = field(default_factory=dict)
    balance: Balance | None = None

    @classmethod
    def from_json(cls, text: str) -> "BudgetState":
        """Read it from the store."""
        stored = json.loads(text)
        balance = stored["balance"]
        return cls(
            SpendingLimit(**stored["budget"]),
            {worker: Advance(*block) for worker, block in stored["blocks"].items()},
            None if balance is None else Balance(**balance),
        )

    def to_json(self) -> str:
        """Write it for the store."""
        return json.dumps(
            {
                "budget": self.budget.model_dump(),
                "blocks": {worker: [b.amount, b.expires_at] for worker, b in self.blocks.items()},
                "balance": None if self.balance is None else asdict(self.balance),
            },
            separators=(",", ":"),
        )


def settle(
    state: BudgetState, now: datetime, worker: str, request: SpendRequest
) -> Mapping[Spent, int]:
    """Take back the last amount of a process, and those of dead ones. Changes the state.

    Returns:
        What is to be written as spent. A process that died may have spent all that it was allowed;
        nobody knows for which campaign.
    """
    at = now.timestamp()
    begins = state.budget.period(at)[0]
    state.blocks.pop(worker, None)
    spent: Counter[Spent] = Counter()
    for other, block in list(state.blocks.items()):
        # After the clock was set back, a block expires no later than if it began now.
        state.blocks[other] = block = replace(block, expires_at=min(block.expires_at, at + LEASE_S))
        if block.expires_at + GRACE_S <= at:
            del state.blocks[other]
            spent[Spent(state.budget.period(block.expires_at - 0.001)[0], "")] += block.amount
    for what, amount in request.spent.items():
        spent[what if what.period is not None else what._replace(period=begins)] += amount
    return spent


def left_of(state: BudgetState, total: int, since_balance: int) -> int:
    """Return how much is left of a budget, with what processes may spend right now.

    Args:
        total: What was spent in this period.
        since_balance: What was spent since the service said what is left.
    """
    left = billionths(state.budget.amount) - total
    return left if state.balance is None else min(left, state.balance.left - since_balance)


def allow(
    state: BudgetState,
    now: datetime,
    worker: str,
    request: SpendRequest,
    *,
    total: int,
    since_balance: int = 0,
) -> Allowance:
    """Allow a process an amount, once what it reported is written. Changes the state.

    Args:
        total, since_balance: As `left_of` has them.
    """
    at = now.timestamp()
    begins, ends = state.budget.period(at)
    if not request.needed:
        return Allowance(0, begins, total)
    left = left_of(state, total, since_balance)
    free = left - sum(block.amount for block in state.blocks.values())
    if free >= request.needed:
        fair = free // (len(state.blocks) + 1)
        amount = max(request.needed, min(request.wanted, fair))
        expires_at = min(at + LEASE_S, ends)
        state.blocks[worker] = Advance(amount, expires_at)
        return Allowance(amount, begins, total, lease_s=expires_at - at)
    if left < request.needed:
        ends_at = datetime.fromtimestamp(ends, UTC)
        return Allowance(0, begins, total, retry_at=ends_at, used_up=True)
    # Others may not spend all that they are allowed. One that is dead never says so.
    back = min(
        b.expires_at if b.expires_at > at else b.expires_at + GRACE_S for b in state.blocks.values()
    )
    return Allowance(0, begins, total, retry_at=datetime.fromtimestamp(back, UTC))
