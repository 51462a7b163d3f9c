"""TCP ports on this machine."""

import socket
from contextlib import suppress
from random import SystemRandom

LOOPBACK = "127.0.0.1"
# Below those that Linux, macOS and Windows give to connections and to whoever binds port 0.
CHOSEN_FROM = range(20_000, 32_768)
TRIES = 100


class PortTakenError(Exception):
    """A port is in use; the message names the option that selects another."""


def require_free(port: int, *, user: str, option: str) -> None:
    """Check that a port can be bound.

    Args:
        port: The port.
        user: What needs it, for the message.
        option: The command line option that selects another.

    Raises:
        PortTakenError: If it is in use.
    """
    try:
        _bind(port)
    except OSError as error:
        raise PortTakenError(
            f"{user} needs port {port}, which can't be used: {error.strerror}. "
            f"Stop the process that uses it, or select another port with {option}"
        ) from error


def free() -> int:
    """Return a port that is free now, and that nobody gets by chance before you bind it.

    Raises:
        OSError: If a hundred of them are in use.
    """
    for port in SystemRandom().sample(CHOSEN_FROM, TRIES):
        with suppress(OSError):
            _bind(port)
            return port
    raise OSError(f"{TRIES} ports from {CHOSEN_FROM.start} to {CHOSEN_FROM.stop - 1} are in use")


def _bind(port: int) -> None:
    with socket.socket() as probe:
        # As servers do: a port in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((LOOPBACK, port))
