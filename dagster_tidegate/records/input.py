"""The rows of an input, chunk by chunk: so much is in memory at once, whatever the input's size."""

import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any

MAX_AT_ONCE = 500
MAX_READ_S = 0.01

Chunk = list[tuple[int, Any]]
"""Rows with their positions in the input, from 0."""


def total(items: Any) -> int | None:
    """Return how many rows an input has, or None where that is not known beforehand."""
    return len(items) if isinstance(items, Sized) and not _has_frames(items) else None


def chunks(items: Iterable[Any], start: int = 0) -> Iterator[Chunk]:
    """Read an input from a row on.

    What can be indexed is not read before that row. An iterator is read ahead only as far as it
    yields without delay, so that the first record does not wait for the last.

    Args:
        items: A list or another sequence, a DataFrame, or any iterable of items or DataFrames.
            A row of a DataFrame becomes a dict, with None for what is missing.
        start: The row to begin with, from 0.
    """
    if _is_frame(items):
        yield from _frame_chunks(items, start)
    elif isinstance(items, Sequence) and not _has_frames(items):
        for first in range(start, len(items), MAX_AT_ONCE):
            upto = min(first + MAX_AT_ONCE, len(items))
            yield [(row, items[row]) for row in range(first, upto)]
    else:
        rows = enumerate(_flat(items))
        next(islice(rows, start, start), None)
        portion = _Portion()
        while chunk := portion.of(rows):
            yield chunk


async def async_chunks(items: AsyncIterable[Any], start: int = 0) -> AsyncIterator[Chunk]:
    """Read an asynchronous input from a row on; see `chunks`."""
    portion = _Portion()
    row = 0
    chunk: Chunk = []
    async for item in items:
        for value in _flat([item]):
            if row >= start:
                chunk.append((row, value))
            row += 1
        if portion.is_full(len(chunk)):
            yield chunk
            chunk = []
            portion.begin()
    if chunk:
        yield chunk


class _Portion:
    """How much of an iterator is read at once: more while it is fast, less when it is slow."""

    def __init__(self) -> None:
        self._most = 1
        self.begin()

    def begin(self) -> None:
        """Begin a portion."""
        self._until = time.monotonic() + MAX_READ_S

    def is_full(self, size: int) -> bool:
        """Tell whether a portion of a size is enough, and learn from that."""
        late = time.monotonic() > self._until
        if late:
            self._most = max(1, size // 2)
        elif size >= self._most:
            self._most = min(self._most * 2, MAX_AT_ONCE)
        else:
            return False
        return size > 0

    def of(self, rows: Iterator[tuple[int, Any]]) -> Chunk:
        """Return the next portion; empty at the end."""
        self.begin()
        chunk: Chunk = []
        for row in rows:
            chunk.append(row)
            if self.is_full(len(chunk)):
                break
        return chunk


def _is_frame(items: Any) -> bool:
    return type(items).__module__.partition(".")[0] == "pandas" and hasattr(items, "itertuples")


def _has_frames(items: Any) -> bool:
    return isinstance(items, list | tuple) and _is_frame(next(iter(items), None))


def _frame_chunks(frame: Any, start: int) -> Iterator[Chunk]:
    for first in range(start, len(frame), MAX_AT_ONCE):
        part = frame.iloc[first : first + MAX_AT_ONCE]
        yield list(
            enumerate(part.astype(object).where(part.notna(), None).to_dict("records"), first)
        )


def _flat(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        if _is_frame(item):
            for chunk in _frame_chunks(item, 0):
                for _, row in chunk:
                    yield row
        else:
            yield item
