"""The gate: makes Dagster look like what holds and breakers say, and puts it back after."""

from dagster_tidegate.gate.reconcile import reconcile as reconcile
