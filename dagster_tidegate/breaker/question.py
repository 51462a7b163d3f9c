"""A question whose answer is awaited for a bounded time, however long it takes."""

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Question(Generic[T]):
    """Asks in a thread: the timeout of urllib is one of each read, a user's function has none.

    Args:
        ask: Returns the answer.
    """

    def __init__(self, ask: Callable[[], T]) -> None:
        self._answers: SimpleQueue[T | Exception] = SimpleQueue()
        self._thread = Thread(target=self._run, args=(ask,), daemon=True)
        self._thread.start()

    @property
    def is_pending(self) -> bool:
        """Whether it has not been answered yet."""
        return self._thread.is_alive()

    def answer(self, timeout_s: float) -> T | Exception:
        """Return the answer, what asking raised, or a `TimeoutError` after `timeout_s` seconds."""
        try:
            return self._answers.get(timeout=timeout_s)
        except Empty:
            return TimeoutError(f"no answer within {timeout_s:g} s")

    def _run(self, ask: Callable[[], T]) -> None:
        try:
            self._answers.put(ask())
        except Exception as error:  # noqa: BLE001 -- whoever waits for the answer deals with it
            self._answers.put(error)
