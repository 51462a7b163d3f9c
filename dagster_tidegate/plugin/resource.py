"""The Dagster resource: breakers, records and the fleet, inside ops and sensors."""

import logging
import os
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from functools import cache
from typing import TypeVar
from uuid import uuid4
from weakref import WeakKeyDictionary

import dagster as dg
from pydantic import Field

from dagster_tidegate.breaker.breaker import Breaker
from dagster_tidegate.breaker.events import Hook
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.dagster_api.lineage import is_resume, is_superseded, partition_of, tried_by
from dagster_tidegate.holds import Hold, HoldSource, Target, TargetKind
from dagster_tidegate.plugin.pause import (
    CampaignPaused,
    end,
    end_as_cancelled,
    end_as_superseded,
    resumed,
)
from dagster_tidegate.pools import needs
from dagster_tidegate.records.journal import Group
from dagster_tidegate.records.loop import Records
from dagster_tidegate.records.retry import retry_while_unreachable
from dagster_tidegate.settings import GeneralSettings, SettingsError, load, unknown
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import runs
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import Store, default_url
from dagster_tidegate.store.runs import (
    AttemptPausedError,
    AttemptRefusedError,
    AttemptRow,
    CampaignRun,
)
from dagster_tidegate.store.tables import metadata

T = TypeVar("T")
log = logging.getLogger(__name__)
MAX_TURNS = 10
MEMORY = "memory:"
# The loops that each op has made, so that two do not share a place in the ledger.
_loops: WeakKeyDictionary[dg.OpExecutionContext, set[str]] = WeakKeyDictionary()


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
    drain_timeout_s: float = Field(
        default=25.0,
        ge=0,
        description="How long records in flight may go on when a hold or a signal stops their run, "
        "in seconds. A container's grace period is to be at least 5 seconds longer.",
    )

    @classmethod
    def in_memory(cls, services: Sequence[ServiceConfig]) -> "BreakerResource":
        """Return a resource for a unit test: its store is new, in memory, and nobody else's.

        Args:
            services: The services that campaigns call, each with its policy.

        Example:
            ```python
            def test_send():
                breakers = BreakerResource.in_memory([ServiceConfig(name="instantly")])
                assert outreach.execute_in_process(resources={"breakers": breakers}).success
            ```
        """
        return cls(services=list(services), store_url=f"{MEMORY}{uuid4().hex}")

    @property
    def fleet(self) -> Fleet:
        """The breakers of this process; the same object each time."""
        policies = tuple(service.model_dump_json() for service in self.services)
        return _fleet(self.store_url or default_url(), policies)

    @property
    def store(self) -> Store:
        """The store; the same object each time."""
        return _store(self.store_url or default_url())

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
        items: Iterable[T] | AsyncIterable[T],
        *,
        key: str | Callable[[T], object],
        name: str | None = None,
        max_tries: int = 10,
        max_failed: float = 0.5,
        group: Group | None = None,
        append_only: bool = False,
    ) -> Records[T]:
        """Return a loop over the records of an op that are not done yet.

        The op's run becomes the attempt that owns the campaign run: the partition of the run, or
        the root run where the job has no partitions.

        Args:
            context: The op's context.
            items: A list or another sequence, a DataFrame, or any iterable of items or DataFrames;
                for `async for` also an asynchronous one.
            key: The field of an item that is its key, or a function that returns it.
            name: Tells several loops of one op apart; the same in every attempt.
            max_tries: How often a record is tried that the service fails; at least 1.
            max_failed: Share of the handled records that may fail before the op fails, 0 to 1.
            group: Write the ends of records together, where it does no harm when a group of them
                is done again after a crash. None: each for itself.
            append_only: Your word that the input only ever grows at its end: the same items in the
                same order at every attempt. A resumed op then begins where it stopped, without
                looking at what is done.

        Returns:
            The loop; see `Records`.

        Raises:
            CampaignPaused: If another op of this run has paused it.
            CampaignCancelled: If the gate asked for this run, and another was faster.
            AttemptRefusedError: If another attempt owns the campaign run and has not ended.
            ValueError: If the op has a loop of this name already.
        """
        store, fleet = self.store, self.fleet
        op = _loop_name(context, name)
        try:
            run, series = retry_while_unreachable(lambda: _begin(context, store), context.log)
        except AttemptPausedError as error:
            raise CampaignPaused(str(error)) from error
        attempt = series[-1]
        if len(series) > 1:
            resumed(context, series[-2])
        needed = _still_needed(context, fleet.policies)
        return Records(
            store=store,
            fleet=fleet,
            run=run,
            attempt=attempt,
            op=op,
            items=items,
            key=key,
            services=sorted(needs(context.op_def.pool, fleet.policies).services),
            failed_since=runs.began_with(series),
            holds=lambda: _covering(context, fleet, run, needed),
            on_stop=lambda stop: end(context, store, fleet, run, attempt, stop),
            max_tries=max_tries,
            max_failed=max_failed,
            group=group,
            append_only=append_only,
            drain_timeout_s=self.drain_timeout_s,
            log=context.log,
        )

    def teardown_after_execution(
        self,
        context: dg.InitResourceContext,  # noqa: ARG002 -- the signature is Dagster's
    ) -> None:
        """Write down what this process has counted."""
        self.fleet.flush()


# One each per process: Dagster makes a new resource for every step and every sensor tick.
@cache
def _store(url: str) -> Store:
    if url.startswith(MEMORY):
        store = Store("sqlite://")
        metadata.create_all(store.engine)
    else:
        store = Store(url)
    return store


@cache
def _fleet(url: str, policies: tuple[str, ...]) -> Fleet:
    for problem in unknown(os.environ):  # it works without; a command line would refuse
        log.warning("%s: 'tidegate config' shows all settings", problem)
    rules = [ServicePolicy.model_validate_json(policy) for policy in policies]
    return Fleet(SqlBackend(_store(url)), rules, hooks=_hooks())


def _hooks() -> list[Hook]:
    if not load(GeneralSettings).opentelemetry:
        return []
    try:
        from dagster_tidegate.telemetry.opentelemetry import OpenTelemetryHook  # an extra
    except ModuleNotFoundError as error:
        raise SettingsError(
            "TIDEGATE_OPENTELEMETRY is true, and OpenTelemetry's API is not installed: "
            "pip install 'dagster-tidegate[otel]'"
        ) from error
    return [OpenTelemetryHook()]


def _loop_name(context: dg.OpExecutionContext, name: str | None) -> str:
    """Return how the ledger calls a loop: as Dagster calls the step, and by its own name."""
    shard = context.get_mapping_key()
    step = str(context.op_handle) + ("" if shard is None else f"[{shard}]")
    loop = step if name is None else f"{step}:{name}"
    loops = _loops.setdefault(context, set())
    if loop in loops:
        raise ValueError(
            f"op {step} has a loop of records {'without a name' if name is None else name!r} "
            "already: give each of its loops a name, records(..., name=...)"
        )
    loops.add(loop)
    return loop


def _begin(
    context: dg.OpExecutionContext, store: Store
) -> tuple[CampaignRun, Sequence[AttemptRow]]:
    """Make the Dagster run of `context` the owner of its campaign run.

    Returns:
        The campaign run, and the attempts at it; the last is this run's.
    """
    partition = partition_of(context.run)
    for _ in range(MAX_TURNS):
        with store.read() as conn:
            found = runs.find(conn, context.job_name, partition)
            newest = None if found is None else runs.latest_attempt(conn, found.id)
            begun = runs.attempt_of(conn, context.run_id) is not None
        if newest is not None and not begun and is_superseded(context.run, newest.dagster_run):
            end_as_superseded(context, newest)
        # Dagster is asked before the transaction: meanwhile nobody could write.
        over = (
            newest is not None
            and newest.dagster_run != context.run_id
            and _is_over(context.instance, newest.dagster_run)
        )
        with store.begin() as conn:
            now = store.now(conn)
            run = runs.ensure(conn, now, context.job_name, partition)
            cancelled = not begun and _was_cancelled(context.run, run, newest)
            if newest == runs.latest_attempt(conn, run.id) and not cancelled:
                lease = None if newest is None else newest.lease_until
                over = over or (lease is not None and lease < now)
                runs.begin_attempt(conn, now, run, context.run_id, owner_is_over=over)
                return run, runs.attempts(conn, run.id)
        if cancelled:
            end_as_cancelled(context, run)
    raise AttemptRefusedError(
        f"{context.job_name}/{partition} changed hands {MAX_TURNS} times meanwhile"
    )


def _was_cancelled(dagster_run: dg.DagsterRun, run: CampaignRun, newest: AttemptRow | None) -> bool:
    """Whether a person cancelled what the gate had asked a run to resume."""
    paused = newest is not None and newest.outcome is RunStatus.PAUSED
    return paused and run.status is RunStatus.CANCELLED and is_resume(dagster_run)


def _is_over(instance: dg.DagsterInstance, run_id: str) -> bool:
    run = instance.get_run_by_id(run_id)
    return run is None or run.is_finished


def _covering(
    context: dg.OpExecutionContext, fleet: Fleet, run: CampaignRun, needed: Sequence[str]
) -> Sequence[Hold]:
    """Return the holds that cover an op, but for the one that a canary is there to try."""
    if not fleet.snapshot().holds:  # so it is nearly always, and before each record
        return ()
    held = fleet.holds_on(services=needed, campaign=run.campaign, partition=run.partition)
    circuits = fleet.snapshot().services
    tried = {
        Target(TargetKind.SERVICE, service)
        for service in tried_by(context.run)
        if service in circuits and circuits[service].state is not BreakerState.OPEN
    }
    return [h for h in held if h.target not in tried or h.source is not HoldSource.BREAKER]


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
