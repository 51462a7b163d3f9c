"""What a first run in a process imports and reads, before the process forks for others."""

from functools import cache
from tempfile import TemporaryDirectory

import dagster as dg


@dg.op
def _nothing() -> None: ...


@dg.job(executor_def=dg.in_process_executor)
def _first() -> None:
    _nothing()


@cache
def execute() -> None:
    """Execute a run that does nothing, once."""
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    with TemporaryDirectory() as home, dg.DagsterInstance.local_temp(home) as instance:
        _first.execute_in_process(instance=instance, run_config=quiet)
