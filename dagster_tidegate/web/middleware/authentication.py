"""Who makes a request."""

from starlette.types import ASGIApp

from dagster_tidegate.store.tokens import Role
from dagster_tidegate.web.access.authenticator import Authenticator, Kind
from dagster_tidegate.web.access.identity import Identity
from dagster_tidegate.web.access.limits import Limit
from dagster_tidegate.web.api.authentication import require_role
from dagster_tidegate.web.api.problems import Code, Problem
from dagster_tidegate.web.middleware.connection import ConnectionMiddleware, GuardedConnection


class Authentication(ConnectionMiddleware):
    """Refuses whoever has no valid token or session, and writes the identity into the scope.

    Sessions are rows of the store. Starlette's `SessionMiddleware` keeps them in a signed cookie,
    which stays valid after a logout and after its token was revoked.
    """

    def __init__(self, app: ASGIApp, authenticator: Authenticator, by_token: Limit) -> None:
        super().__init__(app)
        self._authenticator = authenticator
        self._by_token = by_token

    async def _check(self, connection: GuardedConnection) -> None:
        await identify(connection, self._authenticator, self._by_token)


async def identify(
    connection: GuardedConnection, authenticator: Authenticator, by_token: Limit
) -> None:
    """Find out who makes a request, and set it in the connection and in the state of its scope.

    Raises:
        Problem: `unauthenticated`.
        TooManyError: If the token sends too many requests, or the address too many wrong tokens.
    """
    needed = await authenticator.needed()
    credential = connection.credential()
    # A cookie may belong to another server on this machine: browsers ignore the port.
    if credential is not None and (needed or credential[0] is Kind.TOKEN):
        kind, secret = credential
        holder = await authenticator.holder(kind, secret, connection.address)
        if holder is None:
            raise _unauthenticated(f"the {kind} is unknown, expired or revoked")
        by_token.count(str(holder.token))
        identity = Identity(holder.name, holder.role, holder.token)
    elif needed:
        raise _unauthenticated("a token is required: send 'Authorization: Bearer ...'")
    elif not connection.local:
        raise _unauthenticated(
            "without tokens only this machine has access, and not through a proxy: create one with "
            "'tidegate tokens create'"
        )
    else:
        identity = Identity(connection.named_actor(), Role.ADMIN)
    connection.identity = identity
    connection.state.identity = identity


class OperatorWrites(ConnectionMiddleware):
    """Refuses viewers every change of the API; its routes check roles and owners again."""

    async def _check(self, connection: GuardedConnection) -> None:
        if connection.writes:
            require_role(connection.identity, Role.OPERATOR)


def _unauthenticated(detail: str) -> Problem:
    headers = {"WWW-Authenticate": 'Bearer realm="tidegate"'}
    return Problem(Code.UNAUTHENTICATED, detail, headers=headers)
