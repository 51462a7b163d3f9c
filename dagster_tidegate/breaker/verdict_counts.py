"""Counts the verdicts of a process that say nothing about whether its service is well."""

from collections.abc import Mapping
from threading import RLock

from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.breaker.window import WindowDelta

COUNTED = (
    VerdictKind.THROTTLED,
    VerdictKind.DENIED,
    VerdictKind.PENDING,
    VerdictKind.REJECTED,
    VerdictKind.IGNORED,
)
"""The verdicts beside success, slow and failure, which a `LocalWindow` counts."""


class VerdictCounts:
    """The verdicts of one process on one service that no window counts.

    They belong to no generation of a breaker: one that is throttled opens at once, and the count
    must outlive that.
    """

    def __init__(self) -> None:
        self._counts = {kind.value: 0 for kind in COUNTED}
        # An abandoned generator ends its call wherever it is collected: here, too.
        self._lock = RLock()

    def add(self, kind: VerdictKind) -> None:
        """Count a verdict."""
        with self._lock:
            self._counts[kind.value] += 1

    def pending(self) -> Mapping[str, int]:
        """Return what is to be reported, by kind. Call `flushed` once it is written."""
        with self._lock:
            return {kind: count for kind, count in self._counts.items() if count}

    def flushed(self, delta: WindowDelta) -> None:
        """Note that a delta with these counts is written."""
        with self._lock:
            for kind in self._counts:
                self._counts[kind] -= getattr(delta, kind)
