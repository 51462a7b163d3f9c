"""Steps: what an op or asset that runs can know of its own end."""

import logging
import sys
from abc import ABC, abstractmethod

import dagster as dg
from dagster._core.errors import DagsterUserCodeExecutionError
from dagster._core.execution.context.invocation import DirectOpExecutionContext
from dagster._core.log_manager import get_log_record_event, has_log_record_event

# They learn how a step ended in memory. Others, which run each step in a machine of its own, read
# it from the event log, and take a step without an end for one that has crashed.
_IN_MEMORY = {
    "execute_in_process_executor",
    "in_process",
    "multi_or_in_process_executor",
    "multiprocess",
}

Context = dg.OpExecutionContext | dg.AssetExecutionContext | dg.AssetCheckExecutionContext
"""What an op, an asset or an asset check gets as its context."""


class StepEnd(ABC, logging.Filter):
    """Sees the error that ends a step before Dagster records it.

    Dagster has no hook of its own that a resource could add: this is a filter of the step's log,
    through which each of its events goes. What it keeps out of the log is no failed step with a
    stack trace in the UI, but a step that has no end, as those of a cancelled run.
    """

    def __init__(self, context: dg.OpExecutionContext) -> None:
        super().__init__()
        self._quiet = context.job_def.executor_def.name in _IN_MEMORY
        context.log.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether Dagster records an event."""
        if not has_log_record_event(record):
            return True
        event = get_log_record_event(record)
        error = sys.exception()
        if event.event_type is not dg.DagsterEventType.STEP_FAILURE or error is None:
            return True
        if isinstance(error, DagsterUserCodeExecutionError):
            error = error.user_exception
        return not (self.failed(error) and self._quiet)

    @abstractmethod
    def failed(self, error: BaseException) -> bool:
        """Return whether the error that ends the step is to be kept out of the event log."""


def op_context(context: Context) -> dg.OpExecutionContext:
    """Return the op's context, also of an asset: its own properties are deprecated there."""
    if isinstance(context, dg.OpExecutionContext):
        return context
    return context.op_execution_context


def is_direct(context: dg.OpExecutionContext) -> bool:
    """Return whether a unit test called the op's function, so that there is no run."""
    return isinstance(context, DirectOpExecutionContext)


def current_context() -> dg.OpExecutionContext | None:
    """Return the context of the op or asset that runs here, or None outside of one."""
    try:
        return dg.OpExecutionContext.get()
    except dg.DagsterInvariantViolationError:
        return None
