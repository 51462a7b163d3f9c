"""The gate: makes Dagster match the live holds, and restores it when they are gone."""

from dagster_tidegate.gate.reconcile import tighten_now as tighten_now
