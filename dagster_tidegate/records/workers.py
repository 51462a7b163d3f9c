"""The workers of `map`: threads, or tasks on an event loop."""

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from dagster_tidegate.breaker.evidence import of_record
from dagster_tidegate.records.record import Record

Handler = Callable[[Record], Any]
Finished = tuple[Record, BaseException | None]


class Workers:
    """Call the handler of `map`. They never write the ledger.

    Threads are daemons: one that hangs in a call must not keep the process of an ended run alive.

    Attributes:
        busy: How many records were submitted and not returned by `finished`.
    """

    def __init__(self, handler: Handler, concurrency: int) -> None:
        self._handler = handler
        self._finished: SimpleQueue[Finished] = SimpleQueue()
        self._submitted: SimpleQueue[Record | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task] = set()
        self.busy = 0
        if _is_async(handler):
            self._loop = asyncio.new_event_loop()
            threads = [Thread(target=self._serve, args=(self._loop,), daemon=True)]
        else:
            threads = [
                Thread(target=contextvars.copy_context().run, args=(self._work,), daemon=True)
                for _ in range(concurrency)
            ]
        self._threads = threads

    def __enter__(self) -> "Workers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel the tasks of an event loop; let each thread end after its call."""
        if self._loop is None:
            for _thread in self._threads:
                self._submitted.put(None)
        else:
            self._loop.call_soon_threadsafe(self._end_tasks)

    def submit(self, record: Record) -> None:
        """Start a record."""
        self.busy += 1
        if self._loop is None:
            self._submitted.put(record)
        else:
            self._loop.call_soon_threadsafe(self._begin_task, record)

    def finished(self, timeout_s: float) -> list[Finished]:
        """Return the finished records and what each raised; wait up to `timeout_s` for one."""
        try:
            finished = [self._finished.get(timeout=timeout_s)]
        except Empty:
            return []
        while not self._finished.empty():
            finished.append(self._finished.get())
        self.busy -= len(finished)
        return finished

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_forever()
        loop.close()

    def _work(self) -> None:
        while (record := self._submitted.get()) is not None:
            error: BaseException | None = None
            try:
                with of_record(record):
                    record.result = self._handler(record)
            except BaseException as raised:  # noqa: BLE001 -- the loop raises it
                error = raised
            self._finished.put((record, error))

    def _begin_task(self, record: Record) -> None:
        task = asyncio.get_running_loop().create_task(self._task(record))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _task(self, record: Record) -> None:
        error: BaseException | None = None
        try:
            with of_record(record):
                record.result = await self._handler(record)
        except BaseException as raised:  # noqa: BLE001 -- the loop raises it
            error = raised
        self._finished.put((record, error))

    def _end_tasks(self) -> None:
        loop = asyncio.get_running_loop()
        tasks = [task for task in self._tasks if task.cancel()]
        if not tasks:
            loop.stop()
            return
        ended = asyncio.gather(*tasks, return_exceptions=True)
        ended.add_done_callback(lambda _: loop.stop())


def _is_async(handler: Any) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004 -- a callable object
    )
