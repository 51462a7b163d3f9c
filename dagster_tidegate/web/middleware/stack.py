"""The middlewares, in the order in which a connection passes them."""

from starlette.middleware import Middleware
from starlette.types import ASGIApp

from dagster_tidegate.settings import ServeSettings
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.tokens import Role
from dagster_tidegate.web.access.authenticator import Authenticator
from dagster_tidegate.web.access.limits import Limit
from dagster_tidegate.web.middleware.authentication import Authentication, OperatorWrites
from dagster_tidegate.web.middleware.body import BodyLimit
from dagster_tidegate.web.middleware.connection import Connections
from dagster_tidegate.web.middleware.dagster import DagsterChanges
from dagster_tidegate.web.middleware.headers import SecurityHeaders
from dagster_tidegate.web.middleware.hosts import TrustedHosts
from dagster_tidegate.web.middleware.limits import AddressLimit, UrlLimits
from dagster_tidegate.web.middleware.origin import SameOrigin
from dagster_tidegate.web.middleware.refusals import Refusals
from dagster_tidegate.web.middleware.revocation import Revocation
from dagster_tidegate.web.pages.login import LoginPages
from dagster_tidegate.web.path_router import PathRouter

SMALL_BODY = 10_000
"""How large a body may be, in bytes, before it is known who sends it."""


def guarded(
    api: ASGIApp, store: Store, settings: ServeSettings, *, pages: ASGIApp | None = None
) -> ASGIApp:
    """Return the API and the Dagster UI behind all security checks.

    Args:
        pages: Dagster's webserver. None: the API answers its paths too, with 404.
    """
    prefix = settings.path_prefix
    authenticator = Authenticator(store, refusals=settings.refusals_per_address)
    by_token = Limit("requests with this token", settings.requests_per_token)
    trusted_hosts = Middleware(TrustedHosts, settings.allowed_hosts)
    authenticated = (
        trusted_hosts,
        Middleware(Authentication, authenticator, by_token),
        Middleware(SameOrigin),
        Middleware(BodyLimit, settings.request_bytes),
    )
    revocation = Middleware(Revocation, authenticator)
    dagster_changes = Middleware(
        DagsterChanges,
        store,
        role=Role(settings.ui_changes),
        by_token=by_token,
        max_message=settings.request_bytes,
    )
    small_body = Middleware(BodyLimit, SMALL_BODY)
    login = LoginPages(store, settings, authenticator, by_token)
    router = PathRouter(
        public=_stack(api, small_body),
        login=_stack(login, trusted_hosts, Middleware(SameOrigin), small_body),
        api=_stack(api, *authenticated, Middleware(OperatorWrites), revocation),
        pages=_stack(pages or api, *authenticated, revocation, dagster_changes),
        prefix=prefix,
    )
    return _stack(
        router,
        Middleware(Connections, prefix),
        Middleware(SecurityHeaders),
        Middleware(Refusals, prefix),
        Middleware(UrlLimits),
        Middleware(AddressLimit, settings.requests_per_address),
    )


def _stack(app: ASGIApp, *middlewares: Middleware) -> ASGIApp:
    for middleware, args, kwargs in reversed(middlewares):
        app = middleware(app, *args, **kwargs)
    return app
