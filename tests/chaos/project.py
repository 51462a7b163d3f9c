"""The code location of the chaos: a campaign per service, and one run of it per round."""

import os
from typing import Any

import dagster as dg
import httpx
import sqlalchemy as sa

from dagster_tidegate import (
    BreakerResource,
    Campaign,
    Group,
    Rate,
    Record,
    ServiceConfig,
    build_breaker_sensor,
    build_pause_sensor,
    build_resume_sensor,
    pool,
)
from dagster_tidegate.dagster_api import CONTINUES_TAG
from dagster_tidegate.records.retry import retry_while_unreachable
from dagster_tidegate.statuses import RecordStatus
from dagster_tidegate.store import tables as t
from tests.chaos.evidence import Notes
from tests.chaos.plan import CONSECUTIVE_FAILURES, GROUPED, SERVICES, Form, of

SANDBOX = os.environ["DEMO_SANDBOX_URL"]
rounds = dg.DynamicPartitionsDefinition(name="rounds")


def service_config(name: str) -> ServiceConfig:
    return ServiceConfig(
        name=name,
        consecutive_failures=CONSECUTIVE_FAILURES,
        reset_timeout_s=1.0,
        reset_timeout_cap_s=2.0,
        retry_after_cap_s=3.0,
        jitter=0,
        ramp_interval_s=0,
        linger_s=1.0 if name == "millionverifier" else 0.0,
        # Far above what the rounds call: blocks are leased, and expire with the killed.
        limits=[Rate(calls=1000, per_s=1)] if name == "apollo" else [],
        probe_url=None if name == "instantly" else f"{SANDBOX}/{name}/health",
    )


def request(service: str, partition: str, record: Record) -> dict[str, Any]:
    headers = {"Idempotency-Key": record.idempotency_key}
    if service == "millionverifier":
        query = {"email": record.key}
        return {"method": "GET", "url": f"{service}/api/v3", "params": query, "headers": headers}
    path = {"apollo": "apollo/api/v1/people/match", "instantly": "instantly/api/v2/leads"}
    body = {"email": record.key, "campaign": partition}
    return {"method": "POST", "url": path[service], "json": body, "headers": headers}


def in_doubt(breakers: BreakerResource, campaign: str, partition: str) -> list[str]:
    """Return the keys that the ledger has as started, as an operator would look them up."""
    query = (
        sa.select(t.ledger.c.key)
        .join(t.campaign_runs)
        .where(
            t.campaign_runs.c.campaign == campaign,
            t.campaign_runs.c.partition == partition,
            t.ledger.c.status == RecordStatus.STARTED,
        )
    )
    with breakers.store.read() as conn:
        return list(conn.scalars(query))


def campaign_of(service: str) -> dg.JobDefinition:
    @dg.op(name=f"call_{service}", pool=pool(service))
    def call_service(context: dg.OpExecutionContext, breakers: BreakerResource) -> list[str]:
        partition = context.partition_key
        notes, plan = Notes(partition), of(partition)
        grouped = plan.form is Form.GROUPED
        records = breakers.records(
            context,
            [{"email": key} for key in plan.keys],
            key="email",
            max_tries=1000,
            group=Group(records=GROUPED, seconds=1.0) if grouped else None,
            append_only=grouped,
        )
        # From here on no former attempt can write: what it left as started is in doubt.
        doubtful = retry_while_unreachable(
            lambda: in_doubt(breakers, service, partition), context.log
        )
        notes.listed(context.run_id, doubtful)
        breaker = breakers.breaker(service)

        def send(record: Record) -> None:
            http.request(**request(service, partition, record)).raise_for_status()

        def call(record: Record) -> str:
            notes.sent(context.run_id, record.key, record.idempotency_key)
            breaker.call(
                lambda: http.request(**request(service, partition, record)).raise_for_status()
            )
            return record.key

        async def call_async(record: Record) -> str:
            async def send_async() -> None:
                response = await http_async.request(**request(service, partition, record))
                response.raise_for_status()

            notes.sent(context.run_id, record.key, record.idempotency_key)
            await breaker.call_async(send_async)
            return record.key

        if plan.form is Form.TASKS:
            http_async = httpx.AsyncClient(base_url=SANDBOX, timeout=10, trust_env=False)
            return records.map(call_async, concurrency=plan.at_once)
        with httpx.Client(base_url=SANDBOX, timeout=10, trust_env=False) as http:
            if plan.form is Form.THREADS:
                return records.map(call, concurrency=plan.at_once)
            for record in records:
                with record:
                    record.result = call(record)
        return records.results()

    @dg.op(name=f"take_{service}")
    def take(context: dg.OpExecutionContext, results: list[str]) -> None:
        Notes(context.partition_key).results(results)

    @dg.job(name=service, partitions_def=rounds, executor_def=dg.in_process_executor)
    def campaign() -> None:
        take(call_service())

    return campaign


jobs = {service: campaign_of(service) for service in SERVICES}
campaigns = [Campaign(job=job) for job in jobs.values()]


@dg.sensor(
    jobs=list(jobs.values()),
    minimum_interval_seconds=1,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def new_rounds(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    # The run key lets each be requested many times and run once for each time it was asked for.
    asked = {
        key: Notes(key).asked()
        for key in rounds.get_partition_keys(dynamic_partitions_store=context.instance)
    }
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_key=f"{key}/{times}",
                job_name=of(key).service,
                partition_key=key,
                # As `tidegate start` does: a run without it does a failed partition afresh.
                tags={CONTINUES_TAG: "true"} if times > 1 else {},
            )
            for key, times in asked.items()
        ]
    )


defs = dg.Definitions(
    jobs=list(jobs.values()),
    sensors=[
        new_rounds,
        build_pause_sensor(campaigns=campaigns, minimum_interval_seconds=1),
        build_resume_sensor(campaigns=campaigns, minimum_interval_seconds=1),
        build_breaker_sensor(campaigns=campaigns, minimum_interval_seconds=1),
    ],
    resources={"breakers": BreakerResource(services=[service_config(name) for name in SERVICES])},
)
