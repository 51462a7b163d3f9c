"""TCP ports of this machine."""

import socket

LOOPBACK = "127.0.0.1"


class PortTakenError(Exception):
    """Another process listens on a port that is needed; the message names the option to change."""


def require_free(port: int, *, user: str, option: str) -> None:
    """Check that nothing listens on a port.

    Args:
        port: The port.
        user: Who needs it, for the message.
        option: The option that chooses another.

    Raises:
        PortTakenError: If something does.
    """
    with socket.socket() as probe:
        # As servers do: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise PortTakenError(
                f"port {port}, which {user} needs, can't be used: {error.strerror}. "
                f"Stop what uses it, or choose another port with {option}"
            ) from error


def free() -> int:
    """Return a port that is free now; another process may take it before it is used."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]
