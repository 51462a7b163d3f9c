"""Whether the server, the store and the gate do their work."""

from fastapi import APIRouter

from dagster_tidegate.control.models import AlertHealth, Alive, GateHealth, Ready
from dagster_tidegate.store import alerts, schema
from dagster_tidegate.web.api.authentication import Viewer
from dagster_tidegate.web.api.context import Here

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/live")
async def get_live() -> Alive:
    """Say that the process answers. Needs no token."""
    return Alive(status="live")


@router.get("/ready")
def get_ready(here: Here) -> Ready:
    """Say whether the store can be used: 503 if not. Needs no token."""
    schema.require_compatible(here.store)
    return Ready(status="ready")


@router.get("/gate")
def get_gate(here: Here, _identity: Viewer) -> GateHealth:
    """Say whether the gate does its work: when each part last finished."""
    with here.reading() as (_, seen):
        return GateHealth.of(seen)


@router.get("/alerts")
def get_alerts(here: Here, _identity: Viewer) -> AlertHealth:
    """Say whether people are told of what happens."""
    with here.store.read() as conn:
        now = here.store.now(conn)
        return AlertHealth.of(alerts.counts(conn, now), now)
