"""Asks services what they have left, and lets those go on whose budgets are no longer used up."""

import json
import logging
import time
import urllib.request
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any
from urllib.parse import unquote, urldefrag

from dagster_tidegate.breaker.budget import MAX_AMOUNT, billionths, written
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.judge import function_of
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.question import Question
from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.store import budgets
from dagster_tidegate.store.budgets import BudgetUsage
from dagster_tidegate.store.database import Store

EVERY_S = 60.0
"""How often a service is asked what it has left."""
MAX_BODY = 100_000
log = logging.getLogger(__name__)


class BudgetCheck:
    """Looks at the budgets of a code location at each tick of its gate. Keep one per process."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._asking: dict[str, Question[int]] = {}

    def __call__(self, store: Store, fleet: Fleet) -> list[str]:
        """Ask what is left where it is time, and half open the breakers that may go on.

        Returns:
            What was done, for people.
        """
        policies = [policy for policy in fleet.policies.values() if policy.budget is not None]
        if not policies or not fleet.enabled:
            return []
        with store.read() as conn:
            usages = budgets.read(conn, store.now(conn))
        done = []
        for policy in policies:
            usage, breaker = usages.get(policy.name), fleet.snapshot().services[policy.name]
            if usage is None or not _is_of(usage, policy):
                with store.begin() as conn:
                    budgets.declare(conn, policy)
            was_asked_at = None if usage is None else usage.balance_at
            if (left := self._balance(policy)) is not None:
                with store.begin() as conn:
                    former = budgets.set_balance(conn, store, policy, left)
                if is_topped_up(breaker, left, former, was_asked_at):
                    fleet.breaker(policy.name).half_open()
                    done.append(f"{policy.name} has {written(left)} left: a trial call is made")
            if breaker.throttled_until and breaker.used_up == "budget":
                with store.read() as conn:
                    usage = budgets.read(conn, store.now(conn))[policy.name]
                if usage.left > 0 and (isinstance(policy.cost, str) or usage.left >= policy.cost):
                    fleet.breaker(policy.name).half_open()
                    done.append(f"the budget of {policy.name} is no longer used up")
        return done

    def _balance(self, policy: ServicePolicy) -> int | None:
        """Return what a service says is left, if it is time to ask and it answers in time."""
        assert policy.budget is not None
        name, source = policy.name, policy.budget.balance
        if source is None or time.monotonic() < self._due.get(name, 0.0):
            return None
        self._due[name] = time.monotonic() + EVERY_S
        if name in self._asking and self._asking[name].is_pending:
            return None  # it still waits for the last answer
        timeout_s = policy.probe_timeout_s
        question = self._asking[name] = Question(partial(_ask, source, timeout_s))
        answer = question.answer(timeout_s)
        if isinstance(answer, Exception):
            log.warning("The balance of %s could not be read: %r", name, answer)
            return None
        return answer


def is_topped_up(
    breaker: BreakerStatus, left: int, former: int | None, was_asked_at: datetime | None
) -> bool:
    """Return whether a service that denies this client may accept it again. Pure.

    Its balance alone is no proof: the key may be revoked. So it is tried once after the denial, and
    again each time that there is more than before.

    Args:
        left, former: What the service says is left now, and what it said when it was last asked.
    """
    if not breaker.is_denied or not left:
        return False
    return (
        former is None
        or was_asked_at is None
        or was_asked_at < breaker.changed_at
        or (left > former)
    )


def number_in(body: str, pointer: str) -> int:
    """Return the number of an answer in billionths. Pure.

    Args:
        pointer: Where it is, as a JSON pointer; empty: the body is the number.

    Raises:
        ValueError, LookupError, ArithmeticError: If there is none.

    Example:
        >>> number_in('{"data": {"left": "12.5"}}', "/data/left")
        12500000000
    """
    value: Any = json.loads(body, parse_float=Decimal)
    for key in pointer.split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        value = value[int(key)] if isinstance(value, list) else value[key]
    return _bounded(value)


def _bounded(value: object) -> int:
    """What is left is no less than nothing, and no more than can be spent."""
    return billionths(min(max(Decimal(str(value)), Decimal(0)), Decimal(MAX_AMOUNT)))


def _ask(source: str, timeout_s: float) -> int:
    if source.startswith(("http://", "https://")):
        url, pointer = urldefrag(source)
        request = urllib.request.Request(url, headers={"User-Agent": "tidegate"})
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return number_in(response.read(MAX_BODY).decode(), unquote(pointer))
    ask: Callable[[], object] = function_of(source, "balance")
    return _bounded(ask())


def _is_of(usage: BudgetUsage, policy: ServicePolicy) -> bool:
    fields = ("amount", "per", "unit", "timezone")
    return all(getattr(usage, name) == getattr(policy.budget, name) for name in fields)
