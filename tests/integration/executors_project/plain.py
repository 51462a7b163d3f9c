"""Ops and assets that call a service without a record loop."""

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.in_process import InProcessExecutor

from dagster_tidegate import BreakerOpenError, BreakerResource, ServiceConfig, pool

RETRIES = dg.RetryPolicy(max_retries=3)
breakers = BreakerResource(services=[ServiceConfig(name="mail", consecutive_failures=1)])


def send() -> str:
    folder = Path(os.environ["EXECUTORS_PROJECT_FOLDER"])
    with (folder / "calls").open("a") as calls:
        calls.write("call\n")
    if (folder / "down").exists():
        raise ConnectionError("reset by peer")
    return "sent"


async def send_async() -> str:
    return send()


@dg.op(pool=pool("mail"), retry_policy=RETRIES)
def plain_op(breakers: BreakerResource) -> str:
    return breakers.breaker("mail").call(send)


@dg.op(pool=pool("mail"), retry_policy=RETRIES)
async def async_op(breakers: BreakerResource) -> str:
    return await breakers.breaker("mail").call_async(send_async)


@dg.op(pool=pool("mail"), retry_policy=RETRIES)
def generator_op(breakers: BreakerResource) -> Iterator[dg.Output[str]]:
    yield dg.Output(breakers.breaker("mail").call(send))


@dg.op(pool=pool("mail"))
def decorated_op(breakers: BreakerResource) -> str:
    @breakers.breaker("mail")
    def guarded() -> str:
        return send()

    return guarded()


@dg.op(pool=pool("mail"))
def catching_op(breakers: BreakerResource) -> str:
    try:
        return breakers.breaker("mail").call(send)
    except BreakerOpenError:
        return "not sent"


@dg.op(pool=pool("mail"))
def translating_op(breakers: BreakerResource) -> str:
    try:
        return breakers.breaker("mail").call(send)
    except BreakerOpenError as error:
        raise ValueError("my own error") from error


@dg.op
def op_without_pool(breakers: BreakerResource) -> str:
    return breakers.breaker("mail").call(send)


def job_of(op: dg.OpDefinition, executor: dg.ExecutorDefinition, name: str) -> dg.JobDefinition:
    @dg.job(name=name, resource_defs={"breakers": breakers}, executor_def=executor)
    def job() -> None:
        op()

    return job


@dg.executor(name="in_containers")
def in_containers(_context: dg.InitExecutorContext) -> InProcessExecutor:
    """Stands for those that learn from the event log how a step has ended."""
    return InProcessExecutor(retries=RetryMode.ENABLED)


OPS = [
    plain_op,
    async_op,
    generator_op,
    decorated_op,
    catching_op,
    translating_op,
    op_without_pool,
]


@dg.asset(pool=pool("mail"), retry_policy=RETRIES)
def plain_asset(breakers: BreakerResource) -> str:
    return breakers.breaker("mail").call(send)


@dg.asset(pool=pool("mail"), retry_policy=RETRIES)
async def async_asset(
    context: dg.AssetExecutionContext, breakers: BreakerResource
):  # Dagster knows no annotation for this
    await breakers.breaker("mail").call_async(send_async)
    yield dg.MaterializeResult(asset_key=context.asset_key)


defs = dg.Definitions(
    assets=[plain_asset, async_asset],
    jobs=[
        *(job_of(op, dg.in_process_executor, op.name) for op in OPS),
        # Not from a fork server: one that an earlier test started has the environment of then.
        job_of(plain_op, dg.multiprocess_executor, "in_processes"),
        job_of(plain_op, in_containers, "plain_in_containers"),
        dg.define_asset_job("assets_job", selection="*", executor_def=dg.in_process_executor),
    ],
    resources={"breakers": breakers},
)


def job_named(name: str) -> dg.JobDefinition:
    return defs.resolve_job_def(name)
