"""A record, as the author of a campaign sees it."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from dagster_tidegate.breaker.evidence import evidence

T = TypeVar("T")

NAMESPACE = uuid.UUID("6a1b2f0e-5d6c-4a63-9c39-0f6a6c1c7d11")


@dataclass(slots=True)
class Setback:
    """What kept a record from being done so far.

    Attributes:
        error: How its latest try ended.
        retry_at: When it may be tried again, UTC.
        successes: How many records of this pass had succeeded when it first failed; None if the
            service did not fail for it.
        refusals: How often a breaker refused its call in this pass.
        pendings: How often the service had no answer for it yet, in this pass.
    """

    error: str | None = None
    retry_at: datetime | None = None
    successes: int | None = None
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
    """

    __slots__ = (
        "_finish",
        "_outer_evidence",
        "_scope",
        "evidence",
        "in_doubt",
        "is_entered",
        "key",
        "position",
        "result",
        "setback",
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
    ) -> None:
        self.value = value
        self.key = key
        self.position = position
        self.tries = 0
        self.in_doubt = False
        self.result: Any = None
        # For the loop alone: what a failure of this try counts as, and what went wrong before.
        self.evidence: str | None = None
        self.setback: Setback | None = None
        self.is_entered = False
        self._scope = scope
        self._finish = finish

    @property
    def path(self) -> str:
        """Identifies it in the fleet: its campaign run, op and key."""
        return f"{self._scope}/{self.key}"

    @property
    def idempotency_key(self) -> str:
        """A UUID that is the same for every try in every attempt."""
        return str(uuid.uuid5(NAMESPACE, self.path))

    def __enter__(self) -> "Record[T]":
        self.is_entered = True
        self.tries += 1
        self._outer_evidence = evidence.get()
        evidence.set(self.evidence)
        return self

    def __exit__(self, _type: Any, error: BaseException | None, _traceback: Any) -> bool:
        evidence.set(self._outer_evidence)
        return self._finish(self, error)
