"""What the fleet has spent on services that have budgets, by period and campaign."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import sqlalchemy as sa

from dagster_tidegate.breaker import budget as budgets
from dagster_tidegate.breaker.budget import (
    BILLIONTH,
    Allowance,
    Balance,
    BudgetState,
    SpendingLimit,
    SpendRequest,
    left_of,
)
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.store import locked_state
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection, Store
from dagster_tidegate.store.upsert import insert
from dagster_tidegate.text import utc

NEARLY_SPENT = 0.8


@dataclass(frozen=True)
class Spending:
    """What a campaign has spent on a service in a period.

    Attributes:
        period: When the period began (UTC).
        campaign: Empty for calls of no campaign, and what processes may have spent that died.
    """

    service: str
    period: datetime
    unit: str
    campaign: str
    amount: float


@dataclass(frozen=True)
class BudgetUsage:
    """How much of a budget is spent in its present period. Times are UTC.

    Attributes:
        left: How much is left: of the budget, or if that is less, of what the service says is.
        balance: What the service said is left, at `balance_at`.
        campaigns: How much each campaign has spent, the largest first; no name: see `Spending`.
    """

    amount: float
    per: str
    unit: str
    timezone: str
    spent: float
    left: float
    begins_at: datetime
    resets_at: datetime
    balance: float | None = None
    balance_at: datetime | None = None
    campaigns: Mapping[str, float] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """How much of it is used up, from 0; more than 1 if it is exceeded."""
        return 1 - self.left / self.amount

    @property
    def is_nearly_spent(self) -> bool:
        """Whether so much of it is used up that an alert is due."""
        return self.share >= NEARLY_SPENT

    def __str__(self) -> str:
        spent, amount, left = (
            f"{each:,.9f}".rstrip("0").rstrip(".") for each in (self.spent, self.amount, self.left)
        )
        since = "today" if self.per == "day" else f"this {self.per}"
        text = f"{spent} of {amount} {self.unit} spent {since}; resets at {utc(self.resets_at)}"
        return text if self.balance is None else f"{text}; {left} left"


def spend(
    conn: Connection, store: Store, policy: ServicePolicy, worker: str, request: SpendRequest
) -> Allowance:
    """Write what a worker has spent, and allow it the next amount: see `budget.allow`."""
    assert policy.budget is not None
    state = _locked(conn, policy.name, policy.budget)
    # Only now: it may have waited for the lock.
    now = store.now(conn)
    rows = [
        {
            "service": policy.name,
            "period": datetime.fromtimestamp(what.period or 0.0, UTC),
            "unit": policy.budget.unit,
            "campaign": what.campaign,
            "amount": amount,
        }
        for what, amount in sorted(budgets.settle(state, now, worker, request).items())
    ]
    if rows:
        new = insert(conn, t.spending)
        new = new.on_conflict_do_update(
            index_elements=["service", "period", "unit", "campaign"],
            set_={"amount": t.spending.c.amount + new.excluded.amount},
        )
        conn.execute(new, rows)
    begins = policy.budget.period(now.timestamp())[0]
    total = _total(conn, policy.name, policy.budget.unit, begins)
    since_balance = _since(conn, policy.name, state, total, now)
    allowed = budgets.allow(state, now, worker, request, total=total, since_balance=since_balance)
    _save(conn, policy.name, state)
    return allowed


def declare(conn: Connection, policy: ServicePolicy) -> None:
    """Note a budget as the code has it now, so that it is shown and applies at once."""
    assert policy.budget is not None
    _save(conn, policy.name, _locked(conn, policy.name, policy.budget))


def set_balance(conn: Connection, store: Store, policy: ServicePolicy, left: int) -> int | None:
    """Note what a service says is left, in billionths; return what it said before."""
    assert policy.budget is not None
    state = _locked(conn, policy.name, policy.budget)
    now = store.now(conn)
    former = state.balance
    begins = policy.budget.period(now.timestamp())[0]
    total = _total(conn, policy.name, policy.budget.unit, begins)
    state.balance = Balance(left, now.timestamp(), begins, total)
    _save(conn, policy.name, state)
    return None if former is None else former.left


def read(conn: Connection, now: datetime) -> Mapping[str, BudgetUsage]:
    """Return how much of each budget is spent, by service."""
    s = t.spending.c
    usages = {}
    for row in conn.execute(sa.select(t.budgets).order_by(t.budgets.c.service)):
        state = BudgetState.from_json(row.state)
        budget, balance = state.budget, state.balance
        begins, ends = (datetime.fromtimestamp(x, UTC) for x in budget.period(now.timestamp()))
        amount = sa.func.sum(s.amount).label("amount")
        spent = conn.execute(
            sa.select(s.campaign, amount)
            .where(s.service == row.service, s.unit == budget.unit, s.period >= begins)
            .group_by(s.campaign)
            .order_by(amount.desc(), s.campaign)
        ).all()
        total = sum(int(each.amount) for each in spent)
        since_balance = _since(conn, row.service, state, total, now)
        usages[row.service] = BudgetUsage(
            amount=budget.amount,
            per=budget.per,
            unit=budget.unit,
            timezone=budget.timezone,
            spent=total / BILLIONTH,
            left=max(0, left_of(state, total, since_balance)) / BILLIONTH,
            begins_at=begins,
            resets_at=ends,
            balance=None if balance is None else balance.left / BILLIONTH,
            balance_at=None if balance is None else datetime.fromtimestamp(balance.at, UTC),
            campaigns={each.campaign: int(each.amount) / BILLIONTH for each in spent},
        )
    return usages


def history(conn: Connection, service: str, limit: int) -> Sequence[Spending]:
    """Return what was spent on a service, the latest period first."""
    s = t.spending.c
    rows = conn.execute(
        sa.select(t.spending)
        .where(s.service == service)
        .order_by(s.period.desc(), s.amount.desc(), s.campaign)
        .limit(limit)
    )
    return [
        Spending(row.service, row.period, row.unit, row.campaign, row.amount / BILLIONTH)
        for row in rows
    ]


def _locked(conn: Connection, service: str, budget: SpendingLimit) -> BudgetState:
    """Return what is known of a budget, locked until the transaction ends."""
    stored = locked_state.lock(conn, t.budgets, service, BudgetState(budget).to_json)
    state = BudgetState.from_json(stored)
    state.budget = budget
    return state


def _save(conn: Connection, service: str, state: BudgetState) -> None:
    locked_state.save(conn, t.budgets, service, state.to_json())


def _since(conn: Connection, service: str, state: BudgetState, total: int, now: datetime) -> int:
    """Return what was spent since the service said what is left; `total` is of this period."""
    balance = state.balance
    if balance is None:
        return 0
    if balance.period != state.budget.period(now.timestamp())[0]:
        total = _total(conn, service, state.budget.unit, balance.period)
    return max(0, total - balance.total)


def _total(conn: Connection, service: str, unit: str, since: float) -> int:
    s = t.spending.c
    begins = datetime.fromtimestamp(since, UTC)
    spent = sa.select(sa.func.sum(s.amount)).where(
        s.service == service, s.unit == unit, s.period >= begins
    )
    return int(conn.scalar(spent) or 0)
