"""Holds: reasons why something must not run. Pure; `store.holds` stores them."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING

from dagster_tidegate.pools import check_service_name, with_wholes
from dagster_tidegate.text import MAX_NAME, MAX_PART, utc, words

if TYPE_CHECKING:
    from dagster_tidegate.breaker.state_machine import BreakerStatus


class TargetKind(StrEnum):
    """What a hold can be placed on."""

    SERVICE = "service"
    CAMPAIGN = "campaign"
    CAMPAIGN_RUN = "campaign_run"
    EVERYTHING = "everything"


class HoldSource(StrEnum):
    """Who placed a hold: the breaker of a service, or an operator."""

    BREAKER = "breaker"
    OPERATOR = "operator"


class SystemActor(StrEnum):
    """Actors in the audit log that are not people; no token may have such a name."""

    ANONYMOUS = "anonymous"  # no name was given
    BREAKER = "breaker"
    DAGSTER = "dagster"
    EXPIRY = "expiry"
    GATE = "gate"
    WINDOW = "window"  # a maintenance window of a service


@dataclass(frozen=True)
class Target:
    """What a hold is placed on.

    Attributes:
        name: Name of the service or campaign, `campaign/partition` for a campaign run, and an
            empty string for everything.
    """

    kind: TargetKind
    name: str = ""

    @property
    def key(self) -> str:
        """Kind and name in one string, as the audit log names a hold."""
        return f"{self.kind} {self.name}".rstrip()

    def __str__(self) -> str:
        return f"{words(self.kind)} {self.name}".rstrip()


EVERYTHING = Target(TargetKind.EVERYTHING)


def named(kind: TargetKind, name: str) -> Target:
    """Return the target with a kind and a name.

    Raises:
        ValueError: If nothing of this kind can have the name.

    Example:
        >>> named(TargetKind.CAMPAIGN, "outreach/leads-1")
        Traceback (most recent call last):
        ...
        ValueError: outreach/leads-1 is a campaign run, not a campaign
    """
    if kind is TargetKind.EVERYTHING and name:
        raise ValueError("everything takes no name")
    if kind is not TargetKind.EVERYTHING and not name:
        raise ValueError(f"name the {words(kind)}")
    longest = MAX_NAME if kind is TargetKind.CAMPAIGN_RUN else MAX_PART
    if len(name) > longest:
        raise ValueError(
            f"the name of a {words(kind)} has at most {longest} characters, not {len(name)}"
        )
    if kind is TargetKind.CAMPAIGN_RUN and not all(name.partition("/")):
        raise ValueError(f"{name!r} is not a campaign run: use campaign/partition")
    if kind is TargetKind.SERVICE:
        check_service_name(name)
    if kind is TargetKind.CAMPAIGN and "/" in name:
        raise ValueError(f"{name} is a campaign run, not a campaign")
    return Target(kind, name)


@dataclass(frozen=True)
class Hold:
    """A reason why something must not run. Times are UTC."""

    id: int
    target: Target
    source: HoldSource
    reason: str
    actor: str
    placed_at: datetime
    expires_at: datetime | None = None
    released_at: datetime | None = None
    released_by: str | None = None

    @property
    def target_kind(self) -> TargetKind:
        """Kind of the target."""
        return self.target.kind

    @property
    def target_name(self) -> str:
        """Name of the target."""
        return self.target.name

    @property
    def is_of_window(self) -> bool:
        """Whether it is that of a maintenance window; to workers, it is like an operator's."""
        return self.source is HoldSource.OPERATOR and self.actor == SystemActor.WINDOW

    def live(self, now: datetime) -> bool:
        """Return whether the hold is in effect at `now`."""
        return self.released_at is None and (self.expires_at is None or now < self.expires_at)


def run_name(campaign: str, partition: str) -> str:
    """Return the name of a campaign run: `campaign/partition`.

    Args:
        partition: Its name within the campaign, from `part_name`.
    """
    return f"{campaign}/{partition}"


def part_name(partition: str, assets: Collection[str] = ()) -> str:
    """Return the name of a campaign run within its campaign: its partition and its assets.

    Args:
        partition: Dagster's partition key, or the id of the first run if there is none.
        assets: The assets that it covers; empty: all of its job.

    Example:
        >>> part_name("2026-03-01"), part_name("2026-03-01", ["mails", "crm/leads"])
        ('2026-03-01', '2026-03-01@crm/leads+mails')
    """
    name = f"{partition}@{'+'.join(sorted(assets))}" if assets else partition
    is_ambiguous = assets and any("@" in text or "+" in text for text in (partition, *assets))
    if len(name) <= MAX_PART and not is_ambiguous:
        return name
    identity = json.dumps([partition, *sorted(assets)])
    return f"{name[: MAX_PART - 17]}~{sha256(identity.encode()).hexdigest()[:16]}"


def in_effect(holds: Iterable[Hold], now: datetime) -> list[Hold]:
    """Return the holds that are live at a time (UTC), oldest first."""
    live = [hold for hold in holds if hold.live(now)]
    return sorted(live, key=lambda hold: (hold.placed_at, hold.id))


def covering(
    holds: Iterable[Hold],
    now: datetime,
    *,
    services: Collection[str] = (),
    campaign: str | None = None,
    partition: str | None = None,
) -> list[Hold]:
    """Return the live holds that cover something, oldest first. It is paused if there are any.

    Args:
        now: The time (UTC).
        services: The services that it needs; for a part, also the service it belongs to counts.
    """
    targets = targets_of(services=services, campaign=campaign, partition=partition)
    return in_effect((hold for hold in holds if hold.target in targets), now)


def held_services(holds: Iterable[Hold]) -> frozenset[str]:
    """Return the names of the services that have a hold of their own."""
    return frozenset(hold.target.name for hold in holds if hold.target.kind is TargetKind.SERVICE)


def targets_of(
    *, services: Collection[str] = (), campaign: str | None = None, partition: str | None = None
) -> set[Target]:
    """Return the targets whose holds cover something; arguments as in `covering`."""
    needed = with_wholes(services)
    targets = {EVERYTHING, *(Target(TargetKind.SERVICE, name) for name in needed)}
    if campaign is not None:
        targets.add(Target(TargetKind.CAMPAIGN, campaign))
        if partition is not None:
            targets.add(Target(TargetKind.CAMPAIGN_RUN, run_name(campaign, partition)))
    return targets


_RESUMES = "; resumes "


def describe(held: Collection[Hold], breakers: "Mapping[str, BreakerStatus]") -> str:
    """Return why something is paused, given the live holds that cover it; at least one.

    For example `instantly is open (503 x5); resumes automatically`.

    Args:
        breakers: The breakers by name of their service, to say what ends their holds.
    """
    of_breakers = [hold for hold in held if hold.source is HoldSource.BREAKER]
    known = [breakers[hold.target.name] for hold in of_breakers if hold.target.name in breakers]
    remedies = [breaker.remedy for breaker in known if breaker.remedy]
    on_trial = any(breaker.is_half_open for breaker in known)
    is_open_ended = any(not hold.expires_at for hold in held if hold not in of_breakers)
    conditions = [
        *(["released"] if is_open_ended else []),
        *([f"repaired ({'; '.join(map(repr, remedies))})"] if remedies else []),
        *(["trial calls succeed"] if on_trial else []),
    ]
    when = f"when {' and '.join(conditions)}" if conditions else "automatically"
    return f"{reasons(held, breakers)}{_RESUMES}{when}"


def reasons(held: Iterable[Hold], breakers: "Mapping[str, BreakerStatus]") -> str:
    """Return why something is paused, without when it resumes: see `describe`."""
    return "; ".join(_reason(hold, breakers.get(hold.target.name)) for hold in held)


def without_gate(why: str, campaign: str) -> str:
    """Return why something is paused whose campaign no gate knows, so that nothing resumes it.

    Example:
        >>> without_gate("mailer is open (503 x5); resumes automatically", "letters")
        "mailer is open (503 x5); resumes only once a gate knows the campaign letters: \
see 'tidegate doctor'"
    """
    cause = why.rpartition(_RESUMES)[0] or why
    return f"{cause}{_RESUMES}only once a gate knows the campaign {campaign}: see 'tidegate doctor'"


def _reason(hold: Hold, breaker: "BreakerStatus | None") -> str:
    if hold.is_of_window:
        until = "" if hold.expires_at is None else f" until {utc(hold.expires_at)}"
        return f"{hold.target.name} is in a maintenance window{until} ({hold.reason})"
    if hold.source is not HoldSource.BREAKER:
        return f"{hold.target} is held by {hold.actor} ({hold.reason})"
    name = hold.target.name
    if breaker is not None and breaker.is_denied:
        return f"{name} refuses this client ({hold.reason})"
    if breaker is not None and (until := breaker.throttled_until) is not None:
        return f"{name} is throttled until {utc(until)} ({hold.reason})"
    state = "half open" if breaker is not None and breaker.is_half_open else "open"
    return f"{name} is {state} ({hold.reason})"
