"""Holds: the reasons why something may not run. Pure; `store.holds` keeps them."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class TargetKind(StrEnum):
    """What a hold may be placed on."""

    SERVICE = "service"
    CAMPAIGN = "campaign"
    CAMPAIGN_RUN = "campaign_run"
    EVERYTHING = "everything"


class HoldSource(StrEnum):
    """Who may place a hold: the breaker of a service, or a person."""

    BREAKER = "breaker"
    OPERATOR = "operator"


class SystemActor(StrEnum):
    """Who changes things and is no person, in what is recorded; no person may have such a name."""

    ANONYMOUS = "anonymous"  # who did not say
    BREAKER = "breaker"
    DAGSTER = "dagster"
    EXPIRY = "expiry"
    GATE = "gate"
    UP = "tidegate up"


@dataclass(frozen=True)
class Target:
    """What a hold is placed on.

    Attributes:
        kind: Kind of the target.
        name: Name of the service or campaign, `campaign/partition` of a campaign run, and the
            empty string for everything.
    """

    kind: TargetKind
    name: str = ""

    @property
    def key(self) -> str:
        """What the store has in its place where a target is one word of many."""
        return f"{self.kind} {self.name}".rstrip()

    def __str__(self) -> str:
        """Return it for people."""
        return f"{self.kind.replace('_', ' ')} {self.name}".rstrip()


EVERYTHING = Target(TargetKind.EVERYTHING)


def named(kind: TargetKind, name: str) -> Target:
    """Return the target that a person names.

    Args:
        kind: Kind of the target.
        name: Its name, as `Target` has it.

    Raises:
        ValueError: If nothing of this kind can have the name.

    Example:
        >>> named(TargetKind.CAMPAIGN, "outreach/leads-1")
        Traceback (most recent call last):
        ...
        ValueError: no campaign has a '/' in its name: outreach/leads-1 names a campaign run
    """
    if kind is TargetKind.EVERYTHING and name:
        raise ValueError("everything takes no name")
    if kind is not TargetKind.EVERYTHING and not name:
        raise ValueError(f"name the {kind.replace('_', ' ')}")
    if kind is TargetKind.CAMPAIGN_RUN and not all(name.partition("/")):
        raise ValueError(f"{name!r} names no campaign run: say campaign/partition")
    if kind is TargetKind.CAMPAIGN and "/" in name:
        raise ValueError(f"no campaign has a '/' in its name: {name} names a campaign run")
    return Target(kind, name)


@dataclass(frozen=True)
class Hold:
    """A reason why something may not run. Times are UTC."""

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

    def live(self, now: datetime) -> bool:
        """Return whether the hold still holds at `now`."""
        return self.released_at is None and (self.expires_at is None or now < self.expires_at)


def run_name(campaign: str, partition: str) -> str:
    """Return the name of a campaign run, as a hold's target has it: `campaign/partition`."""
    return f"{campaign}/{partition}"


def covering(
    holds: Iterable[Hold],
    now: datetime,
    *,
    services: Collection[str] = (),
    campaign: str | None = None,
    partition: str | None = None,
) -> list[Hold]:
    """Return the live holds that cover a thing, the oldest first.

    Args:
        holds: Holds to look through.
        now: The time, UTC.
        services: Names of the services that the thing needs.
        campaign: Name of its campaign, if it has one.
        partition: Its partition, if it is a campaign run.

    Returns:
        The answer to "why is this paused?"; empty if it is not.
    """
    targets = targets_of(services=services, campaign=campaign, partition=partition)
    found = [hold for hold in holds if hold.target in targets and hold.live(now)]
    return sorted(found, key=lambda hold: (hold.placed_at, hold.id))


def targets_of(
    *, services: Collection[str] = (), campaign: str | None = None, partition: str | None = None
) -> set[Target]:
    """Return the targets of the holds that cover a thing; the arguments are those of `covering`."""
    targets = {EVERYTHING, *(Target(TargetKind.SERVICE, name) for name in services)}
    if campaign is not None:
        targets.add(Target(TargetKind.CAMPAIGN, campaign))
        if partition is not None:
            targets.add(Target(TargetKind.CAMPAIGN_RUN, run_name(campaign, partition)))
    return targets


def describe(held: Collection[Hold]) -> str:
    """Return why something is paused, in one sentence for people.

    Args:
        held: The live holds that cover it; at least one.

    Returns:
        For example `instantly is open (503 x5); resumes by itself`.
    """
    reasons = "; ".join(
        f"{hold.target.name} is open ({hold.reason})"
        if hold.source is HoldSource.BREAKER
        else f"{hold.target} is held by {hold.actor} ({hold.reason})"
        for hold in held
    )
    by_itself = all(hold.source is HoldSource.BREAKER or hold.expires_at for hold in held)
    return f"{reasons}; resumes {'by itself' if by_itself else 'when released'}"
