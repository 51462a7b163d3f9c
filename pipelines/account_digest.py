"""The account digest campaign: every hour, summarize the news of some companies."""

import dagster as dg

from dagster_tidegate import BreakerResource, pool
from pipelines.address_book import read_address_book, rotation
from resources.lead_directory import LeadDirectory
from resources.openai import OpenAIResource
from resources.perplexity import PerplexityResource
from resources.results import ResultsDatabase, digests

ACCOUNTS_AN_HOUR = 10
TASK = "Summarize this for a colleague in sales, in two sentences."

hours = dg.HourlyPartitionsDefinition(start_date="2025-01-01-00:00")


@dg.op(pool=pool(campaign="account_digest"))
def choose_accounts(context: dg.OpExecutionContext, lead_directory: LeadDirectory) -> list[dict]:
    """Choose the companies of this hour."""
    book = read_address_book(lead_directory.files().values(), context.log.warning)
    companies = sorted(set(book["company"]) - {""})
    hour = int(context.partition_time_window.start.timestamp() // 3600)
    return [{"company": company} for company in rotation(companies, hour, ACCOUNTS_AN_HOUR)]


@dg.op(pool=pool("perplexity", "openai"))
def digest(
    context: dg.OpExecutionContext,
    breakers: BreakerResource,
    perplexity: PerplexityResource,
    openai: OpenAIResource,
    accounts: list[dict],
) -> list[dict]:
    """Find news of each company and summarize it."""
    records = breakers.records(context, accounts, key="company")
    for record in records:
        with record:
            company = record.value["company"]
            news = perplexity.news(company, idempotency_key=record.idempotency_key)
            text = openai.write(TASK, news, idempotency_key=record.idempotency_key)
            record.result = {"company": company, "text": text}
    return records.results()


@dg.op
def load_digests(
    context: dg.OpExecutionContext, results: ResultsDatabase, digested: list[dict]
) -> None:
    """Store the digests."""
    results.replace(digests, context.partition_key, digested)


@dg.job(partitions_def=hours, executor_def=dg.in_process_executor)
def account_digest():
    """Summarize the news of the companies of the hour."""
    load_digests(digest(choose_accounts()))


account_digest_schedule = dg.build_schedule_from_partitioned_job(
    account_digest,
    description="Starts the digest of each hour; needs openai and perplexity.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
