"""`GET /metrics`: the metrics of the fleet, for Prometheus."""

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from dagster_tidegate.telemetry.collector import STORE_UP, STORE_UP_HELP
from dagster_tidegate.web.api.authentication import Viewer
from dagster_tidegate.web.api.context import Context
from dagster_tidegate.web.api.problems import Code, responses

PATH = "/metrics"
_TEXT = {"schema": {"type": "string"}}

router = APIRouter(tags=["metrics"])


@router.get(
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
def metrics(context: Context, request: Request, _identity: Viewer) -> Response:
    """Return the metrics of the fleet for Prometheus; docs/metrics.md lists them."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(context.metrics), headers={"Content-Type": content_type})


def without_store() -> Response:
    """Return the only metric that needs no authentication: that the store is down."""
    registry = CollectorRegistry()
    up = Gauge(STORE_UP, STORE_UP_HELP, registry=registry)
    up.set(0)
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
