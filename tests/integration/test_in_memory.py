"""A campaign in a user's unit test: no daemon, no instance, no database."""

import dagster as dg

from dagster_tidegate import BreakerResource, CampaignPaused, ServiceConfig, pool
from dagster_tidegate.statuses import BreakerState

SERVICES = [ServiceConfig(name="instantly", consecutive_failures=2, reset_timeout_s=600)]
LEADS = [{"email": f"{name}@example.org"} for name in ("ada", "alan", "grace")]


class Instantly:
    """What a user would put in the place of a client."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.down = False

    def send(self, lead: dict) -> str:
        if self.down:
            raise ConnectionError("reset by peer")
        self.sent.append(lead["email"])
        return lead["email"]


def campaign(client: Instantly, *, at_once: bool) -> dg.JobDefinition:
    @dg.op(pool=pool("instantly"))
    def send(context: dg.OpExecutionContext, breakers: BreakerResource) -> list[str]:
        breaker = breakers.breaker("instantly")
        records = breakers.records(context, LEADS, key="email")
        if at_once:
            return records.map(lambda record: breaker.call(client.send, record.value))
        for record in records:
            with record:
                record.result = breaker.call(client.send, record.value)
        return records.results()

    @dg.job
    def outreach() -> None:
        send()

    return outreach


def test_a_campaign_runs_in_a_unit_test() -> None:
    for at_once in (False, True):
        client = Instantly()
        breakers = BreakerResource.in_memory(SERVICES)
        result = campaign(client, at_once=at_once).execute_in_process(
            resources={"breakers": breakers}
        )
        assert result.output_for_node("send") == [lead["email"] for lead in LEADS]
        assert sorted(client.sent) == sorted(lead["email"] for lead in LEADS)


def test_an_outage_pauses_in_a_unit_test_and_the_next_has_a_breaker_of_its_own() -> None:
    client = Instantly()
    client.down = True
    breakers = BreakerResource.in_memory(SERVICES)
    result = campaign(client, at_once=False).execute_in_process(
        resources={"breakers": breakers}, raise_on_error=False
    )
    [failure] = [event for event in result.all_events if event.is_step_failure]
    error = failure.step_failure_data.error
    assert error is not None
    assert error.cls_name == CampaignPaused.__name__
    assert breakers.fleet.snapshot().services["instantly"].state is BreakerState.OPEN
    again = BreakerResource.in_memory(SERVICES)
    assert again.fleet.snapshot().services["instantly"].state is BreakerState.CLOSED
