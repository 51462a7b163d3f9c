"""How much is paused and how much is waiting."""

from collections.abc import Iterable

from fastapi import APIRouter

from dagster_tidegate.control.models import QueueOut, ServiceQueue
from dagster_tidegate.statuses import UNFINISHED, RunStatus
from dagster_tidegate.store import campaign_stats
from dagster_tidegate.store.campaign_stats import UnfinishedRuns
from dagster_tidegate.web.api.authentication import Viewer
from dagster_tidegate.web.api.context import Context

router = APIRouter(prefix="/queue", tags=["queue"])


@router.get("")
def get_queue(context: Context, _identity: Viewer) -> QueueOut:
    """Show the paused campaigns, and for each service the unfinished runs and remaining records."""
    with context.reading() as (conn, situation):
        waiting = campaign_stats.unfinished(conn)
    campaigns = situation.campaigns
    services = []
    for name in sorted(situation.services):
        dependents = {each for each, campaign in campaigns.items() if name in campaign.services}
        runs = [each for each in waiting if each.campaign in dependents]
        breaker = situation.breakers.get(name)
        services.append(
            ServiceQueue(
                service=name,
                state=None if breaker is None else breaker.state,
                campaigns=len(dependents),
                paused_campaigns=sorted(each for each in dependents if campaigns[each].holds),
                runs=_by_status(runs),
                records_left=sum(each.records_left for each in runs),
            )
        )
    return QueueOut(
        paused_campaigns=sorted(name for name, campaign in campaigns.items() if campaign.holds),
        runs=_by_status(waiting),
        services=services,
    )


def _by_status(waiting: Iterable[UnfinishedRuns]) -> dict[RunStatus, int]:
    counts = {status: 0 for status in RunStatus if status in UNFINISHED}
    for each in waiting:
        counts[each.status] += each.runs
    return counts
