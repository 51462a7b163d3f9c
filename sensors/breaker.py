"""Probes services whose breakers are open."""

from dagster_tidegate import build_breaker_sensor
from pipelines.campaigns import CAMPAIGNS

breaker_sensor = build_breaker_sensor(campaigns=CAMPAIGNS)
