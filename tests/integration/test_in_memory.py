"""A campaign in a user's unit test: no daemon, no instance, no database."""

import warnings
from collections.abc import Callable
from typing import Any

import dagster as dg
import pytest
from pydantic.warnings import PydanticDeprecatedSince20

from dagster_tidegate import (
    BreakerOpenError,
    BreakerResource,
    CampaignPaused,
    Rejected,
    ServiceConfig,
    pool,
)
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import runs
from dagster_tidegate.testing import Service, assert_each_once, assert_paused

SERVICES = [ServiceConfig(name="instantly", consecutive_failures=2, reset_timeout_s=600)]
LEADS = [{"email": f"{name}@example.org"} for name in ("ada", "alan", "grace")]


def campaign(client: Service, *, at_once: bool) -> dg.JobDefinition:
    @dg.op(pool=pool("instantly"))
    def send(context: dg.OpExecutionContext, breakers: BreakerResource) -> list[str]:
        breaker = breakers.breaker("instantly")
        records = breakers.records(context, LEADS, key="email")
        if at_once:
            return records.map(lambda record: breaker.call(client, record.key))
        for record in records:
            with record:
                record.result = breaker.call(client, record.key)
        return records.results()

    @dg.job
    def outreach() -> None:
        send()

    return outreach


def test_a_campaign_runs_in_a_unit_test() -> None:
    for at_once in (False, True):
        client = Service()
        breakers = BreakerResource.in_memory(SERVICES)
        result = campaign(client, at_once=at_once).execute_in_process(
            resources={"breakers": breakers}
        )
        assert result.output_for_node("send") == [lead["email"] for lead in LEADS]
        assert_each_once(client, [lead["email"] for lead in LEADS])


def test_an_outage_pauses_in_a_unit_test_and_the_next_has_a_breaker_of_its_own() -> None:
    client = Service(503, 503)
    breakers = BreakerResource.in_memory(SERVICES)
    result = campaign(client, at_once=False).execute_in_process(
        resources={"breakers": breakers}, raise_on_error=False
    )
    assert_paused(result, "instantly")
    assert breakers.fleet.snapshot().services["instantly"].state is BreakerState.OPEN
    again = BreakerResource.in_memory(SERVICES)
    assert again.fleet.snapshot().services["instantly"].state is BreakerState.CLOSED


@dg.op(pool=pool("instantly"))
def send_all(context: dg.OpExecutionContext, breakers: BreakerResource) -> list[str]:
    records = breakers.records(context, LEADS, key="email")
    for record in records:
        with record:
            record.result = breakers.breaker("instantly").call(str.upper, record.key)
    return records.results()


@dg.asset(pool=pool("instantly"))
def sent(context: dg.AssetExecutionContext, breakers: BreakerResource) -> list[str]:
    records = breakers.records(context, LEADS, key="email")
    for record in records:
        with record:
            record.result = breakers.breaker("instantly").call(str.upper, record.key)
    return records.results()


SENT = [lead["email"].upper() for lead in LEADS]


def test_ops_and_assets_can_be_called_directly_or_materialized_without_a_setup() -> None:
    breakers = BreakerResource.in_memory(SERVICES)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        warnings.filterwarnings("ignore", category=PydanticDeprecatedSince20)
        for _ in range(2):  # each is a campaign run of its own
            assert send_all(dg.build_op_context(), breakers=breakers) == SENT
            assert sent(dg.build_asset_context(), breakers=breakers) == SENT
        result = dg.materialize([sent], resources={"breakers": breakers})
    assert result.output_for_node("sent") == SENT


@pytest.mark.parametrize(
    ("loops", "error"), [(True, CampaignPaused), (False, BreakerOpenError)], ids=["loop", "plain"]
)
def test_materialize_raises_what_ended_the_paused_step_or_returns_a_result_without_success(
    loops: bool, error: type[Exception]
) -> None:
    @dg.asset(pool=pool("instantly"))
    def letters(context: dg.AssetExecutionContext, breakers: BreakerResource) -> list[str]:
        breaker = breakers.breaker("instantly")
        if not loops:
            return [breaker.call(str.upper, LEADS[0]["email"])]
        records = breakers.records(context, LEADS, key="email")
        return records.map(lambda record: breaker.call(str.upper, record.key))

    @dg.asset
    def report(letters: list[str]) -> None: ...

    breakers = BreakerResource.in_memory(SERVICES)
    breakers.breaker("instantly").open()
    options: Any = {"resources": {"breakers": breakers}}
    with pytest.raises(error, match="instantly is open"):
        dg.materialize([letters, report], **options)
    instance = dg.DagsterInstance.ephemeral()
    result = dg.materialize([letters, report], instance=instance, raise_on_error=False, **options)
    assert not result.success
    assert_paused(result, "instantly")
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.CANCELED
    assert instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE) == []
    assert instance.get_latest_materialization_event(dg.AssetKey("letters")) is None
    assert instance.get_latest_materialization_event(dg.AssetKey("report")) is None


def test_a_direct_call_raises_where_a_run_would_pause() -> None:
    breakers = BreakerResource.in_memory(SERVICES)
    breakers.breaker("instantly").open()
    with pytest.raises(CampaignPaused, match="Paused at 0/3: instantly is open"):
        sent(dg.build_asset_context(), breakers=breakers)


def reject_some(bad: int) -> Callable[[dict], str]:
    refused = {lead["email"] for lead in LEADS[:bad]}

    def send(lead: dict) -> str:
        if lead["email"] in refused:
            raise Rejected("422 no such address")
        return lead["email"]

    return send


def asset_of(send: Callable[[dict], str], max_failed: float | None) -> dg.AssetsDefinition:
    @dg.asset(pool=pool("instantly"))
    def partial(context: dg.AssetExecutionContext, breakers: BreakerResource) -> list[str]:
        records = breakers.records(context, LEADS, key="email", max_failed=max_failed)
        return records.map(lambda record: send(record.value))

    return partial


def test_an_asset_is_not_materialized_on_partial_data_unless_its_author_allows_it() -> None:
    for allowed, succeeds in ((None, False), (0.4, True)):
        instance = dg.DagsterInstance.ephemeral()
        breakers = BreakerResource.in_memory(SERVICES)
        result = dg.materialize(
            [asset_of(reject_some(1), allowed)],
            instance=instance,
            resources={"breakers": breakers},
            raise_on_error=False,
        )
        assert result.success is succeeds
        event = instance.get_latest_materialization_event(dg.AssetKey("partial"))
        assert (event is not None) is succeeds
        if not succeeds:
            [failure] = [event for event in result.all_events if event.is_step_failure]
            error = failure.step_failure_data.error
            assert error is not None
            assert error.cause is not None
            message = error.cause.message
            assert "1 of 3 records failed; max_failed allows 0%" in message
            assert "422 no such address" in message
            assert "tidegate records retry" in message


@pytest.mark.parametrize("loops", [False, True])
def test_an_op_that_dagster_begins_again_in_a_terminated_run_sends_nothing(loops: bool) -> None:
    calls: list[str] = []

    @dg.op(pool=pool("instantly"), retry_policy=dg.RetryPolicy(max_retries=3))
    def send(context: dg.OpExecutionContext, breakers: BreakerResource) -> None:
        if context.retry_number == 0:  # as a person terminates it
            context.instance.report_run_canceling(context.run)
            raise KeyboardInterrupt
        if not loops:
            breakers.breaker("instantly").call(calls.append, "one")
            return
        for record in breakers.records(context, LEADS, key="email"):
            with record:
                breakers.breaker("instantly").call(calls.append, record.key)

    @dg.job
    def terminated() -> None:
        send()

    instance = dg.DagsterInstance.ephemeral()
    breakers = BreakerResource.in_memory(SERVICES)
    result = terminated.execute_in_process(
        instance=instance, resources={"breakers": breakers}, raise_on_error=False
    )
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.CANCELED
    assert calls == []
    with breakers.store.read() as conn:
        row = runs.find(conn, "terminated", run.run_id)
    assert row is not None
    assert (row.status, row.reason) == (
        RunStatus.CANCELLED,
        "Cancelled: it was terminated in Dagster",
    )
