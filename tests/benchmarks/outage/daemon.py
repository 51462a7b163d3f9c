"""Dagster's own daemon, but for the time between two looks, which is scaled like all others."""

import logging
import os

from dagster._daemon import sensor
from dagster._daemon.cli import main

from tests.benchmarks.outage.loops import SCALE

DAGSTERS_S = 5

sensor.MIN_INTERVAL_LOOP_TIME = DAGSTERS_S * float(os.environ[SCALE])  # pyright: ignore[reportAttributeAccessIssue] -- an int there

if __name__ == "__main__":
    logging.captureWarnings(True)
    main()
