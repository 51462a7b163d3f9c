"""Nothing listens beyond this machine before a token was made."""

from dagster_tidegate.store import tokens
from dagster_tidegate.store.database import Store
from dagster_tidegate.web.access.origins import LOCALHOST, is_loopback


class ExposedError(Exception):
    """A server would be open to everybody; the message says what to do."""


def check(store: Store, host: str) -> None:
    """Refuse to listen where other machines reach the server, unless one was made.

    Args:
        store: The store, which has the tokens.
        host: The address or name to listen on.

    Raises:
        ExposedError: If other machines reach it, and no token was ever made.
    """
    if host == LOCALHOST or is_loopback(host):
        return
    with store.read() as conn:
        if tokens.any_created(conn):  # where all of them have ended, nobody is let in
            return
    raise ExposedError(
        f"listening on {host} would let every machine that reaches it do everything: make a token "
        "first, with 'tidegate tokens create NAME --role admin', or listen on 127.0.0.1"
    )
