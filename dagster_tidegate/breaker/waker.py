"""Ends the wait of another thread."""

import socket
from contextlib import suppress


class Waker:
    """Something to wait for with a selector, which another thread makes ready."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """Return the file descriptor for a selector."""
        return self._reader.fileno()

    def wake(self) -> None:
        """End the current wait, or else the next one."""
        # Full: the wait ends anyway. Closed: nobody waits any more.
        with suppress(OSError):
            self._writer.send(b".")

    def drain(self) -> None:
        """Make it wait again."""
        with suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass

    def close(self) -> None:
        """Close the sockets."""
        self._reader.close()
        self._writer.close()
