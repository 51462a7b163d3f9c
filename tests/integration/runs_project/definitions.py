"""A small code location for the tests of runs that pause and resume. As in `gate_project`."""

import os
from pathlib import Path

import dagster as dg

from dagster_tidegate import (
    BreakerResource,
    Campaign,
    ServiceConfig,
    build_breaker_sensor,
    build_pause_sensor,
    build_resume_sensor,
    pool,
)

UP = Path(os.environ["GATE_PROJECT_UP"])
CALLS = Path(os.environ["GATE_PROJECT_CALLS"])
days = dg.StaticPartitionsDefinition(["d1", "d2", "d3", "d4"])


def note(text: str) -> None:
    with CALLS.open("a") as calls:
        calls.write(f"{text}\n")


def call(key: str, service: str = "crm") -> str:
    if not (UP / service).exists():
        raise ConnectionError(f"{service} is down")
    note(key)
    return key


@dg.op(pool=pool("crm"), retry_policy=dg.RetryPolicy(max_retries=2))
def ask(breakers: BreakerResource) -> str:
    note("asked")
    return breakers.breaker("crm").call(call, "answer")


@dg.op
def publish(answer: str) -> None:
    note(f"published {answer}")


@dg.job
def question():
    publish(ask())


@dg.asset(pool=pool("crm"), partitions_def=days)
def contacts(context: dg.AssetExecutionContext, breakers: BreakerResource) -> str:
    return breakers.breaker("crm").call(call, context.partition_key)


contacts_job = dg.define_asset_job("contacts_job", selection=[contacts])


@dg.op
def visit(context: dg.OpExecutionContext, breakers: BreakerResource) -> list[str]:
    records = breakers.records(context, [{"key": key} for key in "abcd"], key="key")
    for record in records:
        with record:
            record.result = breakers.breaker("maps").call(call, record.key, "maps")
    return records.results()


@dg.job
def visits():
    visit()


CAMPAIGNS = [Campaign(job=question), Campaign(job=contacts_job), Campaign(job=visits)]

breakers = BreakerResource(
    services=[
        ServiceConfig(
            name="crm", consecutive_failures=1, reset_timeout_s=0.5, jitter=0, ramp_interval_s=0
        ),
        ServiceConfig(name="maps", consecutive_failures=2, reset_timeout_s=600, ramp_interval_s=0),
    ]
)

defs = dg.Definitions(
    jobs=[question, contacts_job, visits],
    assets=[contacts],
    sensors=[
        build_pause_sensor(campaigns=CAMPAIGNS),
        build_resume_sensor(campaigns=CAMPAIGNS),
        build_breaker_sensor(campaigns=CAMPAIGNS),
    ],
    resources={"breakers": breakers},
    executor=dg.in_process_executor,
)
