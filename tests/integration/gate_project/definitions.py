"""A small code location for the tests of the gate. Services are up while a file is there."""

import os
import time
from pathlib import Path

import dagster as dg

from dagster_tidegate import (
    BreakerResource,
    Campaign,
    CatchUp,
    ServiceConfig,
    build_breaker_sensor,
    build_pause_sensor,
    build_resume_sensor,
    pool,
)

UP = Path(os.environ["GATE_PROJECT_UP"])
CALLS = Path(os.environ["GATE_PROJECT_CALLS"])
parts = dg.StaticPartitionsDefinition(list("abcdef"))


def call(service: str, key: str) -> str:
    if not (UP / service).exists():
        raise ConnectionError(f"{service} is down")
    with CALLS.open("a") as calls:
        calls.write(f"{service} {key}\n")
    return key


@dg.op(pool=pool("mail", campaign="letters"))
def send(context: dg.OpExecutionContext, breakers: BreakerResource) -> None:
    mail = breakers.breaker("mail")
    keys = [f"{context.run.tags.get('dagster/partition', 'none')}-{n}" for n in range(10)]
    for record in breakers.records(context, [{"key": key} for key in keys], key="key"):
        with record:
            record.result = mail.call(call, "mail", record.key)


@dg.job(partitions_def=parts, tags={"team": "post"})
def letters():
    send()


@dg.op(pool=pool("mail"))
def send_one(context: dg.OpExecutionContext, breakers: BreakerResource) -> None:
    for record in breakers.records(context, [{"key": "one"}], key="key"):
        with record:
            record.result = breakers.breaker("mail").call(call, "mail", record.key)


@dg.job
def postcard():
    send_one()


@dg.op(pool=pool("maps"), out=dg.Out(dg.Nothing))
def look_up(context: dg.OpExecutionContext, breakers: BreakerResource) -> None:
    for record in breakers.records(context, [{"key": "one"}], key="key"):
        with record:
            record.result = breakers.breaker("maps").call(call, "maps", record.key)


@dg.op(pool=pool("mail"), ins={"start": dg.In(dg.Nothing)})
def post(context: dg.OpExecutionContext, breakers: BreakerResource) -> None:
    for record in breakers.records(context, [{"key": "one"}], key="key"):
        with record:
            record.result = breakers.breaker("mail").call(call, "mail", record.key)


@dg.job
def guide():
    post(start=look_up())


@dg.op
def prepare() -> None:
    pass


@dg.op(pool=pool("mail"), ins={"start": dg.In(dg.Nothing)})
def send_after() -> None:
    pass


@dg.job
def prepared_postcard():
    send_after(start=prepare())


@dg.sensor(job=postcard)
def same_key():
    return dg.RunRequest(run_key="the same")


@dg.sensor(job=postcard)
def two_requests():
    return [dg.RunRequest(run_key="one"), dg.RunRequest(run_key="two")]


@dg.sensor(job=postcard)
def broken():
    raise ValueError("this sensor is broken")


@dg.failure_hook
def tell_of_failure(context: dg.HookContext) -> None:
    with CALLS.open("a") as calls:
        calls.write(f"hook {type(context.op_exception).__name__}\n")


@dg.run_failure_sensor
def alarm(context: dg.RunFailureSensorContext) -> None:
    with CALLS.open("a") as calls:
        calls.write(f"alarm {context.dagster_run.run_id}\n")


@dg.op(retry_policy=dg.RetryPolicy(max_retries=1))
def pause_by_hand(context: dg.OpExecutionContext) -> None:
    context.instance.report_run_canceling(context.run, "paused by hand")
    raise dg.Failure("paused by hand", allow_retries=False)


@dg.job(executor_def=dg.in_process_executor, hooks={tell_of_failure})
def pauses_in_one_process():
    pause_by_hand()


@dg.job(executor_def=dg.multiprocess_executor, hooks={tell_of_failure})
def pauses_in_two_processes():
    pause_by_hand()


@dg.op
def wait_for_mail() -> None:
    until = time.monotonic() + 60
    while not (UP / "mail").exists():
        assert time.monotonic() < until
        time.sleep(0.05)


@dg.job(executor_def=dg.in_process_executor)
def waiting():
    wait_for_mail()


@dg.asset(pool=pool("maps"))
def atlas(breakers: BreakerResource) -> None:
    breakers.breaker("maps").call(call, "maps", "atlas")


atlas_job = dg.define_asset_job("atlas_job", selection=[atlas])


@dg.schedule(job=letters, cron_schedule="0 * * * *", execution_timezone="America/Los_Angeles")
def hourly_letters(context: dg.ScheduleEvaluationContext):
    return dg.RunRequest(
        partition_key="a", tags={"due": context.scheduled_execution_time.isoformat()}
    )


daily_atlas = dg.ScheduleDefinition(
    name="daily_atlas",
    job=atlas_job,
    cron_schedule="30 3 * * *",
    execution_timezone="Europe/Berlin",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)


@dg.sensor(job=postcard, default_status=dg.DefaultSensorStatus.RUNNING)
def new_postcards():
    return dg.SkipReason("none")


CAMPAIGNS = [
    Campaign(job=letters, catch_up=CatchUp.ALL),
    Campaign(job=postcard, triggers=[new_postcards]),
    Campaign(job=atlas_job, catch_up=CatchUp.LATEST),
    Campaign(job=guide),
]

breakers = BreakerResource(
    services=[
        ServiceConfig(
            name="mail",
            consecutive_failures=2,
            reset_timeout_s=float(os.environ.get("GATE_PROJECT_RESET_S", "0.5")),
            jitter=0,
            ramp_interval_s=0,
        ),
        ServiceConfig(name="maps", consecutive_failures=2, ramp_interval_s=0),
    ]
)

defs = dg.Definitions(
    jobs=[
        letters,
        postcard,
        prepared_postcard,
        atlas_job,
        guide,
        pauses_in_one_process,
        pauses_in_two_processes,
        waiting,
    ],
    assets=[atlas],
    schedules=[hourly_letters, daily_atlas],
    sensors=[
        new_postcards,
        same_key,
        two_requests,
        broken,
        alarm,
        build_pause_sensor(campaigns=CAMPAIGNS),
        build_resume_sensor(campaigns=CAMPAIGNS),
        build_breaker_sensor(campaigns=CAMPAIGNS),
    ],
    resources={"breakers": breakers},
    executor=dg.in_process_executor,
)
