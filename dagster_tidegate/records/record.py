"""A record, as the author of a campaign sees it."""

import uuid
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

NAMESPACE = uuid.UUID("6a1b2f0e-5d6c-4a63-9c39-0f6a6c1c7d11")


class Record(Generic[T]):
    """One unit of work. Its `with` block is its boundary.

    Attributes:
        value: The item from the input; a row of a DataFrame is a dict.
        key: Its key, unique within the loop.
        position: Its row in the input, from 0.
        tries: How many times it was tried in this attempt, including this one.
        in_doubt: Whether an earlier try was cut off, so that its effect may have reached the
            service. It is retried with the same idempotency key.
        result: Set it inside the block, to a value that JSON can represent.
    """

    __slots__ = ("_finish", "_scope", "in_doubt", "key", "position", "result", "tries", "value")

    def __init__(
        self,
        value: T,
        key: str,
        position: int,
        *,
        scope: str,
        finish: "Callable[[Record[T], BaseException | None], bool]",
        in_doubt: bool = False,
    ) -> None:
        self.value = value
        self.key = key
        self.position = position
        self.tries = 0
        self.in_doubt = in_doubt
        self.result: Any = None
        self._scope = scope
        self._finish = finish

    @property
    def idempotency_key(self) -> str:
        """A UUID that is the same for every try in every attempt."""
        return str(uuid.uuid5(NAMESPACE, f"{self._scope}/{self.key}"))

    def __enter__(self) -> "Record[T]":
        self.tries += 1
        return self

    def __exit__(self, _type: Any, error: BaseException | None, _traceback: Any) -> bool:
        return self._finish(self, error)
