"""Names what the code no longer defines and nothing clears by itself. Pure."""

import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import timedelta

from dagster_tidegate.control.situation import Situation
from dagster_tidegate.holds import HoldSource
from dagster_tidegate.text import plural, utc, words

UNTRIED_AFTER = timedelta(minutes=2)
"""If a trial call has been due for longer, no gate is left to make it."""


@dataclass(frozen=True)
class Leftover:
    """Something that nothing clears by itself.

    Attributes:
        do: The command that clears it.
    """

    name: str
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.name} {self.what}: {self.do}"


def undefined_campaigns(situation: Situation) -> Iterator[Leftover]:
    """Yield the campaigns that no code location defines and that have paused runs."""
    for name, paused in sorted(situation.undefined.items()):
        yield Leftover(
            name,
            f"has {plural(paused, 'paused run')} that nothing resumes, because no gate knows the "
            "campaign (if its job still exists, use build_definitions)",
            f"tidegate runs cancel {shlex.quote(name)}",
        )


def abandoned_services(
    situation: Situation, policies: Collection[str] | None = None
) -> Iterator[Leftover]:
    """Yield the services that a breaker holds and that nothing can try.

    Args:
        policies: Names of all services that have a policy; None if that is unknown.
    """
    held = {h.target.name for h in situation.holds if h.source is HoldSource.BREAKER}
    for name in sorted(held & situation.breakers.keys()):
        if (what := _why_abandoned(situation, name, policies)) is not None:
            do = f"tidegate release service {shlex.quote(name)} --force"
            yield Leftover(name, what, do)


def _why_abandoned(situation: Situation, name: str, policies: Collection[str] | None) -> str | None:
    breaker = situation.breakers[name]
    state = words(breaker.state)
    if policies is not None and name not in policies:
        return f"is {state}, and no code location has a policy for it"
    if breaker.changed_at > situation.now - UNTRIED_AFTER:
        return None
    if breaker.is_half_open:
        if any(name in campaign.services for campaign in situation.campaigns.values()):
            return None
        return f"has been half open since {utc(breaker.changed_at)}, and no campaign needs it"
    gate_works = situation.enabled and not situation.stale_gates()
    if policies is None and gate_works and breaker.due(situation.now - UNTRIED_AFTER):
        due = f"since {utc(breaker.open_until)}" if breaker.open_until else "long"
        return f"is open, has been due for a trial call {due}, and no gate makes it"
    return None


def leftovers(situation: Situation) -> list[Leftover]:
    """Return everything that the code no longer defines and nothing clears by itself."""
    return [*undefined_campaigns(situation), *abandoned_services(situation)]
