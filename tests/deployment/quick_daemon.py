"""Dagster's own daemon, but for how long it waits between two looks.

It looks at sensors every 5 seconds and at backfills every 30; a test would spend most of its time
on that. Nothing else is changed.
"""

import logging

from dagster._daemon import controller, sensor
from dagster._daemon.cli import main

sensor.MIN_INTERVAL_LOOP_TIME = 1  # pyright: ignore[reportAttributeAccessIssue] -- an int there
controller.DEFAULT_DAEMON_INTERVAL_SECONDS = 2

if __name__ == "__main__":
    logging.captureWarnings(True)
    main()
