"""The outreach campaign: identify the leads of a file and write to each."""

import dagster as dg

from dagster_tidegate import BreakerResource, pool
from pipelines.lead_files import FIELDS, read_lead_file
from resources.apollo import ApolloResource
from resources.instantly import InstantlyResource
from resources.lead_directory import LeadDirectory
from resources.millionverifier import MillionVerifierResource
from resources.openai import OpenAIResource
from resources.perplexity import PerplexityResource
from resources.results import ResultsDatabase, letters

lead_files = dg.DynamicPartitionsDefinition(name="lead_files")

DELIVERABLE = ("ok", "catch_all")
TASK = "Two friendly sentences to open a letter. No flattery, no exclamation marks."


@dg.op(pool=pool(campaign="outreach"))
def read_leads(context: dg.OpExecutionContext, lead_directory: LeadDirectory) -> list[dict]:
    """Read the lead file of the partition; keep invalid lines separately."""
    lead_file = read_lead_file(lead_directory.file(context.partition_key))
    context.log.info(lead_file.summary)
    rejects = lead_directory.keep_rejects(context.partition_key, lead_file.rejects)
    context.log.info(
        f"{len(lead_file.leads)} leads; {len(lead_file.rejects)} lines rejected, see {rejects}"
    )
    return lead_file.leads.loc[:, list(FIELDS)].to_dict("records")


@dg.op(pool=pool("apollo"))
def fetch(
    context: dg.OpExecutionContext,
    breakers: BreakerResource,
    apollo: ApolloResource,
    leads: list[dict],
) -> list[dict]:
    """Identify each lead."""
    records = breakers.records(context, leads, key="email")
    for record in records:
        with record:
            person = apollo.match(record.value, idempotency_key=record.idempotency_key)
            record.result = {
                **record.value,
                "title": person and person.title,
                "company": person.organization.name if person else record.value["company"],
            }
    return records.results()


@dg.op(pool=pool("millionverifier"))
def verify(
    context: dg.OpExecutionContext,
    breakers: BreakerResource,
    millionverifier: MillionVerifierResource,
    people: list[dict],
) -> list[dict]:
    """Verify that each address is deliverable."""
    records = breakers.records(context, people, key="email")
    for record in records:
        with record:
            verification = millionverifier.verify(
                record.value["email"], idempotency_key=record.idempotency_key
            )
            record.result = {**record.value, "verification": verification}
    return records.results()


@dg.op(pool=pool("perplexity"))
def enrich(
    context: dg.OpExecutionContext,
    breakers: BreakerResource,
    perplexity: PerplexityResource,
    verified: list[dict],
) -> list[dict]:
    """Find news of the company of each lead with a deliverable address."""
    deliverable = [person for person in verified if person["verification"] in DELIVERABLE]
    records = breakers.records(context, deliverable, key="email")
    for record in records:
        with record:
            news = perplexity.news(
                record.value["company"] or record.value["email"].rpartition("@")[2],
                idempotency_key=record.idempotency_key,
            )
            record.result = {**record.value, "news": news}
    return records.results()


@dg.op(pool=pool("openai"))
def write(
    context: dg.OpExecutionContext,
    breakers: BreakerResource,
    openai: OpenAIResource,
    people: list[dict],
) -> list[dict]:
    """Write a letter to each lead."""
    records = breakers.records(context, people, key="email")
    for record in records:
        with record:
            text = openai.write(TASK, record.value["news"], idempotency_key=record.idempotency_key)
            record.result = {**record.value, "text": text}
    return records.results()


@dg.op(pool=pool("instantly"))
def send(
    context: dg.OpExecutionContext,
    breakers: BreakerResource,
    instantly: InstantlyResource,
    letters: list[dict],
) -> list[dict]:
    """Send each letter."""
    records = breakers.records(context, letters, key="email")
    for record in records:
        with record:
            instantly_id = instantly.add_lead(
                record.value,
                campaign=context.partition_key,
                idempotency_key=record.idempotency_key,
            )
            record.result = {**record.value, "instantly_id": instantly_id}
    return records.results()


@dg.op
def load_letters(
    context: dg.OpExecutionContext,
    results: ResultsDatabase,
    leads: list[dict],
    verified: list[dict],
    sent: list[dict],
) -> None:
    """Store the outcome of each lead."""
    rows = outcomes(leads, verified, sent)
    results.replace(letters, context.partition_key, rows)
    context.log.info(f"{len(sent)} of {len(leads)} leads sent")


def outcomes(leads: list[dict], verified: list[dict], sent: list[dict]) -> list[dict]:
    """Return a row per lead: sent, undeliverable or failed."""
    verification = {person["email"]: person["verification"] for person in verified}
    letter = {person["email"]: person for person in sent}
    rows = []
    for email in (lead["email"] for lead in leads):
        verified_as = verification.get(email)
        if email in letter:
            status = "sent"
        elif verified_as is not None and verified_as not in DELIVERABLE:
            status = "undeliverable"
        else:
            status = "failed"
        rows.append(
            {
                "email": email,
                "status": status,
                "verification": verified_as,
                "text": letter.get(email, {}).get("text"),
                "instantly_id": letter.get(email, {}).get("instantly_id"),
            }
        )
    return rows


# In one process: the steps run one after the other, and starting a process for each would take
# longer than most of them.
@dg.job(partitions_def=lead_files, executor_def=dg.in_process_executor)
def outreach():
    """Find, verify, enrich, write and send, for the leads of one file."""
    leads = read_leads()
    verified = verify(fetch(leads))
    load_letters(leads, verified, send(write(enrich(verified))))
