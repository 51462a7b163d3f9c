"""For tests of campaigns: a store in memory, a clock, a service that plays verdicts, assertions.

Nothing here needs a daemon, an instance or a database, and nothing imports pytest: its fixtures are
in `dagster_tidegate.testing.fixtures`.
"""

import http.client
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.message import Message
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError

if TYPE_CHECKING:
    import dagster as dg

    from dagster_tidegate.plugin.resource import BreakerResource, ServiceConfig

__all__ = [
    "Clock",
    "Service",
    "assert_completed",
    "assert_each_once",
    "assert_paused",
    "in_memory",
    "outage",
]

_PAUSES = ("CampaignPaused", "BreakerOpenFailure")
Verdict = int | tuple[int, dict[str, str]] | Exception


class Clock:
    """A clock that stands still until a test moves it.

    Example:
        >>> clock = Clock()
        >>> clock.advance(60) - Clock()()
        datetime.timedelta(seconds=60)
    """

    def __init__(self, start: datetime = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)) -> None:
        self.time = start

    def __call__(self) -> datetime:
        """Return the time (UTC)."""
        return self.time

    def advance(self, seconds: float) -> datetime:
        """Move the clock by `seconds` (backwards if negative) and return the new time."""
        self.time += timedelta(seconds=seconds)
        return self.time


class Service:
    """A service that answers with the given verdicts in turn, and then succeeds.

    Args:
        verdicts: What each call meets: an HTTP status, a status with headers, or an exception. A
            status from 400 is raised as `urllib.error.HTTPError`, as breakers understand it.
        answer: What a call that succeeds returns; a function gets its arguments. None: the first
            argument.

    Attributes:
        calls: The arguments of each call that arrived, whatever it met.
        done: The arguments of the calls that succeeded.

    Example:
        >>> mailer = Service(200, (429, {"Retry-After": "60"}), TimeoutError("read"))
        >>> mailer("ada")
        'ada'
        >>> mailer("alan")
        Traceback (most recent call last):
        urllib.error.HTTPError: HTTP Error 429: Too Many Requests
        >>> mailer.calls, mailer.done
        ([('ada',), ('alan',)], [('ada',)])
    """

    def __init__(self, *verdicts: Verdict, answer: Any = None) -> None:
        self._verdicts = list(verdicts)
        self._answer = answer
        self.calls: list[tuple] = []
        self.done: list[tuple] = []

    def then(self, *verdicts: Verdict) -> None:
        """Play more verdicts, after those that are left."""
        self._verdicts += verdicts

    def __call__(self, *args: Any) -> Any:
        """Be called, as by `breakers.breaker(NAME).call(service, ...)`.

        Raises:
            Exception: What the next verdict says.
        """
        self.calls.append(args)
        error = _error(self._verdicts.pop(0)) if self._verdicts else None
        if error is not None:
            raise error
        self.done.append(args)
        if callable(self._answer):
            return self._answer(*args)
        return self._answer if self._answer is not None or not args else args[0]

    async def call_async(self, *args: Any) -> Any:
        """Be called, as by `breakers.breaker(NAME).call_async(service.call_async, ...)`."""
        return self(*args)


def in_memory(
    *services: "ServiceConfig | str", clock: Callable[[], datetime] | None = None
) -> "BreakerResource":
    """Return a resource with a new store in memory.

    Args:
        services: The services, or their names.
        clock: Tells the time of breakers and holds; None: the real one.

    Example:
        >>> in_memory("mailer").breaker("mailer").call(len, "four")
        4
    """
    from dagster_tidegate.plugin.resource import BreakerResource, ServiceConfig

    configs = [ServiceConfig(name=each) if isinstance(each, str) else each for each in services]
    return BreakerResource.in_memory(configs, clock=clock)


@contextmanager
def outage(breakers: "BreakerResource", service: str) -> Iterator[None]:
    """Keep the breaker of a service open for a `with` block, and close it at its end.

    Example:
        ```python
        with outage(breakers, "mailer"):
            assert_paused(letters.execute_in_process(resources=..., raise_on_error=False), "mailer")
        ```
    """
    breaker = breakers.fleet.breaker(service)
    breaker.open()
    try:
        yield
    finally:
        breaker.close()


def assert_paused(result: "dg.ExecuteInProcessResult", service: str | None = None) -> None:
    """Assert that a run has paused, and for which service.

    Args:
        result: Of `execute_in_process` or `dg.materialize`, with `raise_on_error=False`.
        service: Name of the service; None: any.
    """
    errors = _errors(result)
    pauses = [message for name, message in errors if name in _PAUSES]
    assert pauses, f"the run has not paused: {_outcome_of(result, errors)}"
    named = service is None or any(f"{service} is " in message for message in pauses)
    assert named, f"the run has not paused for {service}: {'; '.join(pauses)}"


def assert_completed(result: "dg.ExecuteInProcessResult") -> None:
    """Assert that a run has succeeded."""
    assert result.success, f"the run has not completed: {_outcome_of(result, _errors(result))}"


def assert_each_once(service: Service, keys: Sequence[Hashable] | None = None) -> None:
    """Assert that no call has succeeded twice.

    Args:
        service: The service that was called with a key, or the record's value, first.
        keys: What it must have been called with, in any order; None: anything.
    """
    counts = Counter(repr(args[0]) for args in service.done)
    twice = [key for key, count in counts.items() if count > 1]
    assert not twice, f"these were done more than once: {', '.join(twice)}"
    if keys is not None:
        expected = {repr(key) for key in keys}
        assert counts.keys() == expected, (
            f"missing: {sorted(expected - counts.keys())}; too many: "
            f"{sorted(counts.keys() - expected)}"
        )


def _error(verdict: Verdict) -> Exception | None:
    if isinstance(verdict, Exception):
        return verdict
    status, headers = verdict if isinstance(verdict, tuple) else (verdict, {})
    if status < 400:
        return None
    message = Message()
    for name, value in headers.items():
        message[name] = value
    return HTTPError(
        "https://service.test", status, http.client.responses.get(status, ""), message, None
    )


def _errors(result: "dg.ExecuteInProcessResult") -> list[tuple[str | None, str]]:
    failures = [
        event.step_failure_data.error for event in result.all_events if event.is_step_failure
    ]
    return [(error.cls_name, error.message) for error in failures if error is not None]


def _outcome_of(result: "dg.ExecuteInProcessResult", errors: list[tuple[str | None, str]]) -> str:
    if result.success:
        return "it succeeded"
    return "; ".join(message.strip() for _, message in errors) or "it failed"
