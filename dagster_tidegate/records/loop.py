"""`Records`: the loop over the records of an op."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Generator,
    Iterable,
    Iterator,
)
from contextlib import aclosing, contextmanager
from typing import Any, Generic, TypeVar

from dagster_tidegate.records.chunks import Chunk, count_rows, read_chunks, read_chunks_async
from dagster_tidegate.records.host import LoopHost, StopReason
from dagster_tidegate.records.journal import Group, Journal
from dagster_tidegate.records.lease import Lease
from dagster_tidegate.records.loop_pass import LoopPass
from dagster_tidegate.records.record import Record
from dagster_tidegate.records.retry import retry_while_unreachable
from dagster_tidegate.records.signals import SignalGuard
from dagster_tidegate.records.workers import Handler, Workers
from dagster_tidegate.records.worklist import LoopOptions
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import runs
from dagster_tidegate.store.database import UNREACHABLE
from dagster_tidegate.store.ledger import AttemptOverError
from dagster_tidegate.store.runs import AttemptRow

T = TypeVar("T")

CUT_OFF_S = 4.0  # to write the ledger, after map has waited `drain_timeout_s` for its records


class Records(Generic[T]):
    """The records of an op that are not done yet.

    Made by `BreakerResource.records`. Use it in a `for` loop, in an `async for` loop, or with
    `map`. Records already in the ledger are skipped. When a block raises, its record is failed
    and the loop continues, with two exceptions. If an open breaker refused the call, the run
    pauses and the record is not done. If the service failed (a failure by its policy), the record
    is retried until it succeeds, the breaker opens, or `max_tries` is reached.

    Between records the loop stops for holds, and for SIGTERM and SIGINT, once the records in
    flight are finished or `drain_timeout_s` is over.

    Args:
        items: The input; see `BreakerResource.records`.
        group: Write records together; None: each in a transaction of its own.

    Raises:
        MissingKeyError: While iterating, if an item has no valid key.
        InputChangedError: While iterating, if an `append_only` input changed.
        TooManyFailedError: While iterating, if more than `max_failed` of the records failed.
        UntriedRecordsError: While iterating, after the marked records, if the input has others
            that were never tried.
        AttemptOverError: While iterating, if the campaign run ended or another attempt took over.

    Example:
        ```python
        records = breakers.records(context, leads, key="email")
        for record in records:
            with record:
                record.result = client.send(record.value, record.idempotency_key)
        return records.results()
        ```
    """

    def __init__(
        self,
        host: LoopHost,
        items: Iterable[T] | AsyncIterable[T],
        options: LoopOptions,
        *,
        group: Group | None = None,
    ) -> None:
        self.total = count_rows(items)
        self._host, self._items, self._options = host, items, options
        self._journal = Journal(host, options.op, group=group, total=self.total)
        self._is_active = False
        self._is_consumed = False  # an iterator that was read

    @property
    def done(self) -> int:
        """How many records are done, including those of earlier attempts."""
        return self._journal.done

    @property
    def failed(self) -> int:
        """How many records failed."""
        return self._journal.failed

    def __iter__(self) -> Iterator[Record[T]]:
        with self._pass() as current:
            for chunk in self._chunks(current.worklist.first_row):
                current.worklist.add(chunk)
                yield from current.one_by_one()
            yield from current.one_by_one(is_last=True)
            current.complete()

    async def __aiter__(self) -> AsyncIterator[Record[T]]:
        with self._pass() as current:
            async for chunk in self._async_chunks(current.worklist.first_row):
                await asyncio.to_thread(current.worklist.add, chunk)
                async with aclosing(_in_threads(current.one_by_one())) as records:
                    async for record in records:
                        yield record
            async with aclosing(_in_threads(current.one_by_one(is_last=True))) as records:
                async for record in records:
                    yield record
            await asyncio.to_thread(current.complete)

    def map(self, handler: Handler, *, concurrency: int = 8) -> list[Any]:
        """Process several records concurrently, and return `results`.

        Args:
            handler: Takes a `Record` and returns its result. A function runs in threads, an
                `async` function on an event loop in a thread of its own.
            concurrency: Maximum number of records in flight, all of which may be in doubt after a
                crash.

        Raises:
            ValueError: If `concurrency` is less than 1.

        Example:
            ```python
            records = breakers.records(context, leads, key="email")
            return records.map(lambda record: verify(record.value), concurrency=32)
            ```
        """
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; it must be at least 1")
        with self._pass(CUT_OFF_S) as current, Workers(handler, concurrency) as workers:
            chunks = self._chunks(current.worklist.first_row)
            current.at_once(chunks, workers, concurrency)
            current.complete()
        return self.results()

    def results(self) -> list[Any]:
        """Return the results of all records that are done, in the order of the input.

        Includes those of earlier attempts, so that a resumed op returns what an uninterrupted one
        would have returned. Failed records have no result.
        """
        return self._journal.results()

    @contextmanager
    def _pass(self, extra_s: float = 0.0) -> Iterator[LoopPass[T]]:
        """Lease the loop, defer signals, and write what is pending however the pass ends."""
        if self._is_active:
            raise RuntimeError("another loop over these records is still running")
        host = self._host
        with SignalGuard(host.drain_timeout_s + extra_s, host.log) as signals:
            try:
                with Lease(host, self._options.op, lambda: bool(signals.received)) as lease:
                    if lease.waited:
                        self._journal.begin()
                    current = LoopPass[T](host, self._journal, self._options, signals, lease)
                    with self._active(current):
                        yield current
            except AttemptOverError:
                self._stop_like_the_attempt()
                raise

    @contextmanager
    def _active(self, current: LoopPass[T]) -> Iterator[None]:
        self._is_active = True
        try:
            yield
        except AttemptOverError:
            raise  # nothing more may be written
        except (GeneratorExit, asyncio.CancelledError) as error:  # by `break`, for example
            current.signals.left_early = isinstance(error, GeneratorExit)
            self._leave_quietly(current)
            raise
        except BaseException:
            current.leave()
            raise
        finally:
            self._is_active = False

    def _leave_quietly(self, current: LoopPass[T]) -> None:
        """Write everything, and log what prevents it: Python would print an error and go on."""
        try:
            current.leave()
        except (AttemptOverError, *UNREACHABLE) as error:
            self._host.log.warning(
                "The record loop was left, and its last writes failed: %s", error
            )

    def _stop_like_the_attempt(self) -> None:
        """Stop the run if another op or a person paused or cancelled its attempt."""

        def read() -> AttemptRow | None:
            with self._host.store.read() as conn:
                return runs.latest_attempt(conn, self._host.run.id)

        newest = retry_while_unreachable(read, self._host.log)
        if newest is None or newest.number != self._host.row.number:
            return
        if newest.outcome in (RunStatus.PAUSED, RunStatus.CANCELLED):
            self._host.stop(StopReason(self.done, self.total, ended=newest.outcome))

    def _chunks(self, start: int) -> Iterator[Chunk]:
        if isinstance(self._items, AsyncIterable):
            raise TypeError("the input is asynchronous: use 'async for record in records'")
        self._consume(isinstance(self._items, Iterator))
        return read_chunks(self._items, start)

    async def _async_chunks(self, start: int) -> AsyncIterator[Chunk]:
        if isinstance(self._items, AsyncIterable):
            self._consume(isinstance(self._items, AsyncIterator))
            async for chunk in read_chunks_async(self._items, start):
                yield chunk
        else:
            for chunk in self._chunks(start):
                yield chunk

    def _consume(self, is_iterator: bool) -> None:
        if self._is_consumed:
            raise RuntimeError("the input is an iterator and was already consumed")
        self._is_consumed = is_iterator


async def _in_threads(records: Generator[Record[T]]) -> AsyncGenerator[Record[T]]:
    """Waiting for the store or a service must not block the event loop."""
    try:
        while (record := await asyncio.to_thread(next, records, None)) is not None:
            yield record
    finally:
        records.close()
