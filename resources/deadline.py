"""A deadline for a whole call with httpx.

The timeouts of httpx are for each step: a service that sends a byte now and then never exceeds
them. Here each step gets what is left of the call's time.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """End calls of a `DeadlineTransport` in this block that take longer.

    Raises:
        httpx.TimeoutException: After `seconds`, in the step that the call has reached.
    """
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


class DeadlineTransport(httpx.HTTPTransport):
    """The transport of an `httpx.Client` whose calls end with the block `within` that makes them.

    Example:
        ```python
        client = httpx.Client(transport=DeadlineTransport())
        with within(5.0):
            response = client.get("https://service.example/")
        ```
    """

    def __init__(self) -> None:
        super().__init__(trust_env=False)
        # httpx has no parameter for it.
        self._pool = httpcore.ConnectionPool(network_backend=_Backend())


def _left(timeout: float | None, error: type[Exception]) -> float | None:
    """Return the timeout of a step.

    Raises:
        Exception: The `error`, if no time is left.
    """
    deadline = _deadline.get()
    if deadline is None:
        return timeout
    left = deadline - time.monotonic()
    if left <= 0:
        raise error("the call took too long")
    return left if timeout is None else min(timeout, left)


class _Backend(httpcore.SyncBackend):
    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *args: Any, **kwargs: Any
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(super().connect_tcp(host, port, left, *args, **kwargs))


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(timeout, httpcore.WriteTimeout))

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def close(self) -> None:
        self._stream.close()
