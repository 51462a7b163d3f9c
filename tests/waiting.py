"""Waits for what other threads and processes do, and tell nobody of."""

import time
from collections.abc import Callable

MAX_S = 240.0


def wait_until(
    condition: Callable[[], object], what: str = "it did not come to that", every_s: float = 0.05
) -> None:
    """Wait until something is so; `what` is said if it does not come to that."""
    deadline = time.monotonic() + MAX_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(every_s)
