"""What is known of a deployment: what `gather` reads, and the checks judge."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from packaging.specifiers import SpecifierSet

from dagster_tidegate.breaker.policy import adopted_pools
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.dagster_api.deployment import Daemon, InstanceSettings
from dagster_tidegate.dagster_api.locations import LocationCode, OpCode
from dagster_tidegate.pools import Adopted, merged


@dataclass(frozen=True)
class Version:
    """An installed version, and the versions that this package supports."""

    installed: str
    supported: str

    @property
    def fits(self) -> bool:
        """Whether it is supported."""
        return SpecifierSet(self.supported).contains(self.installed, prereleases=True)


@dataclass(frozen=True)
class StoreFacts:
    """Facts about the store.

    Attributes:
        url: Its URL, without the password.
        error: Why it can't be read, or None.
        refusal: Why this version can't use it, or None.
        situation: The situation; None if it can't be read.
        called: Services with recent calls.
    """

    url: str
    error: str | None = None
    refusal: str | None = None
    situation: Situation | None = None
    called: frozenset[str] = frozenset()

    @property
    def locations(self) -> frozenset[str]:
        """The code locations that it has campaigns or heartbeats of."""
        if self.situation is None:
            return frozenset()
        return frozenset(
            {
                *(each.spec.location for each in self.situation.campaigns.values()),
                *(each.location for each in self.situation.heartbeats),
            }
        )


@dataclass(frozen=True)
class Facts:
    """Facts about a deployment.

    Attributes:
        dagster: Dagster's version in this environment.
        enabled: `TIDEGATE_ENABLED` in this process.
        instance_error: Why the Dagster instance can't be read, or None.
        settings: The instance's settings; None if it can't be read.
        daemons: The daemons that the instance needs.
        workspace_error: Why the workspace can't be read, or None.
        code_options: Options by which Dagster's commands find the same code.
        services: Names of all services with a policy or a breaker.
    """

    now: datetime
    python: Version
    dagster: Version
    enabled: bool
    store: StoreFacts
    instance_error: str | None = None
    settings: InstanceSettings | None = None
    daemons: Sequence[Daemon] = ()
    workspace_error: str | None = None
    code_options: str = ""
    locations: Sequence[LocationCode] = ()
    services: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        services = {name for location in self.locations for name in location.policies}
        if self.store.situation is not None:
            services |= set(self.store.situation.breakers)
        object.__setattr__(self, "services", frozenset(services))

    @property
    def adopted(self) -> Adopted:
        """The services that pools stand for whose names don't say it."""
        return merged(adopted_pools(each.policies.values()) for each in self.locations)

    @property
    def ops(self) -> Iterator[tuple[LocationCode, str, OpCode]]:
        """Each op of each job, with its location and job."""
        for location in self.locations:
            for job, ops in location.jobs.items():
                for op in ops:
                    yield location, job, op

    def is_campaign(self, job: str) -> bool:
        """Whether a job is a campaign."""
        return self.store.situation is not None and job in self.store.situation.campaigns

    def lacks_campaigns(self, location: LocationCode) -> bool:
        """Whether a code location has a gate, which has registered no campaigns."""
        return bool(location.sensors) and location.error is None and not self.registered(location)

    def registered(self, location: LocationCode) -> bool:
        """Whether the gate of a code location has registered campaigns."""
        situation = self.store.situation
        return situation is not None and any(
            campaign.spec.location == location.name for campaign in situation.campaigns.values()
        )
