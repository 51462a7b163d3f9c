"""Reads an input in chunks, so that memory does not grow with its size."""

import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any

MAX_CHUNK = 500
MAX_READ_S = 0.01

Chunk = list[tuple[int, Any]]
"""Rows with their positions in the input, from 0."""


def count_rows(items: Any) -> int | None:
    """Return how many rows an input has, or None if that is not known beforehand."""
    return len(items) if isinstance(items, Sized) and not _has_frames(items) else None


def read_chunks(items: Iterable[Any], start: int = 0) -> Iterator[Chunk]:
    """Read an input, beginning with row `start`.

    A sequence is not read before that row. An iterator is read ahead only while it yields without
    delay, so that the first record does not wait for the last.

    Args:
        items: A sequence, a DataFrame, or any iterable of items or DataFrames. A row of a
            DataFrame becomes a dict, with None for missing values.
        start: The first row, from 0.
    """
    if _is_frame(items):
        yield from _frame_chunks(items, start)
    elif isinstance(items, Sequence) and not _has_frames(items):
        for first in range(start, len(items), MAX_CHUNK):
            end = min(first + MAX_CHUNK, len(items))
            yield [(row, items[row]) for row in range(first, end)]
    else:
        rows = enumerate(_flat(items))
        next(islice(rows, start, start), None)
        size = _ChunkSize()
        while chunk := _next_chunk(rows, size):
            yield chunk


async def read_chunks_async(items: AsyncIterable[Any], start: int = 0) -> AsyncIterator[Chunk]:
    """Read an asynchronous input, beginning with row `start`; see `read_chunks`."""
    size = _ChunkSize()
    row = 0
    chunk: Chunk = []
    async for item in items:
        for value in _flat([item]):
            if row >= start:
                chunk.append((row, value))
            row += 1
        if size.is_reached(len(chunk)):
            yield chunk
            chunk = []
            size.begin()
    if chunk:
        yield chunk


class _ChunkSize:
    """How much of an iterator is read at once: more while it is fast, less when it is slow."""

    def __init__(self) -> None:
        self._max = 1
        self.begin()

    def begin(self) -> None:
        """Begin a chunk."""
        self._deadline = time.monotonic() + MAX_READ_S

    def is_reached(self, size: int) -> bool:
        """Return whether a chunk is large enough, and adapt the size of the next."""
        if time.monotonic() > self._deadline:
            self._max = max(1, size // 2)
        elif size >= self._max:
            self._max = min(self._max * 2, MAX_CHUNK)
        else:
            return False
        return size > 0


def _next_chunk(rows: Iterator[tuple[int, Any]], size: _ChunkSize) -> Chunk:
    """Return the next chunk; empty at the end."""
    size.begin()
    chunk: Chunk = []
    for row in rows:
        chunk.append(row)
        if size.is_reached(len(chunk)):
            break
    return chunk


def _is_frame(items: Any) -> bool:
    return type(items).__module__.partition(".")[0] == "pandas" and hasattr(items, "itertuples")


def _has_frames(items: Any) -> bool:
    return isinstance(items, list | tuple) and _is_frame(next(iter(items), None))


def _frame_chunks(frame: Any, start: int) -> Iterator[Chunk]:
    for first in range(start, len(frame), MAX_CHUNK):
        part = frame.iloc[first : first + MAX_CHUNK]
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
