"""The list hygiene campaign: every day, verify some of the addresses."""

from datetime import date

import dagster as dg

from dagster_tidegate import BreakerResource, pool
from pipelines.address_book import read_address_book, rotation
from resources.lead_directory import LeadDirectory
from resources.millionverifier import MillionVerifierResource
from resources.results import ResultsDatabase, addresses

ADDRESSES_A_DAY = 50

days = dg.DailyPartitionsDefinition(start_date="2025-01-01")


@dg.op(pool=pool(campaign="list_hygiene"))
def choose_addresses(context: dg.OpExecutionContext, lead_directory: LeadDirectory) -> list[dict]:
    """Choose the addresses of this day."""
    book = read_address_book(lead_directory.files().values(), context.log.warning)
    day = date.fromisoformat(context.partition_key).toordinal()
    return rotation(book.loc[:, ["email"]].to_dict("records"), day, ADDRESSES_A_DAY)


@dg.op(pool=pool("millionverifier"))
def check_addresses(
    context: dg.OpExecutionContext,
    breakers: BreakerResource,
    millionverifier: MillionVerifierResource,
    chosen: list[dict],
) -> list[dict]:
    """Verify that each address is deliverable."""
    records = breakers.records(context, chosen, key="email")
    for record in records:
        with record:
            email = record.value["email"]
            verification = millionverifier.verify(email, idempotency_key=record.idempotency_key)
            record.result = {"email": email, "verification": verification}
    return records.results()


@dg.op
def load_addresses(
    context: dg.OpExecutionContext, results: ResultsDatabase, checked: list[dict]
) -> None:
    """Store the results."""
    results.replace(addresses, context.partition_key, checked)


@dg.job(partitions_def=days, executor_def=dg.in_process_executor)
def list_hygiene():
    """Verify the addresses of the day."""
    load_addresses(check_addresses(choose_addresses()))


list_hygiene_schedule = dg.build_schedule_from_partitioned_job(
    list_hygiene,
    description="Starts the check of each day's addresses; needs millionverifier.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
