"""Resumes what no hold covers any more."""

from dagster_tidegate import build_resume_sensor
from pipelines.campaigns import CAMPAIGNS

resume_sensor = build_resume_sensor(campaigns=CAMPAIGNS)
