"""Health checks of the server, the store, the gate and the alerts."""

from fastapi import APIRouter

from dagster_tidegate.control.models import AlertHealth, Alive, GateHealth, Ready
from dagster_tidegate.store import alerts, schema
from dagster_tidegate.web.api.authentication import Viewer
from dagster_tidegate.web.api.context import Context

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/live")
async def get_live() -> Alive:
    """Say that the process answers. Needs no token."""
    return Alive(status="live")


@router.get("/ready")
def get_ready(context: Context) -> Ready:
    """Say that the store is usable, or answer 503. Needs no token."""
    schema.require_compatible(context.store)
    return Ready(status="ready")


@router.get("/gate")
def get_gate(context: Context, _identity: Viewer) -> GateHealth:
    """Say whether the gate is working, and when each part last completed."""
    with context.reading() as (_, situation):
        return GateHealth.of(situation)


@router.get("/alerts")
def get_alerts(context: Context, _identity: Viewer) -> AlertHealth:
    """Say whether alerts are being sent."""
    with context.store.read() as conn:
        now = context.store.now(conn)
        return AlertHealth.of(alerts.counts(conn, now), now)
