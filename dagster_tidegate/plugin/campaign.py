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
    """A Dagster job that pauses when a service it needs fails, and goes on when it recovers.

    The job stays an ordinary Dagster job. Which services it needs is said by the pools of its
    ops, see `pool`. Its schedules are found by themselves.

    Args:
        job: The job, also one made by `dg.define_asset_job`.
        catch_up: What becomes of the schedule ticks that it missed while it was paused: nothing,
            the latest one is run, or all are (the newest `most_ticks`).
        triggers: Sensors that start its runs, or their names; they stop while it is paused.
        priority: Campaigns of higher priority resume first.
        most_ticks: How many missed ticks of a schedule are run at most with `CatchUp.ALL`.
        owners: Names of the API tokens that may steer it besides administrators'; none: those of
            every operator may.

    Raises:
        ValueError: If `most_ticks` is less than 1, or an owner's name can't be a token's.

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
    most_ticks: int = 100
    owners: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.most_ticks < 1:
            raise ValueError(f"most_ticks of {self.name} is {self.most_ticks}: use 1 or more")
        if isinstance(self.owners, str):
            raise ValueError(f"owners of {self.name} is {self.owners!r}: use a list of names")
        for owner in self.owners:
            checked(owner, f"owner of {self.name}", MAX_NAME)

    @property
    def name(self) -> str:
        """Name of the campaign: that of the job."""
        return self.job.name

    def spec(self, repository: Repository) -> CampaignSpec:
        """Return what the gate needs to know of the campaign.

        Args:
            repository: The repository that it is in.

        Raises:
            ValueError: If the repository has no such job, or no sensor of a name in `triggers`.
        """
        definition = repository.definition
        if not definition.has_job(self.name):
            raise ValueError(
                f"campaign {self.name}: repository {definition.name} has no job of this name; put "
                "the job into the Definitions too"
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
            max_ticks=self.most_ticks,
            priority=self.priority,
            ops=dict(_pools(definition.get_job(self.name).graph)),
            triggers=tuple(sorted(triggers)),
            owners=frozenset(self.owners),
        )


def _pools(graph: dg.GraphDefinition, path: str = "") -> Iterator[tuple[str, str]]:
    """The ops of a graph that have a pool, by their path in the job."""
    for node in graph.nodes:
        definition = node.definition
        if isinstance(definition, dg.GraphDefinition):
            yield from _pools(definition, f"{path}{node.name}.")
        elif isinstance(definition, dg.OpDefinition) and definition.pool is not None:
            yield f"{path}{node.name}", definition.pool
