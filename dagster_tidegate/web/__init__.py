"""The REST API and the Dagster UI on one port."""
