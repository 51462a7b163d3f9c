"""The only code that uses Dagster's non-public API."""
