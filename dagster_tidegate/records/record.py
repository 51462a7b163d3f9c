"""A record, as the author of a campaign sees it."""

import uuid
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

NAMESPACE = uuid.UUID("6a1b2f0e-5d6c-4a63-9c39-0f6a6c1c7d11")


class Record(Generic[T]):
    """One unit of work. Its `with` block is its boundary: what happens inside belongs to it.

    Attributes:
        value: The item that the loop was given; a row of a DataFrame is a dict.
        key: Its key within the op.
        position: Its row in the input, from 0.
        tries: How often it has been begun in this attempt, this time included.
        in_doubt: Whether an attempt was cut off while at it, so that its effect may have reached
            the service; it is sent again with the same idempotency key.
        result: Set it inside the block; it must be something that JSON can hold.
    """

    __slots__ = ("_scope", "_settle", "in_doubt", "key", "position", "result", "tries", "value")

    def __init__(
        self,
        value: T,
        key: str,
        position: int,
        *,
        scope: str,
        settle: "Callable[[Record[T], BaseException | None], bool]",
        in_doubt: bool = False,
    ) -> None:
        self.value = value
        self.key = key
        self.position = position
        self.tries = 0
        self.in_doubt = in_doubt
        self.result: Any = None
        self._scope = scope
        self._settle = settle

    @property
    def idempotency_key(self) -> str:
        """The same at every try and in every attempt; for services that take one."""
        return str(uuid.uuid5(NAMESPACE, f"{self._scope}/{self.key}"))

    def __enter__(self) -> "Record[T]":
        self.tries += 1
        return self

    def __exit__(self, _type: Any, error: BaseException | None, _traceback: Any) -> bool:
        return self._settle(self, error)
