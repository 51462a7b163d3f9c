"""TCP ports on this machine."""

import socket

LOOPBACK = "127.0.0.1"


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
    with socket.socket() as probe:
        # As servers do: a port in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise PortTakenError(
                f"{user} needs port {port}, which can't be used: {error.strerror}. "
                f"Stop the process that uses it, or select another port with {option}"
            ) from error


def free() -> int:
    """Return a port that is free now; another process may take it before you do."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]
