"""What the pages show of services: a row each, and everything about one."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.control import report_reader
from dagster_tidegate.control.effects import if_held, in_words
from dagster_tidegate.control.report import period
from dagster_tidegate.control.report_models import ServiceReport
from dagster_tidegate.control.service_state import STATUSES, ServiceState, service_state
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.control.why import Explanation, why
from dagster_tidegate.holds import Hold, Target, TargetKind
from dagster_tidegate.pools import whole_of
from dagster_tidegate.store import history, service_stats
from dagster_tidegate.store.budgets import BudgetUsage
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.history import Event
from dagster_tidegate.store.service_stats import Calls, ServiceStats
from dagster_tidegate.web.pages.rendering import without_command

EVENTS = 10


@dataclass(frozen=True)
class ServiceRow:
    """A service on a page.

    Attributes:
        calls: Its calls, by minute of the last hour, the oldest first.
    """

    name: str
    state: ServiceState
    calls: Sequence[Calls]
    campaigns: Sequence[str]
    breaker: BreakerStatus | None = None

    @property
    def held_by_people(self) -> bool:
        """Whether there is a hold to release."""
        return any(hold.target.name == self.name for hold in self.state.held_by)

    @property
    def verdicts(self) -> Mapping[VerdictKind, int]:
        """How many of its calls of the last hour had each verdict."""
        return service_stats.total(self.calls).verdicts


@dataclass(frozen=True)
class ServicePage:
    """Everything about a service.

    Attributes:
        parts: The parts of the service, or the service that it is a part of.
        policies: Its policy in each code location; None if the server loads no code.
        if_held: What a hold would do, in words.
        outages: Its outages of the last 30 days.
        windows: Its coming maintenance windows, in words.
        budget: How much of its budget is spent, if it has one.
        events: Its latest events, the newest first.
    """

    service: ServiceRow
    answer: Explanation
    numbers: ServiceStats
    holds: Sequence[Hold]
    owners: Collection[str]
    parts: Sequence[str]
    policies: Mapping[str, Sequence[tuple[str, Any, str]]] | None
    if_held: Sequence[str]
    outages: ServiceReport
    windows: Sequence[str]
    budget: BudgetUsage | None
    events: Sequence[Event] = field(default_factory=tuple)


def services(conn: Connection, situation: Situation) -> Sequence[ServiceRow]:
    """Return all services, those that need a look first."""
    calls = service_stats.last_hour(conn, situation.now)
    needed_by = _needed_by(situation)
    listed = [
        _service(situation, name, calls.get(name, ()), needed_by.get(name, ()))
        for name in situation.services
    ]
    return sorted(listed, key=lambda each: (STATUSES.index(each.state.status), each.name))


def service_page(
    conn: Connection,
    situation: Situation,
    name: str,
    policies: Mapping[str, ServicePolicy] | None,
) -> ServicePage:
    """Return everything about a service."""
    now, target = situation.now, Target(TargetKind.SERVICE, name)
    calls = service_stats.last_hour(conn, now).get(name, ())
    campaigns = _needed_by(situation).get(name, ())
    whole = whole_of(name)
    family = [each for each in situation.services if whole_of(each) == whole and each != name]
    return ServicePage(
        service=_service(situation, name, calls, campaigns),
        answer=why(situation, target),
        numbers=service_stats.read(conn, now).get(name, ServiceStats()),
        holds=[hold for hold in situation.holds if hold.target == target],
        owners={o for each in campaigns for o in situation.campaigns[each].spec.owners},
        parts=sorted(family),
        policies=None
        if policies is None
        else {location: described(policy) for location, policy in policies.items()},
        if_held=[
            without_command(in_words(each, target, situation.breakers))
            for each in if_held(situation, target)
        ],
        outages=report_reader.of_service(conn, name, *period(now, None, None)),
        windows=[window.announcement(now) for window in situation.windows_of(name)],
        budget=situation.budgets.get(name),
        events=history.read(conn, name=name, limit=EVENTS)[::-1],
    )


def described(policy: ServicePolicy) -> list[tuple[str, Any, str]]:
    """Return the settings of a policy that differ from the defaults or matter most, by name."""
    elsewhere = {"name", "windows", "budget"} | (set() if policy.budget else {"cost"})
    shown = policy.model_dump(exclude_none=True, exclude=elsewhere)
    fields = type(policy).model_fields
    return [
        (name, value, fields[name].description or "")
        for name, value in shown.items()
        if value not in ([], {}, "")
    ]


def _needed_by(situation: Situation) -> dict[str, list[str]]:
    needed: dict[str, list[str]] = {}
    for name, campaign in situation.campaigns.items():
        for service in campaign.services:
            needed.setdefault(service, []).append(name)
    return needed


def _service(
    situation: Situation, name: str, calls: Sequence[Calls], campaigns: Sequence[str]
) -> ServiceRow:
    return ServiceRow(
        name=name,
        state=service_state(situation, name),
        calls=calls,
        campaigns=campaigns,
        breaker=situation.breakers.get(name),
    )
