"""Campaigns: Dagster jobs that pause and resume with the services that they need."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import dagster as dg

from dagster_tidegate.dagster_api.repository import AssetJob, Repository
from dagster_tidegate.store.campaigns import CampaignSpec, CatchUp
from dagster_tidegate.store.tokens import MAX_NAME
from dagster_tidegate.text import checked


@dataclass(frozen=True)
class Campaign:
    """A Dagster job that pauses when a service that it needs fails, and resumes when it recovers.

    The job stays an ordinary Dagster job. The pools of its ops declare which services it needs,
    see `pool`. Schedules that start it are detected automatically.

    Args:
        job: The job, or one made by `dg.define_asset_job`.
        catch_up: Which schedule ticks that it missed while paused are run later: none, the
            latest, or all (the newest `max_ticks`).
        triggers: Sensors that start its runs, or their names; stopped while it is paused.
        priority: Campaigns of higher priority resume first.
        max_ticks: Maximum number of missed ticks of a schedule that `CatchUp.ALL` runs.
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

    job: dg.JobDefinition | AssetJob
    catch_up: CatchUp = CatchUp.NONE
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
        """Name of the campaign: that of the job."""
        return self.job.name

    def spec(self, repository: Repository) -> CampaignSpec:
        """Return what the gate needs to know about the campaign.

        Raises:
            ValueError: If the repository has no such job, or no sensor of a name in `triggers`.
        """
        definition = repository.definition
        if not definition.has_job(self.name):
            raise ValueError(
                f"campaign {self.name}: repository {definition.name} has no such job; add the job "
                "to the Definitions too"
            )
        triggers = [
            repository.trigger(schedule)
            for schedule in definition.schedule_defs
            if schedule.job_name == self.name
        ]
        for trigger in self.triggers:
            name = trigger if isinstance(trigger, str) else trigger.name
            if not definition.has_sensor_def(name):
                raise ValueError(
                    f"campaign {self.name}: repository {definition.name} has no sensor {name!r}"
                )
            triggers.append(repository.trigger(definition.get_sensor_def(name)))
        return CampaignSpec(
            name=self.name,
            location=repository.location,
            catch_up=self.catch_up,
            max_ticks=self.max_ticks,
            priority=self.priority,
            ops=dict(_pools(definition.get_job(self.name).graph)),
            triggers=tuple(sorted(triggers)),
            owners=frozenset(self.owners),
        )


def _pools(graph: dg.GraphDefinition, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path in the job and the pool of each op that has one."""
    for node in graph.nodes:
        definition = node.definition
        if isinstance(definition, dg.GraphDefinition):
            yield from _pools(definition, f"{path}{node.name}.")
        elif isinstance(definition, dg.OpDefinition) and definition.pool is not None:
            yield f"{path}{node.name}", definition.pool
