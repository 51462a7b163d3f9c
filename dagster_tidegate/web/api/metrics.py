"""`GET /metrics`: the metrics of the fleet, for Prometheus."""

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from dagster_tidegate.store.database import Store
from dagster_tidegate.telemetry.collector import STORE_UP, STORE_UP_HELP, FleetCollector
from dagster_tidegate.web.api.authentication import Viewer
from dagster_tidegate.web.api.problems import Code, responses

PATH = "/metrics"
_TEXT = {"schema": {"type": "string"}}


def router(store: Store) -> APIRouter:
    """Return the route, with its own collector."""
    registry = CollectorRegistry()
    registry.register(FleetCollector(store))
    made = APIRouter(tags=["metrics"])

    @made.get(
        PATH,
        name="metrics",
        response_class=Response,
        responses={
            200: {
                "description": "The metrics, in the format that `Accept` asks for.",
                "content": {"text/plain": _TEXT, "application/openmetrics-text": _TEXT},
            },
            **responses(
                Code.UNAUTHENTICATED,
                Code.FORBIDDEN,
                Code.INVALID,
                Code.TOO_MANY_REQUESTS,
                Code.INTERNAL,
            ),
        },
    )
    def metrics(request: Request, _identity: Viewer) -> Response:
        """Return the metrics of the fleet for Prometheus; docs/metrics.md lists them."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type})

    return made


def without_store() -> Response:
    """Return the metrics while the store can't say who asks: that it is gone, and nothing else."""
    registry = CollectorRegistry()
    up = Gauge(STORE_UP, STORE_UP_HELP, registry=registry)
    up.set(0)
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
