"""Another code location: another team's campaign, which needs a service of the first one."""

import os

import dagster as dg

from dagster_tidegate import (
    BreakerResource,
    Campaign,
    build_breaker_sensor,
    build_pause_sensor,
    build_resume_sensor,
    pool,
)
from resources.openai import OpenAIResource
from tests.deployment.gate_project.definitions import EVERY_S, NEVER, SANDBOX, policy

RECORDS = int(os.environ["GATE_PROJECT_RECORDS"])
parts = dg.StaticPartitionsDefinition(["0", "1"])
breakers = BreakerResource(services=[policy("openai", probe_url=f"{SANDBOX}/openai/health")])


@dg.op(pool=pool("openai", campaign="reviews"))
def review(
    context: dg.OpExecutionContext, breakers: BreakerResource, openai: OpenAIResource
) -> None:
    books = [{"book": f"{n}"} for n in range(RECORDS)]
    for record in breakers.records(context, books, key="book"):
        with record:
            about = f"reviews/{context.partition_key}/{record.key}"
            key = record.idempotency_key
            record.result = openai.write("Praise it.", about, idempotency_key=key)


@dg.job(partitions_def=parts, executor_def=dg.in_process_executor)
def reviews():
    """Needs openai alone."""
    review()


@dg.sensor(job=reviews, default_status=dg.DefaultSensorStatus.RUNNING)
def new_reviews():
    return dg.SkipReason("none")


@dg.schedule(job=reviews, cron_schedule=NEVER, default_status=dg.DefaultScheduleStatus.RUNNING)
def reviews_schedule():
    return dg.RunRequest(partition_key="1")


CAMPAIGNS = [Campaign(job=reviews, triggers=[new_reviews])]

defs = dg.Definitions(
    jobs=[reviews],
    schedules=[reviews_schedule],
    sensors=[
        new_reviews,
        build_pause_sensor(campaigns=CAMPAIGNS, minimum_interval_seconds=EVERY_S),
        build_resume_sensor(campaigns=CAMPAIGNS, minimum_interval_seconds=EVERY_S),
        build_breaker_sensor(campaigns=CAMPAIGNS, minimum_interval_seconds=EVERY_S),
    ],
    resources={
        "breakers": breakers,
        "openai": OpenAIResource(breakers=breakers, base_url=f"{SANDBOX}/openai"),
    },
)
