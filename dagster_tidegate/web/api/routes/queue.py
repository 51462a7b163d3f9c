"""What is paused and what waits, in numbers."""

from collections.abc import Iterable

from fastapi import APIRouter

from dagster_tidegate.control.models import QueueOut, ServiceQueue
from dagster_tidegate.statuses import UNFINISHED, RunStatus
from dagster_tidegate.store import campaign_stats
from dagster_tidegate.store.campaign_stats import Waiting
from dagster_tidegate.web.api.authentication import Viewer
from dagster_tidegate.web.api.context import Here

router = APIRouter(prefix="/queue", tags=["queue"])


@router.get("")
def get_queue(here: Here, _identity: Viewer) -> QueueOut:
    """Show which campaigns are paused, and per service the runs and records that are left."""
    with here.reading() as (conn, seen):
        waiting = campaign_stats.unfinished(conn)
    services = []
    for name in sorted(seen.services):
        needing = {each for each, found in seen.campaigns.items() if name in found.services}
        of_it = [each for each in waiting if each.campaign in needing]
        circuit = seen.circuits.get(name)
        services.append(
            ServiceQueue(
                service=name,
                state=None if circuit is None else circuit.state,
                campaigns=len(needing),
                paused_campaigns=sorted(each for each in needing if seen.campaigns[each].holds),
                runs=_runs(of_it),
                records_left=sum(each.records_left for each in of_it),
            )
        )
    return QueueOut(
        paused_campaigns=sorted(name for name, each in seen.campaigns.items() if each.holds),
        runs=_runs(waiting),
        services=services,
    )


def _runs(waiting: Iterable[Waiting]) -> dict[RunStatus, int]:
    counts = {status: 0 for status in RunStatus if status in UNFINISHED}
    for each in waiting:
        counts[each.status] += each.runs
    return counts
