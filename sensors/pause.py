"""Stops what holds cover."""

from dagster_tidegate import build_pause_sensor
from pipelines.campaigns import CAMPAIGNS

pause_sensor = build_pause_sensor(campaigns=CAMPAIGNS)
