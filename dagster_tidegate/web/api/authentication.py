"""What a route says of who may use it: a parameter of the type `Viewer` or `Operator`.

Who it is, `guard` found out before. The OpenAPI document has the role of each operation as the
scope of its security requirement.
"""

from typing import Annotated

from fastapi import Request, Security
from fastapi.security import APIKeyCookie, HTTPBearer, SecurityScopes

from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.web.access.identity import Identity, Role
from dagster_tidegate.web.api.problems import Code, Problem

SESSION_COOKIE = "tidegate_session"

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
        raise Problem(Code.UNAUTHENTICATED, "nobody checked who asks: serve the app in its Guard")
    for role in roles.scopes:
        require_role(identity, Role(role))
    return identity


Viewer = Annotated[Identity, Security(_identified, scopes=[Role.VIEWER.value])]
"""Everybody who may use the API."""
Operator = Annotated[Identity, Security(_identified, scopes=[Role.OPERATOR.value])]
"""Who may hold, release, start, pause, resume and cancel."""


def require_role(identity: Identity, needed: Role) -> None:
    """Refuse whom the role of their token does not allow to go on.

    Raises:
        Problem: `forbidden`, with the role that is needed.
    """
    if not identity.role.allows(needed):
        raise Problem(
            Code.FORBIDDEN,
            f"{identity.name} is {identity.role}, and this needs the role {needed}",
            role=identity.role,
            needed=needed,
        )


def require_owner(identity: Identity, campaign: CampaignSpec) -> None:
    """Refuse whoever may not steer a campaign.

    Args:
        identity: Who asks.
        campaign: The campaign that they would hold, release or start, or one of whose runs.

    Raises:
        Problem: `forbidden`, with the owners of the campaign.
    """
    require_role(identity, Role.OPERATOR)
    if not identity.may_steer(campaign.owners):
        owners = sorted(campaign.owners)
        raise Problem(
            Code.FORBIDDEN,
            f"campaign {campaign.name} is steered by {', '.join(owners)} and administrators, and "
            f"not by {identity.name}",
            campaign=campaign.name,
            owners=owners,
        )
