"""The one thread of a fleet: learns of changes, and reports successes."""

import time
from collections.abc import Callable
from random import random
from threading import Event, Thread

from dagster_tidegate.breaker.shared_state import SharedState
from dagster_tidegate.breaker.state_machine import FLUSH_S
from dagster_tidegate.breaker.waker import Waker

MAX_AGE_S = 5.0
"""Breakers and holds are read again after this time, even without a notification."""
RETRY_S = 0.5
MAX_RETRY_S = 10.0
"""The backoff of reconnecting starts at half a second and doubles up to this."""
STOP_TIMEOUT_S = 5.0
PRUNE_INTERVAL_S = 300.0


class Watcher:
    """A thread that keeps the shared state of a process fresh.

    Args:
        flush: Reports the successes of this process.
    """

    def __init__(self, state: SharedState, flush: Callable[[], None]) -> None:
        self._state = state
        self._flush = flush
        self._waker = Waker()
        self._stopping = Event()
        self._thread = Thread(target=self._run, name="tidegate-watcher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """End the current wait."""
        self._waker.wake()

    def stop(self) -> None:
        """Stop the thread, and wait at most `STOP_TIMEOUT_S` for it."""
        self._stopping.set()
        self._waker.wake()
        self._thread.join(STOP_TIMEOUT_S)

    def pause(self, seconds: float) -> None:
        """Sleep until `seconds` have passed or the watcher is stopped."""
        self._stopping.wait(seconds)

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                self._watch()
                failures = 0
            except Exception as error:  # noqa: BLE001 - the thread must survive any error
                self._state.listening_failed(error)
                failures = failures + 1 if self._state.degraded else 1
                backoff_s = min(MAX_RETRY_S, RETRY_S * 2 ** min(failures - 1, 10))
                self.pause(backoff_s * (0.5 + random()))  # not all processes at once
        self._waker.close()

    def _watch(self) -> None:
        """Learn and report until something fails or the watcher is stopped."""
        listener = self._state.listen(self._waker)
        try:
            self._state.recover()
            # Changes from before it listened were not notified.
            self._state.refresh()
            read_at = flushed_at = time.monotonic()
            pruned_at = read_at - random() * PRUNE_INTERVAL_S
            while not self._stopping.is_set() and not self._state.degraded:
                now = time.monotonic()
                changed = listener.wait(min(flushed_at + FLUSH_S, read_at + MAX_AGE_S) - now)
                now = time.monotonic()
                if changed or now >= read_at + MAX_AGE_S:
                    self._state.refresh()
                    read_at = time.monotonic()
                if now >= flushed_at + FLUSH_S:
                    self._flush()
                    flushed_at = now
                if now >= pruned_at + PRUNE_INTERVAL_S:
                    self._state.prune()
                    pruned_at = now
        finally:
            listener.close()
