"""Run processes of Dagster that start in a tenth of the time, without anything of this repository.

A code server of Dagster starts each with the `spawn` of `multiprocessing`, and the process then
imports everything, which takes a processor five seconds. Here it is forked from one that has
imported everything.

Python imports this module when a process starts that has its folder in the PYTHONPATH; after it
comes that of `quick_children`, for the patches.
"""

import multiprocessing
from multiprocessing.context import BaseContext

import patches  # pyright: ignore[reportMissingImports] -- see above

__all__ = ["patches"]

IMPORTED = [
    "dagster._core.execution.api",
    "dagster._grpc.server",
    "dagster_tidegate.plugin.sensors",
]

real = multiprocessing.get_context


def get_context(method: str | None = None) -> BaseContext:
    if method != "spawn":
        return real(method)
    context = real("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


multiprocessing.get_context = get_context  # pyright: ignore[reportAttributeAccessIssue] -- a test's
