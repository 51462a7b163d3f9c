"""The Dagster resource: breakers, records and the fleet, inside ops and sensors."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TypeVar

import dagster as dg
from pydantic import Field

from dagster_tidegate import holds
from dagster_tidegate.breaker import Breaker
from dagster_tidegate.fleet import Fleet
from dagster_tidegate.holds import Hold, HoldSource, Target, TargetKind
from dagster_tidegate.instance import CANARY_TAG, partition_of
from dagster_tidegate.pause import end_as_paused, resumed
from dagster_tidegate.policy import ServicePolicy
from dagster_tidegate.pools import needs
from dagster_tidegate.records import Records
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import runs
from dagster_tidegate.store.database import Store, default_url
from dagster_tidegate.store.runs import Attempt, CampaignRun

T = TypeVar("T")


class ServiceConfig(ServicePolicy, dg.Config):
    """A `ServicePolicy` that Dagster's config system reads."""


class BreakerResource(dg.ConfigurableResource):
    """The breakers of all services, shared by every process that uses the same store.

    Every worker, sensor and code location that names the same `store_url` shares them. Calls
    through a closed breaker cost no I/O.

    Example:
        ```python
        breakers = BreakerResource(services=[ServiceConfig(name="instantly")])

        @dg.op(pool=pool("instantly"))
        def send(context: dg.OpExecutionContext, breakers: BreakerResource, leads: list[dict]):
            records = breakers.records(context, leads, key="email")
            for record in records:
                with record:
                    record.result = breakers.breaker("instantly").call(post, record.value)
            return records.results()
        ```
    """

    services: list[ServiceConfig] = Field(
        description="The services that campaigns call, each with its policy."
    )
    store_url: str | None = Field(
        default=None,
        description="SQLAlchemy URL of the store (sqlite or postgresql). Default: the environment "
        "variable TIDEGATE_STORE_URL, else tidegate.db in DAGSTER_HOME.",
    )

    @property
    def fleet(self) -> Fleet:
        """The breakers and the store of this process; the same object wherever it is asked for."""
        policies = tuple(service.model_dump_json() for service in self.services)
        return _fleet(self.store_url or default_url(), policies)

    def breaker(self, service: str) -> Breaker:
        """Return the breaker of a service.

        Args:
            service: Its name.

        Returns:
            A `pybreaker.CircuitBreaker`: use `call`, `calling` or it as a decorator.

        Raises:
            KeyError: If `services` does not name it.
        """
        return self.fleet.breaker(service)

    def records(
        self,
        context: dg.OpExecutionContext,
        items: Iterable[T],
        *,
        key: str | Callable[[T], object],
        max_tries: int = 10,
        max_failed: float = 0.5,
    ) -> Records[T]:
        """Return a loop over the records of an op that are not done yet.

        The op's run becomes the attempt that owns the campaign run: the partition of the run, or
        the root run where the job has no partitions.

        Args:
            context: The op's context.
            items: A list, a DataFrame or any iterable.
            key: The field of an item that is its key, or a function that returns it.
            max_tries: How often a record is tried that the service fails; at least 1.
            max_failed: Share of the handled records that may fail before the op fails, 0 to 1.

        Returns:
            The loop; see `Records`.

        Raises:
            AttemptRefusedError: If another attempt owns the campaign run and has not ended.
        """
        fleet = self.fleet
        run, attempt = _begin(context, fleet)
        op = str(context.op_handle)
        needed = _still_needed(context, fleet.policies)
        return Records(
            fleet=fleet,
            run=run,
            attempt=attempt,
            op=op,
            items=items,
            key=key,
            services=sorted(needs(context.op_def.pool, fleet.policies).services),
            holds=lambda: _covering(context, fleet, run, needed),
            on_stop=lambda stop: end_as_paused(context, fleet, run, attempt, stop),
            max_tries=max_tries,
            max_failed=max_failed,
            log=context.log,
        )

    def teardown_after_execution(
        self,
        context: dg.InitResourceContext,  # noqa: ARG002 -- the signature is Dagster's
    ) -> None:
        """Write down what this process has counted."""
        self.fleet.flush()


@cache
def _fleet(url: str, policies: tuple[str, ...]) -> Fleet:
    # One per process: Dagster makes a resource anew for every step and every sensor tick.
    return Fleet(Store(url), [ServicePolicy.model_validate_json(policy) for policy in policies])


def _begin(context: dg.OpExecutionContext, fleet: Fleet) -> tuple[CampaignRun, Attempt]:
    """Make the Dagster run of `context` the owner of its campaign run."""
    with fleet.store.begin() as conn:
        now = fleet.store.now(conn)
        run = runs.ensure(conn, now, context.job_name, partition_of(context.run))
        newest = runs.latest_attempt(conn, run.id)
        attempt = runs.begin_attempt(
            conn,
            now,
            run,
            context.run_id,
            owner_is_over=newest is not None and _is_over(context.instance, newest.dagster_run),
        )
    if newest is not None and newest.number < attempt.number:
        resumed(context.instance, newest)
    return run, attempt


def _is_over(instance: dg.DagsterInstance, run_id: str) -> bool:
    run = instance.get_run_by_id(run_id)
    return run is None or run.is_finished


def _covering(
    context: dg.OpExecutionContext, fleet: Fleet, run: CampaignRun, needed: Sequence[str]
) -> Sequence[Hold]:
    """Return the holds that cover an op, but for the one that a canary is there to try."""
    snapshot = fleet.snapshot()
    held = holds.covering(
        snapshot.holds,
        fleet.now(),
        services=needed,
        campaign=run.campaign,
        partition=run.partition,
    )
    canary = context.run.tags.get(CANARY_TAG)
    if canary is None or not held:
        return held
    tried = Target(TargetKind.SERVICE, canary)
    if snapshot.services[canary].state is BreakerState.OPEN:
        return held
    return [h for h in held if h.target != tried or h.source is not HoldSource.BREAKER]


def _still_needed(context: dg.OpExecutionContext, known: Iterable[str]) -> list[str]:
    """Return the services that this op or one downstream of it needs."""
    graph = context.job_def.graph
    downstream: dict[str, set[str]] = {node.name: set() for node in graph.nodes}
    for node in graph.nodes:
        upstream_of = graph.dependency_structure.input_to_upstream_outputs_for_node(node.name)
        for outputs in upstream_of.values():
            for output in outputs:
                downstream[output.node_name].add(node.name)
    reached: set[str] = set()
    todo = [context.op_handle.path[0]]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo.extend(downstream[name])
    names = set(known)
    return sorted(
        {
            service
            for node in graph.nodes
            if node.name in reached
            for pool_name in node.definition.pools
            for service in needs(pool_name, names).services
        }
    )
