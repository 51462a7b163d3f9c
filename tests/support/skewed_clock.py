"""Run a module with a wrong clock: `python -m tests.support.skewed_clock SECONDS MODULE ...`.

The wall clock is off by so many seconds for everything that asks for it; monotonic clocks are not.
"""

import datetime
import runpy
import sys
import time
from typing import Any

_time, _time_ns, _datetime = time.time, time.time_ns, datetime.datetime


def skew(seconds: float) -> None:
    """Let this process's clock be off, before anything else is imported."""

    class Skewed(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return _datetime.fromtimestamp(_time() + seconds, tz)

        @classmethod
        def utcnow(cls) -> Any:
            return cls.now(datetime.UTC).replace(tzinfo=None)

    time.time = lambda: _time() + seconds
    time.time_ns = lambda: _time_ns() + int(seconds * 1e9)
    datetime.datetime = Skewed


if __name__ == "__main__":
    offset, module, *arguments = sys.argv[1:]
    skew(float(offset))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__")
