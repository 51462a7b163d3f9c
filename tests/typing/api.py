"""Exercises the types of the public API. Nothing runs it: pyright checks it."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

import dagster as dg

from dagster_tidegate import (
    ASSETS,
    Answer,
    AnswerError,
    Breaker,
    BreakerOpenError,
    BreakerResource,
    Budget,
    Campaign,
    CampaignCancelled,
    CampaignPaused,
    CatchUp,
    Denied,
    Fleet,
    Group,
    Keep,
    Pending,
    Rate,
    Record,
    Records,
    Rejected,
    ServiceConfig,
    ServicePolicy,
    Throttled,
    TidegateComponent,
    Verdict,
    Window,
    __version__,
    build_breaker_sensor,
    build_definitions,
    build_pause_sensor,
    build_resume_sensor,
    each,
    pool,
    service_key,
)
from dagster_tidegate.breaker import VerdictKind

Lead = dict[str, str]


def version() -> str:
    return __version__


def limited() -> ServiceConfig:
    return ServiceConfig(
        name="crm",
        limits=[Rate(calls=100, per_s=1), Rate(calls=600, per="day", timezone="Europe/Berlin")],
        budget=Budget(1000, per="month", unit="credits", balance="project.crm:balance"),
        windows=[Window(cron="0 2 * * SUN", duration_s=7200, reason="their backup")],
        profile="openai",
        judge="project.crm:judge",
    )


def judge(answer: Answer) -> Verdict:
    assert_type((answer.status, answer.headers.get("x-stage")), tuple[int | None, str | None])
    if answer.status == 409:
        return Verdict(VerdictKind.PENDING, reason="not there yet", until=datetime.now(UTC))
    return Verdict(VerdictKind.SUCCESS)


def client(status: int) -> None:
    if status == 401:
        raise Denied("the key is revoked")
    if status == 429:
        raise Throttled("slow down", after=20)
    if status == 404:
        raise Pending("not there yet", until=datetime.now(UTC))
    try:
        raise Rejected("no such person")
    except AnswerError as error:
        assert_type(error.verdict, Verdict)
        raise


@dg.op(pool=pool("apollo|clearbit"))
def enrich(context: dg.OpExecutionContext, breakers: BreakerResource) -> None:
    leads: list[Lead] = [{"email": "ada@example.org"}]
    for record in breakers.records(context, leads, key="email"):
        with record:
            breaker = breakers.first_available("apollo", "clearbit")
            assert_type(breaker, Breaker)
            record.result = record.once("find", breaker.call, len, record.value["email"])
            breaker.spend(1.5)


def component() -> TidegateComponent:
    return TidegateComponent(services=["crm"], resource_key="guard")


report = dg.AssetSpec("report", deps=[service_key("crm")])


def resources() -> BreakerResource:
    assert_type(BreakerResource.in_memory([ServiceConfig(name="crm")]), BreakerResource)
    return BreakerResource(
        services=[ServiceConfig(name="crm"), ServiceConfig(name="mail", linger_s=30)],
        store_url="sqlite:///tidegate.db",
        drain_timeout_s=10,
    )


@dg.op(pool=pool("crm", "mail", campaign="letters"))
def send(context: dg.OpExecutionContext, breakers: BreakerResource) -> list[Any]:
    leads: list[Lead] = [{"email": "ada@example.org"}]
    breaker = breakers.breaker("crm")
    assert_type(breaker, Breaker)
    records = breakers.records(context, leads, key="email")
    assert_type(records, Records[Lead])
    for record in records:
        assert_type(record, Record[Lead])
        with record:
            record.result = breaker.call(len, record.value["email"])
            assert_type(record.idempotency_key, str)
    assert_type((records.done, records.failed, records.total), tuple[int, int, int | None])
    return records.results()


@dg.asset(pool=pool("crm"))
def people(context: dg.AssetExecutionContext, breakers: BreakerResource) -> list[Any]:
    leads: list[Lead] = [{"email": "ada@example.org"}]
    records = breakers.records(context, leads, key="email", max_failed=0.1)
    assert_type(records, Records[Lead])
    return records.results()


@each("crm", key="email", items="people")
def greet(person: Lead) -> str:
    return person["email"]


@each("crm", key=lambda person: person["email"], items="people", asset=True, concurrency=4)
async def greetings(person: Lead, record: Record[Lead]) -> str:
    return f"{record.idempotency_key} {person['email']}"


assert_type(greet, dg.OpDefinition)
assert_type(greetings, dg.AssetsDefinition)


@dg.op
def options(context: dg.OpExecutionContext, breakers: BreakerResource) -> list[Any]:
    def numbers() -> Iterator[int]:
        yield 1

    return breakers.records(
        context,
        numbers(),
        key=lambda number: number,
        name="numbers",
        max_tries=3,
        max_failed=0.1,
        group=Group(records=500, seconds=2.0),
        append_only=True,
    ).map(lambda record: record.value, concurrency=4)


@dg.op
async def asynchronous(context: dg.OpExecutionContext, breakers: BreakerResource) -> None:
    async def pages() -> AsyncIterator[Lead]:
        yield {"email": "ada@example.org"}

    async def fetch(record: Record[Lead]) -> str:
        return record.value["email"]

    async for record in breakers.records(context, pages(), key="email"):
        assert_type(record, Record[Lead])
        with record:
            record.result = await breakers.breaker("crm").call_async(fetch, record)
    breakers.records(context, [Lead()], key="email", name="map").map(fetch)


@dg.job
def letters() -> None:
    send()


@dg.sensor(job=letters)
def new_files(_context: dg.SensorEvaluationContext) -> dg.SkipReason:
    return dg.SkipReason("none")


def definitions() -> dg.Definitions:
    campaigns = [
        Campaign(job=letters),
        Campaign(
            job=dg.define_asset_job("assets"),
            catch_up=CatchUp.ALL,
            triggers=[new_files, "another_sensor"],
            priority=1,
            max_ticks=10,
            owners=["ana"],
        ),
    ]
    sensors = [
        build_pause_sensor(campaigns=campaigns, minimum_interval_seconds=10),
        build_resume_sensor(campaigns=campaigns, name="resume", resource_key="guard"),
        build_breaker_sensor(campaigns=campaigns, keep=Keep(ledgers=timedelta(days=30))),
    ]
    return dg.Definitions(jobs=[letters], sensors=sensors, resources={"breakers": resources()})


def front_door(project: dg.Definitions) -> dg.Definitions:
    definitions = build_definitions(
        project,
        services=["crm", ServiceConfig(name="mail", pools=["mail_api"])],
        campaigns=[Campaign(job="letters", priority=1), Campaign(job=ASSETS, owners=["ana"])],
        keep=Keep(ledgers=timedelta(days=30)),
        store_url="sqlite:///tidegate.db",
        resource_key="guard",
    )
    assert_type(definitions, dg.Definitions)
    return definitions


def without_dagster() -> int:
    fleet = Fleet(policies=[ServicePolicy(name="crm")])
    try:
        return fleet.breaker("crm").call(len, "four")
    except BreakerOpenError:
        return 0


@dg.failure_hook
def alert(context: dg.HookContext) -> None:
    if isinstance(context.op_exception, CampaignPaused | CampaignCancelled):
        return
