"""The REST API and Dagster's pages on one port."""
