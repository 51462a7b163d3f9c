"""The alerts that were sent, and those that could not be."""

from fastapi import APIRouter

from dagster_tidegate.control.models import AlertOut, Page
from dagster_tidegate.store import alerts
from dagster_tidegate.web.api.authentication import Viewer
from dagster_tidegate.web.api.context import Context
from dagster_tidegate.web.api.paging import Paging

router = APIRouter(prefix="/alerts", tags=["alerts"])


@router.get("")
def list_alerts(context: Context, _identity: Viewer, paging: Paging) -> Page[AlertOut]:
    """List the alerts, newest first, and whether they were sent."""
    with context.store.read() as conn:
        listed = alerts.listed(conn, before=paging.before, limit=paging.limit + 1)
    return paging.page(listed, lambda alert: alert.id, AlertOut.model_validate)
