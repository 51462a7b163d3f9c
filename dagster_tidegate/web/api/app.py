"""Creates the FastAPI app."""

from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, FastAPI, Request, params
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute

from dagster_tidegate.settings import ServeSettings
from dagster_tidegate.store.database import Store
from dagster_tidegate.text import did_you_mean, shown
from dagster_tidegate.web.api import metrics, problems
from dagster_tidegate.web.api.context import AppContext
from dagster_tidegate.web.api.problems import Code, Problem, ProblemDetails, responses
from dagster_tidegate.web.api.routes import (
    alerts,
    campaigns,
    events,
    health,
    holds,
    queue,
    records,
    reports,
    runs,
    services,
)
from dagster_tidegate.web.api.stream import Feed
from dagster_tidegate.web.middleware.connection import SAFE_METHODS
from dagster_tidegate.web.pages import routes as pages

if TYPE_CHECKING:
    from dagster_tidegate.dagster_api.workspace import Workspace

PREFIX = "/api/v1"
DESCRIPTION = """Shows what is paused and why, and controls it. See docs/api.md.

Errors are problem details (RFC 9457) with a stable `code`."""
TAGS = {
    "services": "Third-party services, their breakers, and the campaigns that need them.",
    "campaigns": "Dagster jobs.",
    "campaign runs": "One partition of a campaign each.",
    "records": "The records of a campaign run.",
    "holds": "The reasons why something may not run.",
    "events": "The audit log: who changed what, when and why.",
    "reports": "Outages of services, and what happened in them.",
    "alerts": "The alerts that were sent.",
    "queue": "How much is paused and how much is waiting.",
    "health": "Health checks of the server, the store, the gate and the alerts.",
    "metrics": "Metrics for Prometheus.",
}


def create_app(
    store: Store,
    *,
    settings: ServeSettings,
    workspace: "Callable[[], Workspace] | None" = None,
    read_only: bool = False,
) -> FastAPI:
    """Return the API without any security; serve it behind `guarded`.

    Args:
        workspace: Returns the code locations as they are now; without it, no run can be started.

    Example:
        ```python
        app = create_app(Store(url), settings=settings)
        uvicorn.run(guarded(app, store, settings))
        ```
    """
    app = FastAPI(
        title="Tidegate",
        version=version("dagster-tidegate"),
        description=DESCRIPTION,
        root_path=settings.path_prefix,
        openapi_url=f"{PREFIX}/openapi.json",
        openapi_tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
    )
    app.state.context = AppContext(store, Feed(store), workspace, read_only)
    api = APIRouter(prefix=PREFIX, responses=responses())
    for module in (
        services,
        campaigns,
        records,
        runs,
        holds,
        events,
        reports,
        alerts,
        queue,
    ):
        api.include_router(module.router, dependencies=[Depends(_refuse_unknown_parameters)])
    api.include_router(health.router)  # load balancers add parameters, against caches
    refusal = [Depends(_refuse_changes)] if read_only else []
    app.include_router(api, dependencies=refusal)
    app.include_router(pages.router, dependencies=refusal)
    app.include_router(metrics.router)
    problems.install(app)
    _describe_problems(app)
    return app


async def _refuse_changes(request: Request) -> None:
    if request.method not in SAFE_METHODS:
        raise Problem(Code.READ_ONLY, "this server was started with --read-only")


async def _refuse_unknown_parameters(request: Request) -> None:
    """Refuse a mistyped parameter: without its `dry_run`, a request would change something."""
    if not request.query_params:
        return
    taken = get_flat_params(request.scope["route"].dependant)
    known = {each.alias for each in taken if isinstance(each.field_info, params.Query)}
    # A GET changes nothing. To that of .../runs/monday/pause, `monday/pause` is a partition: a 404
    # says more of the wrong method than what is wrong with its parameter.
    ignored = {"dry_run"} if request.method in SAFE_METHODS else set()
    for name in request.query_params:
        if name not in known | ignored:
            others = ", ".join(sorted(known)) or "none"
            what = f"no such parameter; {did_you_mean(name, known, f'known: {others}')}"
            where = f"query.{shown(name)}"
            raise Problem(Code.INVALID, f"{where}: {what}", errors=[{"where": where, "what": what}])


def _operation_id(route: APIRoute) -> str:
    return route.name


def _describe_problems(app: FastAPI) -> None:
    """Add the schema of problem details, which all operations refer to, to the document."""
    document = app.openapi

    def described() -> dict[str, Any]:
        openapi = document()
        schemas = openapi["components"]["schemas"]
        if ProblemDetails.__name__ not in schemas:
            template = "#/components/schemas/{model}"
            schema = ProblemDetails.model_json_schema(ref_template=template)
            schemas.update(schema.pop("$defs"))
            schemas[ProblemDetails.__name__] = schema
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
        return openapi

    app.openapi = described  # type: ignore[method-assign] -- as FastAPI's documentation does it
