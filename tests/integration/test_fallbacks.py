"""A campaign whose records any of two services can do."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from dagster_tidegate import BreakerResource, Budget, CampaignPaused, ServiceConfig, pool
from dagster_tidegate.records.record import Record
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import budgets, records, runs
from dagster_tidegate.store.records import Selection
from dagster_tidegate.testing import Service, assert_completed, assert_each_once, assert_paused

CHAIN = ("apollo", "clearbit")
KEYS = [f"lead-{number}" for number in range(12)]


def resource() -> BreakerResource:
    services = [
        ServiceConfig(name="apollo", consecutive_failures=3),
        ServiceConfig(name="clearbit", consecutive_failures=3),
    ]
    return BreakerResource.in_memory(services)


def job(
    clients: dict[str, Service], *, at_once: bool = False, in_pool: str = pool("apollo|clearbit")
) -> dg.JobDefinition:
    @dg.op(pool=in_pool)
    def find(context: dg.OpExecutionContext, breakers: BreakerResource) -> list[str]:
        def find_one(record: Record) -> str:
            service = breakers.first_available(*CHAIN)
            return service.call(clients[service.name], record.key)

        records = breakers.records(context, KEYS, key=str)
        if at_once:
            return records.map(find_one, concurrency=4)
        for record in records:
            with record:
                record.result = find_one(record)
        return records.results()

    @dg.job
    def leads() -> None:
        find()

    return leads


def served(breakers: BreakerResource) -> Counter[str | None]:
    store = breakers.store
    with store.read() as conn:
        [run] = runs.newest(conn, campaign="leads", limit=2)
        found = records.read(conn, store.now(conn), run, Selection(), limit=100)
    return Counter(record.service for record in found)


@pytest.mark.parametrize("in_pool", ["apollo|clearbit", "@leads"])
@pytest.mark.parametrize("at_once", [False, True])
def test_records_go_on_with_the_second_service_when_the_first_fails_in_mid_call(
    at_once: bool, in_pool: str
):
    clients = {"apollo": Service(200, 200, *[503] * 20), "clearbit": Service()}
    breakers = resource()
    result = job(clients, at_once=at_once, in_pool=in_pool).execute_in_process(
        resources={"breakers": breakers}
    )
    assert_completed(result)
    assert result.output_for_node("find") == KEYS
    done = [*clients["apollo"].done, *clients["clearbit"].done]
    assert sorted(done) == sorted((key,) for key in KEYS)
    assert served(breakers) == {"apollo": 2, "clearbit": 10}


def test_a_run_pauses_once_all_services_of_the_chain_are_down_and_waits_for_any():
    clients = {"apollo": Service(200, *[503] * 20), "clearbit": Service(*[503] * 20)}
    breakers = resource()
    result = job(clients).execute_in_process(resources={"breakers": breakers}, raise_on_error=False)
    assert_paused(result, "apollo")
    assert_paused(result, "clearbit")
    with breakers.store.read() as conn:
        [run] = runs.newest(conn, campaign="leads", limit=2)
    assert (run.status, run.refused_by) == (RunStatus.PAUSED, ())


def test_a_call_of_a_chain_is_paid_by_the_campaign() -> None:
    paid = ServiceConfig(name="apollo", budget=Budget(100))
    breakers = BreakerResource.in_memory([paid, ServiceConfig(name="clearbit")])

    @dg.op
    def find(breakers: BreakerResource) -> None:
        breakers.first_available(*CHAIN).call(str.upper, "x")

    @dg.job
    def leads() -> None:
        find()

    assert_completed(leads.execute_in_process(resources={"breakers": breakers}))
    breakers.fleet.flush(final=True)
    with breakers.store.read() as conn:
        spent = [(each.campaign, each.amount) for each in budgets.history(conn, "apollo", 9)]
    assert spent == [("leads", 1)]


def test_an_op_that_calls_one_service_of_its_chain_alone_waits_for_that_one():
    client, breakers = Service(*[503] * 20), resource()

    @dg.op(pool=pool("apollo|clearbit"))
    def find(context: dg.OpExecutionContext, breakers: BreakerResource) -> None:
        for record in breakers.records(context, KEYS, key=str):
            with record:
                breakers.breaker("apollo").call(client, record.key)

    @dg.job
    def leads() -> None:
        find()

    result = leads.execute_in_process(resources={"breakers": breakers}, raise_on_error=False)
    assert_paused(result, "apollo")
    with breakers.store.read() as conn:
        [run] = runs.newest(conn, campaign="leads", limit=2)
    assert run.refused_by == ("apollo",)


def test_the_functions_of_ops_use_the_second_service_too():
    clients = {"apollo": Service(*[503] * 20), "clearbit": Service()}
    find = job(clients).nodes[0].definition
    assert isinstance(find, dg.OpDefinition)
    with dg.build_op_context() as context:
        assert find(context, breakers=resource()) == KEYS


def test_a_throttle_of_a_moment_is_waited_for_in_place():
    """To pause a run takes longer, and Dagster launches another for it."""
    client, breakers = Service(200, (429, {"Retry-After": "1"})), resource()

    @dg.op(pool=pool("apollo"))
    def find(context: dg.OpExecutionContext, breakers: BreakerResource) -> list[str]:
        records = breakers.records(context, KEYS, key=str)
        return records.map(lambda record: breakers.breaker("apollo").call(client, record.key))

    @dg.job
    def leads() -> None:
        find()

    result = leads.execute_in_process(resources={"breakers": breakers})
    assert_completed(result)
    assert_each_once(client, KEYS)


def test_a_throttle_of_many_seconds_pauses_at_once():
    until = datetime.now(UTC) + timedelta(seconds=20)
    client = Service(200, (429, {"Retry-After": str(20)}))
    breakers = resource()

    @dg.op(pool=pool("apollo"))
    def find(context: dg.OpExecutionContext, breakers: BreakerResource) -> None:
        for record in breakers.records(context, KEYS, key=str):
            with record:
                breakers.breaker("apollo").call(client, record.key)

    with dg.build_op_context() as context, pytest.raises(CampaignPaused):
        find(context, breakers=breakers)
    assert datetime.now(UTC) < until
