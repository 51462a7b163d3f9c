"""A small code location of assets that run outside of jobs. As in `gate_project`."""

import os
from pathlib import Path

import dagster as dg

from dagster_tidegate import BreakerResource, ServiceConfig, build_definitions

UP = Path(os.environ["GATE_PROJECT_UP"])
CALLS = Path(os.environ["GATE_PROJECT_CALLS"])
days = dg.StaticPartitionsDefinition(["d1", "d2", "d3"])
arrivals = dg.DynamicPartitionsDefinition(name="arrivals")
unhandled = dg.AutomationCondition.missing() & ~dg.AutomationCondition.in_progress()


def note(text: str) -> None:
    with CALLS.open("a") as calls:
        calls.write(f"{text}\n")


def call(service: str, key: str) -> str:
    if not (UP / service).exists():
        raise ConnectionError(f"{service} is down")
    note(key)
    return key


def send(
    context: dg.AssetExecutionContext, breakers: BreakerResource, service: str, count: int = 3
) -> list[str]:
    name = context.asset_key.to_user_string()
    if context.has_partition_key:
        name += f"/{context.partition_key}"
    keys = [f"{name}-{n}" for n in range(count)]
    records = breakers.records(context, [{"key": key} for key in keys], key="key")
    for record in records:
        with record:
            record.result = breakers.breaker(service).call(call, service, record.key)
    return records.results()


@dg.asset(pool="crm", partitions_def=days)
def contacts(context: dg.AssetExecutionContext, breakers: BreakerResource) -> list[str]:
    return send(context, breakers, "crm")


@dg.asset(pool="geo_pool")
def places(context: dg.AssetExecutionContext, breakers: BreakerResource) -> list[str]:
    return send(context, breakers, "geo")


@dg.asset
def free() -> None:
    note("free")


@dg.asset
def source() -> None: ...


@dg.asset(pool="crm", deps=[source], automation_condition=dg.AutomationCondition.eager())
def eager(context: dg.AssetExecutionContext, breakers: BreakerResource) -> list[str]:
    return send(context, breakers, "crm")


@dg.asset(deps=[source], automation_condition=dg.AutomationCondition.eager())
def eager_and_free() -> None:
    note("eager_and_free")


@dg.asset(pool="crm", automation_condition=unhandled)
def custom(context: dg.AssetExecutionContext, breakers: BreakerResource) -> list[str]:
    return send(context, breakers, "crm")


@dg.asset(pool="crm", automation_condition=dg.AutomationCondition.on_cron("* * * * *"))
def minutely(context: dg.AssetExecutionContext, breakers: BreakerResource) -> list[str]:
    return send(context, breakers, "crm")


@dg.asset(
    pool="crm",
    partitions_def=arrivals,
    automation_condition=dg.AutomationCondition.on_missing(),
)
def welcomes(context: dg.AssetExecutionContext, breakers: BreakerResource) -> list[str]:
    return send(context, breakers, "crm")


@dg.asset(pool="crm")
def receipts(context: dg.AssetExecutionContext, breakers: BreakerResource) -> list[str]:
    return send(context, breakers, "crm")


@dg.asset(pool="crm")
def invoices(context: dg.AssetExecutionContext, breakers: BreakerResource) -> list[str]:
    sent = send(context, breakers, "crm")
    if not (UP / "printer").exists():
        raise RuntimeError("the code has a bug")
    return sent


def automation(*assets: dg.AssetsDefinition) -> dg.AutomationConditionSensorDefinition:
    return dg.AutomationConditionSensorDefinition(
        name="_and_".join(asset.key.to_user_string() for asset in assets),
        target=list(assets),
        use_user_code_server=True,
    )


def service(name: str, *pools: str) -> ServiceConfig:
    return ServiceConfig(
        name=name,
        pools=list(pools),
        consecutive_failures=2,
        reset_timeout_s=0.5,
        jitter=0,
        ramp_interval_s=0,
    )


AUTOMATED = [eager, eager_and_free, custom, minutely, welcomes]

defs = build_definitions(
    dg.Definitions(
        assets=[contacts, places, free, source, *AUTOMATED, receipts, invoices],
        sensors=[
            automation(eager, eager_and_free),
            automation(custom),
            automation(minutely),
            automation(welcomes),
        ],
        executor=dg.in_process_executor,
    ),
    services=[service("crm"), service("geo", "geo_pool")],
)
