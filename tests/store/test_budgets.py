"""Budgets in the store: processes that share one never spend more than it has."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.error import HTTPError

import pytest
from sqlalchemy import event

from dagster_tidegate.breaker.backend import BreakerBackend
from dagster_tidegate.breaker.budget import BILLIONTH, SpendingLimit, SpendRequest, Spent
from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import breakers, budgets
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.budgets import BudgetUsage
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.retention import Keep, prune
from dagster_tidegate.testing import Service
from tests.support.clock import Clock
from tests.support.eager_calls import calls

DAILY = ServicePolicy(
    name="mail",
    budget=SpendingLimit(amount=6, per="day", timezone="Europe/Berlin"),
    jitter=0,
)
MIDNIGHT = datetime(2026, 3, 1, 23, tzinfo=UTC)  # in Berlin


def price(reply: str) -> object:
    """What a call costs: as much as it returns, as far as that is a number."""
    return {"nothing": None, "minus": -1, "nan": float("nan")}.get(reply, reply)


BY_ANSWER = f"{__name__}:price"


def usage(store: Store, at: datetime | None = None) -> BudgetUsage:
    with store.read() as conn:
        return budgets.read(conn, at or store.now(conn))["mail"]


def test_processes_that_ask_at_once_spend_no_more_than_the_budget(store: Store) -> None:
    policy = ServicePolicy(name="mail", budget=SpendingLimit(amount=50))
    backends: list[BreakerBackend] = [SqlBackend(store) for _ in range(8)]

    def ask(number: int) -> int:
        """Spend all that is allowed, and never say so, or say so with the next request."""
        worker, backend = f"w{number}", backends[number % 8]
        allowed = backend.spend(
            policy, worker, SpendRequest({}, 4 * BILLIONTH, 4 * BILLIONTH)
        ).amount
        if number % 2:
            backend.spend(policy, worker, SpendRequest({Spent(None, "letters"): allowed}))
        return allowed

    with ThreadPoolExecutor(8) as pool:
        spent = sum(pool.map(ask, range(40)))
    assert 46 * BILLIONTH < spent <= 50 * BILLIONTH


def test_a_used_up_budget_throttles_the_service_until_the_next_period(
    store: Store, clock: Clock, make_fleet: Callable[..., Fleet]
) -> None:
    first, second = make_fleet(DAILY), make_fleet(DAILY)
    assert calls(first, at_most=2) == 2
    first.flush(final=True)
    assert calls(second) == 4
    first.refresh()
    status = first.breaker("mail").status
    assert (status.state, status.throttled_until) == (BreakerState.OPEN, MIDNIGHT)
    assert status.reason == "its budget of 6 credits per day is used up"
    with pytest.raises(BreakerOpenError) as refused:
        first.breaker("mail").call(str.upper, "x")
    assert refused.value.retry_at == MIDNIGHT
    clock.time = MIDNIGHT + timedelta(seconds=1)
    assert calls(second) == 6, "its trial call closes the breaker"
    with store.read() as conn:
        rows = budgets.history(conn, "mail", 10)
    assert [row.amount for row in rows] == [6, 6]


def test_cents_add_up_exactly(store: Store, make_fleet: Callable[..., Fleet]) -> None:
    budget = SpendingLimit(amount=0.3, unit="USD")
    fleet = make_fleet(DAILY.model_copy(update={"budget": budget, "cost": 0.1}))
    assert calls(fleet) == 3, "as floats, 0.1 + 0.1 + 0.1 is more than 0.3"
    assert usage(store).spent == 0.3


def test_what_a_call_costs_may_be_known_only_afterwards(
    store: Store, make_fleet: Callable[..., Fleet]
) -> None:
    fleet = make_fleet(DAILY.model_copy(update={"cost": BY_ANSWER}))
    breaker = fleet.breaker("mail")
    assert [breaker.call(str.strip, text) for text in ("2.5", "3")] == ["2.5", "3"]
    breaker.call(str.strip, "20")  # half a credit was left
    with pytest.raises(BreakerOpenError, match="its budget of 6 credits per day is used up"):
        breaker.call(str.strip, "1")
    assert usage(store).spent == 25.5


@pytest.mark.parametrize("answer", ["nothing", "minus", "nan", "1e12", "a lot"])
def test_an_absurd_cost_is_logged_and_harms_no_call(
    store: Store,
    make_fleet: Callable[..., Fleet],
    caplog: pytest.LogCaptureFixture,
    answer: str,
) -> None:
    fleet = make_fleet(DAILY.model_copy(update={"cost": BY_ANSWER}))
    assert fleet.breaker("mail").call(str.strip, answer) == answer
    fleet.breaker("mail").call(str.strip, "1")
    fleet.breaker("mail").spend(-3)
    fleet.flush(final=True)
    assert usage(store).spent == 1
    assert "A call of mail counts as free: its cost is unknown" in caplog.text


def test_code_may_say_what_it_has_spent(store: Store, make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(DAILY.model_copy(update={"cost": 0}))
    fleet.state.campaign = "letters"
    breaker = fleet.breaker("mail")
    breaker.call(str.upper, "x")
    breaker.spend(Decimal("1.5"))
    fleet.state.campaign = "invoices"
    breaker.spend(4.5)
    assert calls(fleet) == 0
    assert usage(store).campaigns == {"invoices": 4.5, "letters": 1.5}


def test_parts_pay_from_the_budget_of_the_whole(make_fleet: Callable[..., Fleet]) -> None:
    bulk = ServicePolicy(name="mail/bulk", cost=2, budget=SpendingLimit(amount=4, per="hour"))
    fleet = make_fleet(DAILY.model_copy(update={"parts": ["single"]}), bulk)
    assert calls(fleet, "mail/bulk") == 2
    assert fleet.breaker("mail").status.state is BreakerState.CLOSED, "its own budget is used up"
    assert calls(fleet, "mail/single") == 2
    assert fleet.breaker("mail").status.throttled_until == MIDNIGHT


@pytest.mark.parametrize(
    ("error", "spent"),
    [
        (429, 0),
        (404, 0),
        (503, 0),
        (ConnectionRefusedError(), 0),
        (500, 1),
        (TimeoutError(), 1),
        (KeyError("of the caller, after the call"), 1),
    ],
)
def test_a_call_that_did_nothing_costs_nothing(
    store: Store, make_fleet: Callable[..., Fleet], error: int | Exception, spent: int
) -> None:
    fleet = make_fleet(DAILY)
    with pytest.raises((HTTPError, OSError, KeyError, BreakerOpenError)):
        fleet.breaker("mail").call(Service(error), "x")
    fleet.flush(final=True)
    assert usage(store).spent == spent


def test_a_call_that_is_refused_costs_nothing(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(DAILY)
    fleet.breaker("mail").open()
    assert calls(fleet) == 0
    fleet.breaker("mail").close()
    assert calls(fleet) == 6


def test_what_came_back_after_midnight_is_not_spent_again(
    clock: Clock, make_fleet: Callable[..., Fleet]
) -> None:
    fleet = make_fleet(DAILY)

    def rejected_after_midnight() -> None:
        clock.time = MIDNIGHT + timedelta(seconds=1)
        fleet.breaker("mail").call(str.upper, "x")
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        fleet.breaker("mail").call(rejected_after_midnight)
    assert calls(fleet) == 5


def test_what_a_process_that_died_may_have_spent_counts(
    store: Store, clock: Clock, make_fleet: Callable[..., Fleet]
) -> None:
    SqlBackend(store).spend(DAILY, "dead", SpendRequest({}, BILLIONTH))  # and it never reports
    clock.advance(5 + 30 + 1)
    assert calls(make_fleet(DAILY)) == 5
    assert usage(store).campaigns == {"": 6}


def test_calls_cost_no_query_of_their_own(store: Store, make_fleet: Callable[..., Fleet]) -> None:
    budget = SpendingLimit(amount=10_000)
    fleet = make_fleet(DAILY.model_copy(update={"budget": budget}), ServicePolicy(name="maps"))
    assert calls(fleet, at_most=300) == 300
    statements: list[str] = []
    event.listen(store.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    assert calls(fleet, at_most=200) == 200
    assert len([each for each in statements if "INTO spending" in each]) <= 1
    assert calls(fleet, "maps", at_most=200) == 200


def test_a_person_may_let_calls_go_on(
    store: Store, clock: Clock, make_fleet: Callable[..., Fleet]
) -> None:
    fleet = make_fleet(DAILY)
    assert calls(fleet) == 6
    with store.begin() as conn:
        breakers.keep_closed(conn, clock(), "mail", actor="ann", until=clock.time + timedelta(1))
    fleet.refresh()
    assert calls(fleet, at_most=20) == 20
    fleet.flush(final=True)
    assert usage(store).spent == 26
    assert usage(store).left == 0


def test_without_enforcement_it_is_only_counted(
    store: Store, make_fleet: Callable[..., Fleet]
) -> None:
    fleet = make_fleet(DAILY.model_copy(update={"enforce": False}))
    assert calls(fleet, at_most=20) == 20
    fleet.flush(final=True)
    assert usage(store).spent == 20


def test_what_the_service_says_is_left_counts(
    store: Store, make_fleet: Callable[..., Fleet]
) -> None:
    fleet = make_fleet(DAILY)
    assert calls(fleet, at_most=1) == 1
    fleet.flush(final=True)
    with store.begin() as conn:
        assert budgets.set_balance(conn, store, DAILY, 3 * BILLIONTH) is None
    assert usage(store).left == 3, "somebody else has spent two"
    assert calls(fleet) == 3
    with store.begin() as conn:
        budgets.set_balance(conn, store, DAILY, 100 * BILLIONTH)
    assert usage(store).left == 2, "never more than the budget"


def test_the_balance_goes_down_until_the_service_is_asked_again(
    store: Store, clock: Clock, make_fleet: Callable[..., Fleet]
) -> None:
    with store.begin() as conn:
        budgets.set_balance(conn, store, DAILY, 8 * BILLIONTH)
    fleet = make_fleet(DAILY)
    assert calls(fleet) == 6
    clock.time = MIDNIGHT + timedelta(seconds=1)
    assert calls(fleet) == 2, "the account is empty"
    assert usage(store).left == 0


class Severed:
    """A backend that can be cut off."""

    shared = False  # without a watcher, which would find the store again

    def __init__(self, backend: SqlBackend) -> None:
        self.backend, self.cut = backend, False

    def is_unreachable(self, error: Exception) -> bool:
        return isinstance(error, ConnectionError)

    def __getattr__(self, name: str) -> Any:
        if self.cut:
            raise ConnectionError("gone")
        return getattr(self.backend, name)


def test_without_the_store_a_process_spends_what_was_left_and_reports_it_later(
    store: Store, clock: Clock
) -> None:
    line = Severed(SqlBackend(store))
    line.clock = clock  # type: ignore[attr-defined] -- as a backend has it
    fleet = Fleet(line, [DAILY])  # type: ignore[arg-type] -- by getattr
    assert calls(fleet, at_most=2) == 2
    fleet.flush(final=True)
    line.cut = True
    assert calls(fleet) == 4
    assert fleet.snapshot().degraded
    assert usage(store).spent == 2
    line.cut = False
    fleet.state.recover()
    fleet.flush(final=True)
    assert usage(store).spent == 6
    fleet.close()


def test_old_spending_is_deleted(
    store: Store, clock: Clock, make_fleet: Callable[..., Fleet]
) -> None:
    assert calls(make_fleet(DAILY), at_most=2) == 2
    clock.advance(40 * 86400)
    fleet = make_fleet(DAILY)
    assert calls(fleet, at_most=3) == 3
    fleet.flush(final=True)
    prune(store, clock(), Keep(spending=timedelta(days=35)), batches=50)
    with store.read() as conn:
        assert [row.amount for row in budgets.history(conn, "mail", 10)] == [3]
    with pytest.raises(ValueError, match="a budget may count for a month"):
        Keep(spending=timedelta(hours=1))
