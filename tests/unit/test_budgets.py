"""Budgets: what is allowed, decided from what the fleet has spent."""

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import dagster_tidegate as tg
from dagster_tidegate.breaker.budget import (
    BILLIONTH,
    BudgetState,
    SpendingLimit,
    SpendRequest,
    Spent,
    allow,
    billionths,
    settle,
    written,
)
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.gate.budgets import is_topped_up, number_in
from dagster_tidegate.statuses import BreakerState

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
FIRST = datetime(2026, 3, 1, tzinfo=UTC).timestamp()


class Ledger:
    """A budget with what is written of it, as the store keeps it."""

    def __init__(self, budget: SpendingLimit) -> None:
        self.state = BudgetState(budget)
        self.rows: Counter[Spent] = Counter()

    def ask(self, now: datetime, worker: str, request: SpendRequest) -> int:
        self.rows.update(settle(self.state, now, worker, request))
        begins = self.state.budget.period(now.timestamp())[0]
        total = sum(v for what, v in self.rows.items() if (what.period or 0) >= begins)
        self.state = BudgetState.from_json(self.state.to_json())
        return allow(self.state, now, worker, request, total=total).amount


STEPS = st.lists(
    st.tuples(
        st.integers(0, 3),  # the process
        st.sampled_from(["call", "call", "call", "report", "die", "back"]),
        st.sampled_from([0, 1, 4, 40, 3600]),  # seconds later
        st.integers(1, 7),  # what it asks for
    ),
    max_size=60,
)


@settings(max_examples=120, deadline=None)
@given(STEPS, st.integers(1, 40))
def test_no_period_costs_more_than_the_budget(
    steps: list[tuple[int, str, int, int]], amount: int
) -> None:
    """Each process spends some of what it is allowed while it may, reports it, or dies."""
    budget = SpendingLimit(amount=amount, per="hour")
    ledger, now = Ledger(budget), NOON
    spent: Counter[float] = Counter()  # really, by period
    names = {n: f"w{n}" for n in range(4)}
    unreported: dict[str, Counter[Spent]] = {}
    dice = random.Random(len(steps))
    for process, action, later_s, wanted in steps:
        now += timedelta(seconds=later_s)
        period = budget.period(now.timestamp())[0]
        worker = names[process]
        mine = unreported.setdefault(worker, Counter())
        if action == "die":
            names[process] = f"{worker}'"
            continue
        if action == "back":
            wanted = 0
        needed = min(wanted, 1) * BILLIONTH
        request = SpendRequest(dict(mine), needed=needed, wanted=wanted * BILLIONTH)
        mine.clear()
        allowed = ledger.ask(now, worker, request)
        if action == "call":
            used = dice.randint(0, allowed) if allowed else 0
            spent[period] += used
            mine[Spent(period, "letters")] += used
    limit = amount * BILLIONTH
    assert all(total <= limit for total in spent.values())
    reported: Counter[float] = Counter()
    for what, value in ledger.rows.items():
        reported[what.period or 0] += value
    for mine in unreported.values():
        for what, value in mine.items():
            reported[what.period or 0] += value
    assert all(reported[period] >= total for period, total in spent.items()), "nothing is lost"


def test_the_last_of_a_budget_is_shared_and_used_up() -> None:
    ledger = Ledger(SpendingLimit(amount=10))
    first = ledger.ask(NOON, "a", SpendRequest({}, BILLIONTH, 100 * BILLIONTH))
    assert first == 10 * BILLIONTH
    assert ledger.ask(NOON, "b", SpendRequest({}, BILLIONTH, BILLIONTH)) == 0, (
        "a may spend all of it"
    )
    report = {Spent(FIRST, "letters"): 2 * BILLIONTH}
    second = ledger.ask(NOON, "a", SpendRequest(report, BILLIONTH, 2 * BILLIONTH))
    third = ledger.ask(NOON, "b", SpendRequest({}, BILLIONTH, 100 * BILLIONTH))
    assert (second, third) == (2 * BILLIONTH, 3 * BILLIONTH)


def test_who_is_refused_learns_until_when() -> None:
    budget = SpendingLimit(amount=1, per="day", timezone="Europe/Berlin")
    state = BudgetState(budget)
    one = SpendRequest({}, BILLIONTH)
    assert allow(state, NOON, "a", one, total=0).amount == BILLIONTH
    waits = allow(state, NOON, "b", one, total=0)
    assert (waits.used_up, waits.retry_at) == (False, NOON + timedelta(seconds=5))
    refused = allow(state, NOON, "b", one, total=BILLIONTH)
    assert (refused.used_up, refused.retry_at) == (True, datetime(2026, 3, 1, 23, tzinfo=UTC))


@pytest.mark.parametrize(
    ("day", "hours"),
    [(datetime(2026, 3, 29, 9, tzinfo=UTC), 23), (datetime(2026, 10, 25, 9, tzinfo=UTC), 25)],
)
def test_a_day_is_a_day_also_when_the_clocks_change(day: datetime, hours: int) -> None:
    budget = SpendingLimit(amount=1, per="day", timezone="Europe/Berlin")
    begins, ends = budget.period(day.timestamp())
    assert ends - begins == hours * 3600


@pytest.mark.parametrize("amount", [-1, float("nan"), float("inf"), "1e10", None, "many", [3]])
def test_what_is_no_amount_is_refused(amount: object) -> None:
    with pytest.raises(ValueError, match="use a number from 0 to"):
        billionths(amount)


@given(st.lists(st.decimals(0, 1000, places=9), max_size=20))
def test_amounts_add_up_exactly(amounts: list[Decimal]) -> None:
    total = sum(billionths(amount) for amount in amounts)
    assert Decimal(written(total)) == sum(amounts)


def test_a_declaration_is_checked() -> None:
    assert tg.Budget(1000, per="month", unit="USD").amount == 1000
    for wrong in ({"per": "week"}, {"timezone": "Mars"}, {"balance": "credits"}, {"unit": ""}):
        with pytest.raises(ValidationError):
            tg.Budget(1, **wrong)
    with pytest.raises(ValidationError):
        tg.Budget(0)
    for cost in (-1, float("nan"), "three"):
        with pytest.raises(ValidationError):
            tg.ServiceConfig(name="mail", cost=cost)


def test_a_breaker_knows_that_its_budget_throttles_it() -> None:
    fleet = Fleet(policies=[ServicePolicy(name="mail", budget=SpendingLimit(amount=1))])
    fleet.breaker("mail").call(str)
    with pytest.raises(tg.BreakerOpenError):
        fleet.breaker("mail").call(str)
    assert fleet.breaker("mail").status.used_up == "budget"


@pytest.mark.parametrize(
    ("body", "pointer", "left"),
    [
        ("12.5", "", "12.5"),
        ('{"credits": 3}', "/credits", "3"),
        ('{"a/b": [{"left": "7"}]}', "/a~1b/0/left", "7"),
        ('{"credits": -4}', "/credits", "0"),
    ],
)
def test_what_is_left_is_read_from_an_answer(body: str, pointer: str, left: str) -> None:
    assert written(number_in(body, pointer)) == left


@pytest.mark.parametrize("body", ["", "{}", '{"credits": "some"}', '{"credits": NaN}', "[1]"])
def test_an_answer_without_a_number_says_nothing(body: str) -> None:
    with pytest.raises((ValueError, LookupError, ArithmeticError)):
        number_in(body, "/credits")


def test_a_denied_service_is_tried_when_there_is_more_than_before() -> None:
    denied = BreakerStatus(
        "mail", NOON, state=BreakerState.OPEN, opened_at=NOON, cause=VerdictKind.DENIED
    )
    later = NOON + timedelta(minutes=1)
    assert is_topped_up(denied, 5, 9, NOON - timedelta(minutes=1)), "once after the denial"
    assert not is_topped_up(denied, 5, 5, later), "it may be the key"
    assert is_topped_up(denied, 6, 5, later)
    assert not is_topped_up(denied, 0, None, None)
    assert not is_topped_up(BreakerStatus("mail", NOON), 5, None, None)
