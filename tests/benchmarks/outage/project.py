"""The campaign as a Dagster project: with tidegate, and with what Dagster has by itself."""

import os

import dagster as dg
import httpx

from dagster_tidegate import (
    BreakerResource,
    Campaign,
    ServiceConfig,
    build_breaker_sensor,
    build_pause_sensor,
    build_resume_sensor,
    pool,
)
from tests.benchmarks.outage.loops import SCALE
from tests.benchmarks.outage.scenarios import scenarios
from tests.benchmarks.outage.service import (
    FAILURES,
    LONGEST_WAIT_S,
    NAME,
    PATIENCE_S,
    RESET_S,
    connected,
    is_transient,
    leads,
    lists,
    slow_call_s,
)

SANDBOX = os.environ["DEMO_SANDBOX_URL"]
SCALE_FACTOR = float(os.environ[SCALE])
RAMP_S = 5.0
WITHOUT_POISON = "outage/without_poison"

parts = dg.StaticPartitionsDefinition(
    [name for scenario in scenarios(SCALE_FACTOR) for name in lists(scenario.name)]
)


@dg.op(pool=pool(NAME))
def send(context: dg.OpExecutionContext, breakers: BreakerResource) -> None:
    """Send to each lead, each a record."""
    name = context.partition_key
    with connected(SANDBOX) as service:
        for record in breakers.records(
            context, [{"email": lead} for lead in leads(name)], key="email"
        ):
            with record:
                breakers.breaker(NAME).call(service.send, name, record.key)


@dg.op(
    retry_policy=dg.RetryPolicy(
        max_retries=3,
        delay=10 * SCALE_FACTOR,
        backoff=dg.Backoff.EXPONENTIAL,
        jitter=dg.Jitter.PLUS_MINUS,
    )
)
def send_alone(context: dg.OpExecutionContext) -> None:
    """Send to each lead; raise what fails, so that Dagster tries again."""
    name = context.partition_key
    without_poison = WITHOUT_POISON in context.run.tags
    with connected(SANDBOX) as service:
        for lead in leads(name, without_poison=without_poison):
            try:
                service.send(name, lead)
            except httpx.HTTPError as error:
                if is_transient(error):
                    raise
                raise dg.Failure(str(error), allow_retries=False) from error


@dg.job(partitions_def=parts, executor_def=dg.in_process_executor)
def letters():
    """With tidegate."""
    send()


@dg.job(partitions_def=parts, executor_def=dg.in_process_executor)
def letters_alone():
    """With `RetryPolicy` and run retries."""
    send_alone()


def with_tidegate(linger_s: float) -> dg.Definitions:
    """Return the definitions with tidegate, whose runs wait so long before they pause."""
    service = ServiceConfig(
        name=NAME,
        profile=NAME,
        consecutive_failures=FAILURES,
        reset_timeout_s=RESET_S * SCALE_FACTOR,
        reset_timeout_cap_s=LONGEST_WAIT_S / 2 * SCALE_FACTOR,
        window_s=60 * SCALE_FACTOR,
        slow_call_s=slow_call_s(SCALE_FACTOR),
        linger_s=linger_s,
        ramp_interval_s=RAMP_S * SCALE_FACTOR,
        probe_url=f"{SANDBOX}/{NAME}/health",
    )
    campaigns = [Campaign(job=letters)]
    every_s = max(1, round(5 * SCALE_FACTOR))
    return dg.Definitions(
        jobs=[letters],
        sensors=[
            build(campaigns=campaigns, minimum_interval_seconds=every_s)
            for build in (build_pause_sensor, build_resume_sensor, build_breaker_sensor)
        ],
        resources={"breakers": BreakerResource(services=[service])},
    )


match os.environ["OUTAGE_CONTENDER"]:
    case "tidegate":
        defs = with_tidegate(0)
    case "tidegate-waits":
        defs = with_tidegate(PATIENCE_S * SCALE_FACTOR)
    case _:
        defs = dg.Definitions(jobs=[letters_alone])
