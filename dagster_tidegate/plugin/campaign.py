"""Campaigns: Dagster jobs that pause and resume with the services that they need."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import dagster as dg

from dagster_tidegate.breaker.policy import ServicePolicy, adopted_pools
from dagster_tidegate.dagster_api.lineage import campaign_name
from dagster_tidegate.dagster_api.locations import PART_TAG
from dagster_tidegate.dagster_api.repository import (
    IMPLICIT_JOB,
    AssetJob,
    Repository,
    is_generated,
)
from dagster_tidegate.pools import Adopted, needs
from dagster_tidegate.store.campaigns import CampaignSpec, CatchUp
from dagster_tidegate.store.tokens import MAX_NAME
from dagster_tidegate.text import checked, did_you_mean

ASSETS = IMPLICIT_JOB
"""As the job of a `Campaign`: what "Materialize", asset backfills and automation run."""


@dataclass(frozen=True)
class Campaign:
    """A Dagster job that pauses when a service that it needs fails, and resumes when it recovers.

    The job stays an ordinary Dagster job. The pools of its ops and assets declare which services it
    needs, see `pool`. Schedules that start it are detected automatically.

    Args:
        job: The job, one made by `dg.define_asset_job`, or the name of either; `ASSETS` for the
            assets that run outside of a job of their own.
        catch_up: Which schedule ticks that it missed while paused are run later: none, the
            latest, the latest of each time partition, or all. None: `CatchUp.PARTITIONS` if the
            job has time partitions, and otherwise `CatchUp.NONE`.
        triggers: Sensors that start its runs, or their names; stopped while it is paused.
        priority: Campaigns of higher priority resume first, and call first within a limit.
        max_ticks: Maximum number of missed ticks of a schedule that are run, the newest.
        owners: Names of the API tokens that may control it, besides administrators. Empty: every
            operator may.

    Raises:
        ValueError: If `max_ticks` is less than 1, or an owner is not a valid token name.

    Example:
        >>> @dg.op(pool="instantly")
        ... def send(): ...
        >>> @dg.job
        ... def outreach():
        ...     send()
        >>> Campaign(job=outreach, catch_up=CatchUp.LATEST).name
        'outreach'
    """

    job: dg.JobDefinition | AssetJob | str
    catch_up: CatchUp | None = None
    triggers: Sequence[dg.SensorDefinition | str] = ()
    priority: int = 0
    max_ticks: int = 100
    owners: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.max_ticks < 1:
            raise ValueError(f"max_ticks of {self.name} is {self.max_ticks}: use 1 or more")
        if isinstance(self.owners, str):
            raise ValueError(f"owners of {self.name} is {self.owners!r}: use a list of names")
        for owner in self.owners:
            checked(owner, f"owner of {self.name}", MAX_NAME)

    @property
    def name(self) -> str:
        """Name of the job."""
        return self.job if isinstance(self.job, str) else self.job.name

    def spec(self, repository: Repository, adopted: Adopted) -> CampaignSpec:
        """Return what the gate needs to know about the campaign.

        Args:
            adopted: The services that pools stand for whose names don't say it.

        Raises:
            ValueError: If the repository has no such job, or no sensor of a name in `triggers`.
        """
        definition = repository.definition
        if not definition.has_job(self.name):
            raise ValueError(
                f"campaign {self.name}: repository {definition.name} has no such job; add the job "
                "to the Definitions too"
            )
        triggers = {
            repository.trigger(schedule)
            for schedule in definition.schedule_defs
            if schedule.job_name == self.name
        }
        for trigger in self.triggers:
            name = trigger if isinstance(trigger, str) else trigger.name
            if not definition.has_sensor_def(name):
                raise ValueError(
                    f"campaign {self.name}: repository {definition.name} has no sensor {name!r}"
                )
            triggers.add(repository.trigger(definition.get_sensor_def(name)))
        by_default = CatchUp.PARTITIONS if repository.has_windows(self.name) else CatchUp.NONE
        ops = dict(_pools(definition.get_job(self.name).graph))
        assets = repository.assets_by_node(self.name)
        return CampaignSpec(
            name=campaign_name(self.name, repository.location),
            location=repository.location,
            catch_up=by_default if self.catch_up is None else self.catch_up,
            max_ticks=self.max_ticks,
            priority=self.priority,
            ops=ops,
            assets={op: names for op in ops if (names := assets.get(op.partition(".")[0]))},
            adopted={pool: adopted[pool] for pool in ops.values() if pool in adopted},
            triggers=tuple(sorted(triggers)),
            owners=frozenset(self.owners),
        )


@dataclass(frozen=True)
class AllCampaigns:
    """The campaigns of a code location: each job that needs a service.

    A sensor is a trigger of the campaigns that it starts, unless it starts other jobs too, or
    selects assets as automation does. Then it keeps running, and its runs wait in the queue.

    Attributes:
        stated: What can't be inferred about some of them.
        jobs: Names of the jobs that may be among them.
    """

    stated: Sequence[Campaign] = ()
    jobs: Collection[str] = ()

    def specs(
        self, repository: Repository, policies: Mapping[str, ServicePolicy]
    ) -> Sequence[CampaignSpec]:
        """Return what the gate needs to know about each campaign.

        Raises:
            ValueError: If one is stated that the repository has no job of.
        """
        definition = repository.definition
        adopted = adopted_pools(policies.values())
        jobs = {job.name: job for job in definition.get_all_jobs()}
        stated = {campaign.name: campaign for campaign in self.stated}
        check_jobs(stated, jobs)
        campaigns = {}
        for name, job in jobs.items():
            needed = [needs(pool, policies, adopted) for _, pool in _pools(job.graph)]
            if name in stated or any(need.services or need.campaign == name for need in needed):
                campaigns[name] = stated.get(name, Campaign(job=name))
        for sensor in definition.sensor_defs:
            targets = {target.job_name for target in sensor.targets}
            if PART_TAG in sensor.tags or not targets or not targets <= campaigns.keys():
                continue
            for name in targets:
                triggers = [*campaigns[name].triggers, sensor]
                campaigns[name] = replace(campaigns[name], triggers=triggers)
        return [campaign.spec(repository, adopted) for campaign in campaigns.values()]


def check_jobs(stated: Collection[str], jobs: Collection[str]) -> None:
    """Check that the jobs of some campaigns exist.

    Raises:
        ValueError: If not; the message has the names of those that do.
    """
    known = sorted(name for name in jobs if not is_generated(name))
    for name in stated:
        if name not in jobs:
            names = ", ".join(known) or "none"
            hint = did_you_mean(name, known, "check its name")
            raise ValueError(f"campaigns: there is no job {name!r}: {hint} The jobs are: {names}")


def _pools(graph: dg.GraphDefinition, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path in the job and the pool of each op that has one."""
    for node in graph.nodes:
        definition = node.definition
        if isinstance(definition, dg.GraphDefinition):
            yield from _pools(definition, f"{path}{node.name}.")
        elif isinstance(definition, dg.OpDefinition) and definition.pool is not None:
            yield f"{path}{node.name}", definition.pool
