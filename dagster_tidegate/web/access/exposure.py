"""Refuses to listen beyond this machine before a token was created."""

from dagster_tidegate.store import tokens
from dagster_tidegate.store.database import Store
from dagster_tidegate.web.access.origins import LOCALHOST, is_loopback


class ExposedError(Exception):
    """A server would be open to everybody; the message says what to do."""


def check(store: Store, host: str) -> None:
    """Refuse to listen on an address that other machines can reach, if no token was ever created.

    Raises:
        ExposedError: With the remedy.
    """
    if host == LOCALHOST or is_loopback(host):
        return
    with store.read() as conn:
        if tokens.any_created(conn):  # if all of them have ended, nobody has access
            return
    raise ExposedError(
        f"listening on {host} would give every machine that reaches it full access: create a token "
        "first, with 'tidegate tokens create NAME --role admin', or listen on 127.0.0.1"
    )
