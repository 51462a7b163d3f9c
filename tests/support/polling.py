"""Polling for what other threads and processes do without notice."""

import time
from collections.abc import Callable

MAX_S = 240.0


def wait_until(
    condition: Callable[[], object],
    what: str = "the condition never became true",
    every_s: float = 0.05,
) -> None:
    """Wait until a condition is true; `what` is the message of the failure if it never is."""
    deadline = time.monotonic() + MAX_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(every_s)
