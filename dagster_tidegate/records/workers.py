"""Those who work on several records at once: threads, or tasks on an event loop."""

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from dagster_tidegate.records.record import Record

Handler = Callable[[Record], Any]
Finished = tuple[Record, BaseException | None]


class Workers:
    """Work on records beside the loop, which alone writes the ledger.

    Threads are daemons: one that hangs in a call must not keep an ended run's process.

    Args:
        handler: Takes a record and returns its result; a function, or an `async` one.
        concurrency: How many at once; the loop submits no more.

    Attributes:
        busy: How many records are worked on, or have not been told yet.
    """

    def __init__(self, handler: Handler, concurrency: int) -> None:
        self._handler = handler
        self._finished: SimpleQueue[Finished] = SimpleQueue()
        self._todo: SimpleQueue[Record | None] = SimpleQueue()
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
        """Take no more. Tasks of an event loop are cancelled; a thread ends after its call."""
        if self._loop is None:
            for _thread in self._threads:
                self._todo.put(None)
        else:
            self._loop.call_soon_threadsafe(self._end_tasks)

    def submit(self, record: Record) -> None:
        """Let a record be worked on."""
        self.busy += 1
        if self._loop is None:
            self._todo.put(record)
        else:
            self._loop.call_soon_threadsafe(self._begin_task, record)

    def finished(self, timeout_s: float) -> list[Finished]:
        """Return the records that have been worked on, with what was raised.

        Args:
            timeout_s: How long to wait for the first, in seconds.
        """
        try:
            found = [self._finished.get(timeout=timeout_s)]
        except Empty:
            return []
        while not self._finished.empty():
            found.append(self._finished.get())
        self.busy -= len(found)
        return found

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_forever()
        loop.close()

    def _work(self) -> None:
        while (record := self._todo.get()) is not None:
            error: BaseException | None = None
            try:
                record.result = self._handler(record)
            except BaseException as raised:  # noqa: BLE001 -- told to the loop, which raises it
                error = raised
            self._finished.put((record, error))

    def _begin_task(self, record: Record) -> None:
        task = asyncio.get_running_loop().create_task(self._task(record))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _task(self, record: Record) -> None:
        error: BaseException | None = None
        try:
            record.result = await self._handler(record)
        except BaseException as raised:  # noqa: BLE001 -- told to the loop, which raises it
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
        getattr(handler, "__call__", None)  # noqa: B004 -- an object that is called like one
    )
