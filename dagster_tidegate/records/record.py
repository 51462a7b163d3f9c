"""A record, as the author of a campaign sees it."""

import asyncio
import inspect
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from dagster_tidegate.breaker.evidence import purpose

T = TypeVar("T")

NAMESPACE = uuid.UUID("6a1b2f0e-5d6c-4a63-9c39-0f6a6c1c7d11")


@dataclass(slots=True)
class Setback:
    """What kept a record from being done so far.

    Attributes:
        error: How its latest try ended.
        retry_at: When it may be tried again, UTC.
        successes: How many records of this pass had succeeded when its first try that failed began;
            None if the service did not fail for it.
        never_arrived: Whether its last try did not reach the service, or was not processed by it.
        own_fault: Whether others have succeeded since it failed, in this or an earlier attempt.
        refusals: How often a breaker refused its call in this pass.
        pendings: How often the service had no answer for it yet, in this pass.
    """

    error: str | None = None
    retry_at: datetime | None = None
    successes: int | None = None
    own_fault: bool = False
    never_arrived: bool = False
    refusals: int = 0
    pendings: int = 0


class Record(Generic[T]):
    """One unit of work. Its `with` block is its boundary.

    Attributes:
        value: The item from the input; a row of a DataFrame is a dict.
        key: Its key, unique within the loop.
        position: Its row in the input, from 0.
        tries: How many times it was tried in all attempts, including this one. Tries that an open
            breaker refused are not counted.
        in_doubt: Whether an earlier try was cut off, so that its effect may have reached the
            service. It is retried with the same idempotency key.
        result: Set it inside the block, to a value that JSON can represent.
        steps: The results of `once`, by name.
        served_by: The services that `first_available` chose for it.
    """

    __slots__ = (
        "_finish",
        "_outer",
        "_remember",
        "_scope",
        "evidence",
        "in_doubt",
        "is_entered",
        "key",
        "position",
        "result",
        "served_by",
        "setback",
        "steps",
        "successes",
        "tries",
        "value",
    )

    def __init__(
        self,
        value: T,
        key: str,
        position: int,
        *,
        scope: str,
        finish: "Callable[[Record[T], BaseException | None], bool]",
        remember: "Callable[[Record[T]], None]",
    ) -> None:
        self.value = value
        self.key = key
        self.position = position
        self.tries = 0
        self.in_doubt = False
        self.result: Any = None
        # For the loop alone: what a failure of this try counts as, how many records of this pass
        # had succeeded when it began, and what went wrong before.
        self.evidence: str | None = None
        self.successes = 0
        self.setback: Setback | None = None
        self.is_entered = False
        self._scope = scope
        self._finish = finish
        self._remember = remember
        self.steps: dict[str, Any] = {}
        self.served_by: list[str] = []

    @property
    def path(self) -> str:
        """Identifies it in the fleet: its campaign run, op and key."""
        return f"{self._scope}/{self.key}"

    @property
    def idempotency_key(self) -> str:
        """A UUID that is the same for every try in every attempt."""
        return str(uuid.uuid5(NAMESPACE, self.path))

    def once(self, name: str, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function as a step of the record, and remember its result in the ledger.

        A later try of the record, in any attempt, returns the result without calling it: for a
        call that is paid for, before another that may fail. If the process dies during the call,
        it is called again.

        Args:
            name: The same in every try, and unique within the record.
            func: A function or coroutine function; its result must be a value that JSON can
                represent.

        Returns:
            The result; of a coroutine function, an awaitable of it.

        Raises:
            TypeError: If JSON can't represent the result.
            AttemptOverError: If another attempt took over.

        Example:
            ```python
            with record:
                person = record.once("find", apollo.find, record.value)
                record.result = instantly.send(person)
            ```
        """
        if inspect.iscoroutinefunction(func):
            return self._once_async(name, func, *args, **kwargs)
        if name not in self.steps:
            self._keep(name, func(*args, **kwargs))
        return self.steps[name]

    async def _once_async(self, name: str, func: Callable, *args: Any, **kwargs: Any) -> Any:
        if name not in self.steps:
            result = await func(*args, **kwargs)
            await asyncio.to_thread(self._keep, name, result)
        return self.steps[name]

    def _keep(self, name: str, result: Any) -> None:
        try:
            # As a later try reads it: tuples become lists, for example.
            self.steps[name] = json.loads(json.dumps(result, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(
                f"the result of step {name!r} of record {self.key} can't be kept in the ledger: "
                f"{error}. Return a value that JSON can represent"
            ) from error
        self._remember(self)

    def __enter__(self) -> "Record[T]":
        self.is_entered = True
        self.tries += 1
        self._outer = purpose.get()
        purpose.set(self)
        return self

    def __exit__(self, _type: Any, error: BaseException | None, _traceback: Any) -> bool:
        purpose.set(self._outer)
        return self._finish(self, error)
