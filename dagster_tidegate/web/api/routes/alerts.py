"""What people were told, and what they could not be told."""

from fastapi import APIRouter

from dagster_tidegate.control.models import AlertOut, Page
from dagster_tidegate.store import alerts
from dagster_tidegate.web.api import cursor as cursors
from dagster_tidegate.web.api.authentication import Viewer
from dagster_tidegate.web.api.context import Here
from dagster_tidegate.web.api.models import Cursor, Limit

router = APIRouter(prefix="/alerts", tags=["alerts"])


@router.get("")
def list_alerts(
    here: Here, _identity: Viewer, limit: Limit = 100, cursor: Cursor = None
) -> Page[AlertOut]:
    """List the alerts, the newest first, and whether people were told."""
    before = cursors.decode(cursor, "alerts", int)
    with here.store.read() as conn:
        found = alerts.listed(conn, before=before, limit=limit + 1)
    page, after = cursors.page(found, "alerts", limit, lambda alert: alert.id)
    return Page(items=[AlertOut.model_validate(alert) for alert in page], next_cursor=after)
