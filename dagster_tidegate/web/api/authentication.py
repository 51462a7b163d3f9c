"""Who may use a route: it declares a parameter of the type `Viewer` or `Operator`.

`middleware.authentication` has set the identity. The OpenAPI document shows the role of each
operation as the scope of its security requirement.
"""

from typing import Annotated

from fastapi import Request, Security
from fastapi.security import APIKeyCookie, HTTPBearer, SecurityScopes

from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.tokens import Role
from dagster_tidegate.web.access.identity import Identity
from dagster_tidegate.web.api.models import Release
from dagster_tidegate.web.api.problems import Code, Problem

SESSION_COOKIE = "tidegate_session"


def session_cookie(*, https: bool) -> str:
    """Return the name of the session cookie; over TLS it is one that no other host can set."""
    return f"__Host-{SESSION_COOKIE}" if https else SESSION_COOKIE


_token = HTTPBearer(
    scheme_name="token",
    description="A token of `tidegate tokens create`. The scopes are the roles.",
    auto_error=False,
)
_session = APIKeyCookie(
    name=SESSION_COOKIE,
    scheme_name="session",
    description="The session of a browser that logged in at `/login`.",
    auto_error=False,
)


async def _identified(
    request: Request,
    roles: SecurityScopes,
    _by_token: Annotated[object, Security(_token)],
    _by_session: Annotated[object, Security(_session)],
) -> Identity:
    identity: Identity | None = getattr(request.state, "identity", None)
    if identity is None:
        raise Problem(
            Code.UNAUTHENTICATED, "the app is served without its middlewares: wrap it in `guarded`"
        )
    for role in roles.scopes:
        require_role(identity, Role(role))
    return identity


Viewer = Annotated[Identity, Security(_identified, scopes=[Role.VIEWER.value])]
"""Anyone with a token."""
Operator = Annotated[Identity, Security(_identified, scopes=[Role.OPERATOR.value])]
"""Anyone who may hold, release, start, pause, resume and cancel."""


def require_role(identity: Identity, needed: Role) -> None:
    """Refuse an identity that lacks a role.

    Raises:
        Problem: `forbidden`, with the role that is needed.
    """
    if not identity.role.allows(needed):
        raise Problem(
            Code.FORBIDDEN,
            f"this requires the role {needed}; {identity.name} has the role {identity.role}",
            role=identity.role,
            needed=needed,
        )


def require_force(identity: Identity, release: Release | None) -> bool:
    """Return whether a release is by force, which only administrators may use.

    Raises:
        Problem: `forbidden`.
    """
    force = release is not None and release.force
    if force:
        require_role(identity, Role.ADMIN)
    return force


def require_owner(identity: Identity, campaign: CampaignSpec) -> None:
    """Refuse an identity that may not control a campaign and its runs.

    Raises:
        Problem: `forbidden`, with the owners of the campaign.
    """
    require_role(identity, Role.OPERATOR)
    if not identity.may_control(campaign.owners):
        owners = sorted(campaign.owners)
        raise Problem(
            Code.FORBIDDEN,
            f"campaign {campaign.name} is controlled by {', '.join(owners)} and administrators, "
            f"not by {identity.name}",
            campaign=campaign.name,
            owners=owners,
        )
