"""Pauses Dagster campaigns when a third-party service fails, and resumes them after."""
