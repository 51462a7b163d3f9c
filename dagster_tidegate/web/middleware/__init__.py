"""ASGI middlewares in front of the API and Dagster's pages."""
