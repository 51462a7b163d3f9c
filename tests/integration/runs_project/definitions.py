"""A small code location for the tests of runs that pause and resume. As in `gate_project`."""

import os
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_tidegate import (
    BreakerResource,
    Campaign,
    ServiceConfig,
    build_definitions,
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


# --- kinds of ops, assets and partitions --------------------------------------------------------


def loop(
    context: dg.OpExecutionContext | dg.AssetExecutionContext,
    breakers: BreakerResource,
    *keys: str,
    **options: Any,
) -> list[Any]:
    records = breakers.records(context, [{"key": key} for key in keys], key="key", **options)
    for record in records:
        with record:
            record.result = breakers.breaker("crm").call(call, record.key)
    return records.results()


@dg.multi_asset(
    specs=[dg.AssetSpec("left", skippable=True), dg.AssetSpec("right", skippable=True)],
    can_subset=True,
    pool=pool("crm"),
)
def sides(context: dg.AssetExecutionContext, breakers: BreakerResource):
    for key in sorted(context.op_execution_context.selected_asset_keys):
        loop(context, breakers, f"side {key.to_user_string()}", name=key.to_user_string())
        yield dg.MaterializeResult(asset_key=key)


@dg.op(pool=pool("crm"))
def draw(context: dg.OpExecutionContext, breakers: BreakerResource) -> list:
    return loop(context, breakers, "drawn")


@dg.op
def frame(drawn: list) -> list:
    return drawn


@dg.graph_asset
def picture():
    return frame(draw())


@dg.op(out=dg.DynamicOut())
def pieces():
    for name in ("x", "y"):
        yield dg.DynamicOutput(name, mapping_key=name)


@dg.op(pool=pool("crm"))
def handle(context: dg.OpExecutionContext, breakers: BreakerResource, piece: str) -> list:
    return loop(context, breakers, f"piece {piece}")


@dg.job
def mapped():
    pieces().map(handle)


by_day = dg.StaticPartitionsDefinition(["mon", "tue"])
by_place = dg.StaticPartitionsDefinition(["eu", "us"])


@dg.asset(
    pool=pool("crm"), partitions_def=dg.MultiPartitionsDefinition({"day": by_day, "at": by_place})
)
def sales(context: dg.AssetExecutionContext, breakers: BreakerResource) -> list:
    return loop(context, breakers, f"sales {context.partition_key}")


ODD = ["a/b two words, c", "Zo\u00eb \u2603 \u6f22", "x" * 500]


@dg.op(pool=pool("crm"))
def name(context: dg.OpExecutionContext, breakers: BreakerResource) -> list:
    return loop(context, breakers, f"odd {context.partition_key}")


@dg.job(partitions_def=dg.StaticPartitionsDefinition(ODD))
def odd():
    name()


@dg.op(pool=pool("crm"), retry_policy=dg.RetryPolicy(max_retries=2))
def retry(context: dg.OpExecutionContext, breakers: BreakerResource) -> list:
    return loop(context, breakers, "retried")


@dg.job(tags={"dagster/max_retries": "2"})
def retried():
    retry()


@dg.op(pool=pool("crm"))
def apart(context: dg.OpExecutionContext, breakers: BreakerResource) -> list:
    return loop(context, breakers, "in a process of its own")


@dg.job(
    executor_def=dg.multiprocess_executor.configured(
        {"start_method": {"forkserver": {"preload_modules": ["dagster_tidegate"]}}}
    )
)
def in_processes():
    apart()


@dg.op(pool=pool("crm"))
def dig(context: dg.OpExecutionContext, breakers: BreakerResource) -> None:
    loop(context, breakers, "deep")  # Dagster can't store an output under so long a name


def nested(depth: int) -> dg.GraphDefinition:
    """Graphs in each other, each with a long name."""

    @dg.graph(name=f"level_{depth}_" + "x" * 100)
    def level():
        (nested(depth - 1) if depth else dig)()

    return level


@dg.job
def deep():
    nested(5)()


@dg.asset(pool=pool("crm"))
def plain(context: dg.AssetExecutionContext, breakers: BreakerResource) -> list:
    return loop(context, breakers, f"plain in {context.op_execution_context.job_name}")


KINDS = [
    mapped,
    odd,
    retried,
    in_processes,
    deep,
    dg.define_asset_job("one_side", selection=dg.AssetSelection.assets("left")),
    dg.define_asset_job("picture_job", selection=[picture]),
    dg.define_asset_job("sales_job", selection=[sales]),
    dg.define_asset_job("plain_job", selection=[plain]),
    dg.define_asset_job("plain_again", selection=[plain]),
]

# No pool says that this one needs a service.
CAMPAIGNS = [Campaign(job=visits)]

defs = build_definitions(
    dg.Definitions(
        jobs=[question, contacts_job, visits, *KINDS],
        assets=[contacts, sides, picture, sales, plain],
        executor=dg.in_process_executor,
    ),
    services=[
        ServiceConfig(
            name="crm", consecutive_failures=1, reset_timeout_s=0.5, jitter=0, ramp_interval_s=0
        ),
        ServiceConfig(name="maps", consecutive_failures=2, reset_timeout_s=600, ramp_interval_s=0),
    ],
    campaigns=CAMPAIGNS,
)
