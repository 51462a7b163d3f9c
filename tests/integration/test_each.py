"""`each`: ops and assets made of functions of one record."""

import asyncio
from typing import Any

import dagster as dg
import pytest

from dagster_tidegate import BreakerResource, Record, ServiceConfig, each
from dagster_tidegate.testing import assert_paused

SERVICES = [ServiceConfig(name="mailer", consecutive_failures=1), ServiceConfig(name="crm")]
LEADS = [{"email": f"{name}@example.org"} for name in ("ada", "alan", "grace")]
KEYS = [lead["email"] for lead in LEADS]


@dg.op
def leads() -> list[dict]:
    return LEADS


def executed(op: Any, breakers: BreakerResource, **options: Any) -> dg.ExecuteInProcessResult:
    @dg.job
    def letters() -> None:
        op(leads())

    return letters.execute_in_process(resources={"breakers": breakers}, **options)


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("is_async", [False, True])
def test_an_op_of_a_function_calls_it_once_for_each_record_through_its_breaker(
    concurrency: int, is_async: bool
) -> None:
    calls = []

    def send(lead: dict, record: Record) -> str:
        calls.append(record.idempotency_key)
        return lead["email"]

    async def send_async(lead: dict, record: Record) -> str:
        await asyncio.sleep(0)
        return send(lead, record)

    function = send_async if is_async else send
    op = each("mailer", key="email", concurrency=concurrency)(function)
    assert (op.name, op.pool) == (function.__name__, "mailer")
    breakers = BreakerResource.in_memory(SERVICES)
    result = executed(op, breakers)
    assert result.output_for_node(op.name) == KEYS
    assert len(set(calls)) == 3
    breakers.breaker("mailer").open()
    result = executed(op, breakers, raise_on_error=False)
    assert_paused(result, "mailer")
    assert len(calls) == 3


def test_an_asset_of_a_function_takes_its_records_from_the_asset_upstream() -> None:
    @dg.asset
    def people() -> list[dict]:
        return LEADS

    @each("mailer", key="email", items="people", asset=True, group_name="post")
    def letters(person: dict) -> str:
        """A letter to each person."""
        return person["email"].upper()

    assert letters.keys == {dg.AssetKey("letters")}
    assert letters.descriptions_by_key[dg.AssetKey("letters")] == "A letter to each person."
    breakers = BreakerResource.in_memory(SERVICES)
    result = dg.materialize([people, letters], resources={"breakers": breakers})
    assert result.output_for_node("letters") == [key.upper() for key in KEYS]
    again = letters(dg.build_asset_context(), breakers=breakers, people=LEADS[:1])
    assert again == [KEYS[0].upper()]


class Api(dg.ConfigurableResource):
    prefix: str

    def send(self, email: str) -> str:
        return f"{self.prefix}: {email}"


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_function_takes_the_resources_of_its_project(concurrency: int) -> None:
    @dg.asset
    def people() -> list[dict]:
        return LEADS

    @each("mailer", key="email", items="people", asset=True, concurrency=concurrency)
    def letters(lead: dict, api: Api, sign: dg.ResourceParam[str], record: Record) -> str:
        return f"{api.send(lead['email'])} {sign} {record.idempotency_key[:0]}"

    result = dg.materialize(
        [people, letters],
        resources={
            "api": Api(prefix="to"),
            "sign": "yours",
            "breakers": BreakerResource.in_memory(SERVICES),
        },
    )
    assert result.output_for_node("letters") == [f"to: {key} yours " for key in KEYS]


def test_where_breakers_is_another_resource_each_takes_it_by_its_key() -> None:
    @each("mailer", key="email", items="people", asset=True, resource_key="tidegate")
    def letters(person: dict, breakers: BreakerResource) -> str:
        return breakers.breaker("mailer").call(str.upper, person["email"])

    @dg.asset
    def people(breakers: dg.ResourceParam[str]) -> list[dict]:
        assert breakers == "of the light"
        return LEADS

    resources = {"breakers": "of the light", "tidegate": BreakerResource.in_memory(SERVICES)}
    result = dg.materialize([people, letters], resources=resources)
    assert result.output_for_node("letters") == [key.upper() for key in KEYS]


def test_a_function_of_several_services_calls_each_through_its_breaker() -> None:
    @each("crm", "mailer", key="email")
    def reach(lead: dict, breakers: BreakerResource) -> str:
        name = breakers.breaker("crm").call(str.title, lead["email"])
        return breakers.breaker("mailer").call(str, name)

    assert reach.pool == "crm+mailer"
    result = executed(reach, BreakerResource.in_memory(SERVICES))
    assert result.output_for_node("reach") == [key.title() for key in KEYS]


@pytest.mark.parametrize(
    ("function", "services", "problem"),
    [
        (lambda: None, ["mailer"], "takes nothing: it must take an item first"),
        (lambda lead, other: None, ["mailer"], "takes lead, other: it must take an item first"),  # noqa: ARG005
        (lambda lead: None, ["mailer", "crm"], "calls 2 services: give it a parameter"),  # noqa: ARG005
    ],
)
def test_a_function_that_can_not_be_called_with_a_record_is_refused_at_once(
    function: Any, services: list[str], problem: str
) -> None:
    with pytest.raises(TypeError, match=problem):
        each(*services, key="email")(function)
