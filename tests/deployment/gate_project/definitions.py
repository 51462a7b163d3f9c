"""A code location for the acceptance tests of the gate: short campaigns with quick policies.

Its services are those of the sandbox, called over HTTP by the clients of the reference deployment.
"""

import os
from collections.abc import Sequence

import dagster as dg

from dagster_tidegate import (
    BreakerResource,
    Budget,
    Campaign,
    ServiceConfig,
    build_breaker_sensor,
    build_pause_sensor,
    build_resume_sensor,
    pool,
)
from resources.apollo import ApolloResource
from resources.instantly import InstantlyResource
from resources.openai import OpenAIResource
from resources.perplexity import PerplexityResource

SANDBOX = os.environ["DEMO_SANDBOX_URL"]
RECORDS = int(os.environ["GATE_PROJECT_RECORDS"])
MANY = 300  # records of the partitions 190 and above
BUDGET = 3 * RECORDS // 2
# Each tick takes a tenth of a second of a processor.
EVERY_S = 2
if os.environ.get("GATE_PROJECT_BROKEN"):
    raise RuntimeError("this code location can't be loaded")
NEVER = "0 0 29 2 *"

parts = dg.StaticPartitionsDefinition([str(number) for number in range(200)])


def addresses(context: dg.OpExecutionContext) -> list[dict]:
    count = MANY if int(context.partition_key) >= 190 else RECORDS
    return [{"email": f"{n}@acme.example", "part": context.partition_key} for n in range(count)]


@dg.op(pool=pool("openai"))
def compose(
    context: dg.OpExecutionContext, breakers: BreakerResource, openai: OpenAIResource
) -> list[dict]:
    records = breakers.records(context, addresses(context), key="email")
    for record in records:
        with record:
            about = f"{context.job_name}/{context.partition_key}/{record.key}"
            text = openai.write("Say it.", about, idempotency_key=record.idempotency_key)
            record.result = {**record.value, "text": text}
    return records.results()


def hand_over(
    context: dg.OpExecutionContext,
    breakers: BreakerResource,
    instantly: InstantlyResource,
    letters: list[dict],
) -> None:
    for record in breakers.records(context, letters, key="email"):
        with record:
            record.result = instantly.add_lead(
                {"first_name": "", "last_name": "", "text": "", **record.value},
                campaign=f"{context.job_name}-{context.partition_key}",
                idempotency_key=record.idempotency_key,
            )


@dg.op(pool=pool("instantly", "openai", campaign="letters"))
def send(
    context: dg.OpExecutionContext,
    breakers: BreakerResource,
    instantly: InstantlyResource,
    composed: list[dict],
) -> None:
    hand_over(context, breakers, instantly, composed)


@dg.op(pool=pool("instantly"))
def notify(
    context: dg.OpExecutionContext, breakers: BreakerResource, instantly: InstantlyResource
) -> None:
    hand_over(context, breakers, instantly, addresses(context))


class PeopleMatch(ApolloResource):
    """One endpoint of apollo."""

    service = "apollo/people_match"


class Enrichment(ApolloResource):
    """Another one."""

    service = "apollo/enrich"


def find(context: dg.OpExecutionContext, breakers: BreakerResource, apollo: ApolloResource) -> None:
    for record in breakers.records(context, addresses(context), key="email"):
        with record:
            email = f"{context.job_name}-{context.partition_key}-{record.key}"
            lead = {"email": email, "first_name": "", "last_name": "", "company": ""}
            record.result = apollo.match(lead, idempotency_key=record.idempotency_key) is not None


@dg.op(pool=pool("apollo/people_match"))
def match(
    context: dg.OpExecutionContext, breakers: BreakerResource, people_match: PeopleMatch
) -> None:
    find(context, breakers, people_match)


@dg.op(pool=pool("apollo/enrich"))
def enrich(
    context: dg.OpExecutionContext, breakers: BreakerResource, enrichment: Enrichment
) -> None:
    find(context, breakers, enrichment)


@dg.op(pool=pool("perplexity"))
def read_news(
    context: dg.OpExecutionContext, breakers: BreakerResource, perplexity: PerplexityResource
) -> None:
    for record in breakers.records(context, addresses(context), key="email"):
        with record:
            record.result = perplexity.news(
                f"{context.partition_key}/{record.key}", idempotency_key=record.idempotency_key
            )


@dg.job(partitions_def=parts, executor_def=dg.in_process_executor)
def news():
    """Needs a service that has a budget."""
    read_news()


@dg.job(partitions_def=parts, executor_def=dg.in_process_executor)
def matches():
    """Needs one endpoint of apollo."""
    match()


@dg.job(partitions_def=parts, executor_def=dg.in_process_executor)
def enrichments():
    """Needs another endpoint of apollo."""
    enrich()


@dg.job(partitions_def=parts, executor_def=dg.in_process_executor)
def letters():
    """Needs openai and then instantly."""
    send(compose())


@dg.job(partitions_def=parts, executor_def=dg.in_process_executor)
def essays():
    """Needs openai alone."""
    compose()


@dg.job(partitions_def=parts, executor_def=dg.in_process_executor)
def digests():
    """Needs openai alone, too."""
    compose()


@dg.job(partitions_def=parts, executor_def=dg.in_process_executor)
def notices():
    """Needs instantly alone."""
    notify()


@dg.sensor(job=letters, default_status=dg.DefaultSensorStatus.RUNNING)
def new_letters():
    return dg.SkipReason("none")


@dg.sensor(job=notices)
def new_notices():
    return dg.SkipReason("none")


CAMPAIGNS = [
    Campaign(job=letters, triggers=[new_letters]),
    Campaign(job=essays),
    Campaign(job=digests),
    Campaign(job=notices, triggers=[new_notices]),
    Campaign(job=matches),
    Campaign(job=enrichments),
    Campaign(job=news),
]


def policy(
    name: str,
    probe_url: str | None = None,
    parts: Sequence[str] = (),
    budget: Budget | None = None,
) -> ServiceConfig:
    return ServiceConfig(
        name=name,
        profile=name if parts else "generic",
        parts=list(parts),
        consecutive_failures=2,
        reset_timeout_s=1,
        reset_timeout_cap_s=4,
        jitter=0,
        ramp_interval_s=0,
        slow_call_rate=None,  # a busy machine is no brownout
        probe_url=probe_url,
        budget=budget,
    )


breakers = BreakerResource(
    services=[
        policy("openai", probe_url=f"{SANDBOX}/openai/health"),
        policy("instantly"),  # tried by a canary
        policy("apollo", parts=["people_match", "enrich"]),
        policy("perplexity", budget=Budget(BUDGET, per="month")),
    ]
)


def schedule(job: dg.JobDefinition, *, runs: bool) -> dg.ScheduleDefinition:
    status = dg.DefaultScheduleStatus.RUNNING if runs else dg.DefaultScheduleStatus.STOPPED

    @dg.schedule(name=f"{job.name}_schedule", job=job, cron_schedule=NEVER, default_status=status)
    def found():
        return dg.RunRequest(partition_key="199")

    return found


defs = dg.Definitions(
    jobs=[letters, essays, digests, notices, matches, enrichments, news],
    schedules=[
        schedule(letters, runs=True),
        schedule(essays, runs=False),
        schedule(notices, runs=False),
    ],
    sensors=[
        new_letters,
        new_notices,
        build_pause_sensor(campaigns=CAMPAIGNS, minimum_interval_seconds=EVERY_S),
        build_resume_sensor(campaigns=CAMPAIGNS, minimum_interval_seconds=EVERY_S),
        build_breaker_sensor(campaigns=CAMPAIGNS, minimum_interval_seconds=EVERY_S),
    ],
    resources={
        "breakers": breakers,
        "people_match": PeopleMatch(breakers=breakers, base_url=f"{SANDBOX}/apollo"),
        "enrichment": Enrichment(breakers=breakers, base_url=f"{SANDBOX}/apollo"),
        "openai": OpenAIResource(breakers=breakers, base_url=f"{SANDBOX}/openai"),
        "instantly": InstantlyResource(breakers=breakers, base_url=f"{SANDBOX}/instantly"),
        "perplexity": PerplexityResource(breakers=breakers, base_url=f"{SANDBOX}/perplexity"),
    },
)
