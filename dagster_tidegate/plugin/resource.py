"""The Dagster resource: breakers and record loops, inside ops and sensors."""

import logging
import os
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from typing import Any, TypeVar
from uuid import uuid4

import dagster as dg
from pydantic import Field, PrivateAttr, field_validator

from dagster_tidegate.breaker.breaker import Breaker
from dagster_tidegate.breaker.budget import SpendingLimit
from dagster_tidegate.breaker.events import Hook
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.limits import RateLimit
from dagster_tidegate.breaker.policy import MAX_SECONDS, MaintenanceWindow, ServicePolicy
from dagster_tidegate.dagster_api.cron import check_cron
from dagster_tidegate.dagster_api.resources import LightResource
from dagster_tidegate.dagster_api.steps import Context, is_direct, op_context
from dagster_tidegate.plugin.direct import DirectAttempt
from dagster_tidegate.plugin.step import BreakerOpenFailure, Step
from dagster_tidegate.records.journal import Group
from dagster_tidegate.records.loop import Records
from dagster_tidegate.records.worklist import LoopOptions
from dagster_tidegate.settings import GeneralSettings, SettingsError, load, unknown
from dagster_tidegate.store import schema
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import UNREACHABLE, Store, locate
from dagster_tidegate.store.tables import metadata
from dagster_tidegate.telemetry.log import LogHook

T = TypeVar("T")
log = logging.getLogger(__name__)
MEMORY = "memory:"
_clocks: dict[str, Callable[[], datetime]] = {}  # of stores in memory


class Window(MaintenanceWindow, dg.Config):
    """A maintenance window of a service, which the gate holds from its start to its end.

    Example:
        ```python
        nightly = Window(cron="0 2 * * SUN", duration_s=7200, timezone="Europe/Berlin")
        ServiceConfig(name="mailer", windows=[nightly])
        ```
    """

    @field_validator("cron")
    @classmethod
    def _cron_is_valid(cls, cron: str) -> str:
        return check_cron(cron)


class Rate(RateLimit, dg.Config):
    """How many calls a service permits in a period. The whole fleet stays within it.

    Example:
        ```python
        rates = [Rate(calls=100, per_s=1), Rate(calls=600, per="day", timezone="UTC")]
        ServiceConfig(name="mailer", limits=rates)
        ```
    """


class Budget(SpendingLimit, dg.Config):
    """How much may be spent on a service in a period, by the whole fleet.

    Example:
        ```python
        daily = Budget(1000, per="day", unit="credits", timezone="America/New_York")
        ServiceConfig(name="apollo", budget=daily, cost=1)
        ```
    """

    def __init__(self, amount: float, **values: Any) -> None:
        super().__init__(amount=amount, **values)


class ServiceConfig(ServicePolicy, dg.Config):
    """A `ServicePolicy` that Dagster's config system reads."""

    budget: Budget | None = Field(  # type: ignore[assignment] -- one that Dagster reads
        default=None, description=ServicePolicy.model_fields["budget"].description
    )
    cost: Any = Field(  # Dagster reads no union of a number and a string
        default=1.0, description=ServicePolicy.model_fields["cost"].description
    )

    limits: list[Rate] = Field(  # type: ignore[assignment] -- Dagster reads lists only
        default=[], description=ServicePolicy.model_fields["limits"].description
    )
    windows: list[Window] = Field(  # type: ignore[assignment] -- Dagster reads lists only
        default=[], description=ServicePolicy.model_fields["windows"].description
    )


class BreakerResource(LightResource):
    """The breakers of all services, shared by every process that uses the same store.

    Calls through a closed breaker cost no I/O.

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
        "variable TIDEGATE_STORE_URL, otherwise tidegate.db in DAGSTER_HOME, which is created on "
        "first use.",
    )
    drain_timeout_s: float = Field(
        default=25.0,
        ge=0,
        le=MAX_SECONDS,
        description="How long records in flight may take to finish when a hold or a signal stops "
        "their run, in seconds. Set a container's grace period to at least 5 seconds more.",
    )
    # The instance's storage directory: without DAGSTER_HOME, `dg dev` has a temporary one.
    _home: str | None = PrivateAttr(default=None)

    @classmethod
    def in_memory(
        cls, services: Sequence[ServiceConfig], *, clock: Callable[[], datetime] | None = None
    ) -> "BreakerResource":
        """Return a resource for a unit test, with a new store in memory.

        Args:
            services: The services, each with its policy.
            clock: Tells the time (UTC) of breakers and holds; None: the real one. See
                `dagster_tidegate.testing`.

        Example:
            ```python
            def test_send():
                breakers = BreakerResource.in_memory([ServiceConfig(name="instantly")])
                assert outreach.execute_in_process(resources={"breakers": breakers}).success
            ```
        """
        url = f"{MEMORY}{uuid4().hex}"
        if clock is not None:
            _clocks[url] = clock
        return cls(services=list(services), store_url=url)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Remember the storage directory of the instance, for an embedded store."""
        instance = context.instance
        if instance is not None and not instance.is_ephemeral:
            self._home = instance.root_directory

    @property
    def fleet(self) -> Fleet:
        """The breakers of this process; the same object each time."""
        return self._shared[1]

    @property
    def store(self) -> Store:
        """The store of this process; the same object each time."""
        return self._shared[0]

    @property
    def _shared(self) -> tuple[Store, Fleet]:
        policies = tuple(service.model_dump_json() for service in self.services)
        url, embedded = locate(self.store_url, self._home)
        return _connect(url, embedded, policies)

    def breaker(self, service: str) -> Breaker:
        """Return the breaker of a service, a `pybreaker.CircuitBreaker`.

        If one of its errors, a `BreakerOpenError`, ends an op or asset whose pool names a service,
        the run pauses; when it resumes, the op starts over.

        Raises:
            UnknownServiceError: If `services` does not name it.
            CampaignPaused, CampaignCancelled, AttemptRefusedError: As `records` does, in an op of
                a run that follows another.
        """
        breaker = self.fleet.breaker(service)
        if (step := Step.current(self)) is not None:
            step.calls(service)
        return breaker

    def first_available(self, *services: str) -> Breaker:
        """Return the breaker of the first of several services that may be called now.

        See `Fleet.first_available`. Name the services in the pool of the op,
        `pool("apollo|clearbit")`: then it waits only while all of them are down. The ledger has
        which one served a record.

        Raises:
            UnknownServiceError: If `services` of the resource lacks a name.
            BreakerOpenError: If none may be called; in a record loop, the run pauses until one is.
            CampaignPaused, CampaignCancelled, AttemptRefusedError: As `breaker` does.

        Example:
            ```python
            for record in records:
                with record:
                    service = breakers.first_available("apollo", "clearbit")
                    find = {"apollo": apollo.find, "clearbit": clearbit.find}[service.name]
                    record.result = service.call(find, record.value)
            ```
        """
        if (step := Step.current(self)) is not None:
            step.calls("|".join(services))
        return self.fleet.first_available(*services)

    def records(
        self,
        context: Context,
        items: Iterable[T] | AsyncIterable[T],
        *,
        key: str | Callable[[T], object],
        name: str | None = None,
        max_tries: int = 10,
        max_failed: float | None = None,
        group: Group | None = None,
        append_only: bool = False,
    ) -> Records[T]:
        """Return a loop over the records of an op that are not done yet.

        The op's run becomes the attempt that owns the campaign run: the partition of the run, or
        the root run if the job has no partitions.

        Args:
            context: The context of the op or asset; in a unit test also one of
                `dg.build_op_context` or `dg.build_asset_context`.
            items: A sequence, a DataFrame, or any iterable of items or DataFrames; for
                `async for` also an asynchronous one.
            key: The field that is an item's key, or a function that returns the key.
            name: Distinguishes several loops of one op; the same in every attempt.
            max_tries: How often a record is tried if the service fails; at least 1.
            max_failed: Share of the finished records that may fail before the op fails, 0 to 1.
                None: 0 for an asset, which would be materialized without them, and 0.5 for an op.
            group: Write records together if repeating a group after a crash is safe. None: each
                in a transaction of its own.
            append_only: Asserts that the input is append-only: every attempt gets the same items
                in the same order. A resumed op then starts where it stopped without looking up
                what is done.

        Raises:
            CampaignPaused: If another op of this run has paused it.
            CampaignCancelled: If the gate requested this run, and it is no longer needed.
            AttemptRefusedError: If another attempt owns the campaign run and has not ended.
            ValueError: If the op already has a loop of this name, or an argument is out of range.
        """
        op = op_context(context)
        step = None if is_direct(op) else Step.of(op, self)
        if max_failed is None:
            max_failed = 0.0 if op.has_assets_def else 0.5
        options = LoopOptions(
            op=name or op.op_def.name if step is None else step.loop_name(name),
            key=key,
            max_tries=max_tries,
            max_failed=max_failed,
            append_only=append_only,
        )
        host = (
            DirectAttempt(op, self.store, self.fleet, self.drain_timeout_s)
            if step is None
            else step.begin()
        )
        return Records(host, items, options, group=group)

    def teardown_after_execution(
        self,
        context: dg.InitResourceContext,  # noqa: ARG002 -- the signature is Dagster's
    ) -> None:
        """Write the counts of this process to the store."""
        self.fleet.flush()


@cache
def _connect(url: str, embedded: bool, policies: tuple[str, ...]) -> tuple[Store, Fleet]:
    # Once per process: Dagster creates a resource for every step and every sensor tick.
    if url.startswith(MEMORY):
        store = Store("sqlite://", clock=_clocks.get(url))
        metadata.create_all(store.engine)
    else:
        store = Store(url, embedded=embedded)
        # While it is unreachable, calls continue under this process's own breakers.
        with suppress(*UNREACHABLE):
            schema.make_ready(store)
    for problem in unknown(os.environ):  # only the command line refuses to start
        log.warning("%s: 'tidegate config' shows all settings", problem)
    rules = [ServicePolicy.model_validate_json(policy) for policy in policies]
    return store, Fleet(SqlBackend(store), rules, hooks=_hooks(), error=BreakerOpenFailure)


def _hooks() -> list[Hook]:
    if not load(GeneralSettings).opentelemetry:
        return [LogHook()]
    try:
        from dagster_tidegate.telemetry.opentelemetry import OpenTelemetryHook  # an extra
    except ModuleNotFoundError as error:
        raise SettingsError(
            "TIDEGATE_OPENTELEMETRY is true, but OpenTelemetry's API is not installed: "
            "pip install 'dagster-tidegate[otel]'"
        ) from error
    return [LogHook(), OpenTelemetryHook()]
