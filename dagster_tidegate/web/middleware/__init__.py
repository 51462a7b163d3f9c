"""ASGI middlewares in front of the API and the Dagster UI, one job each.

`stack` puts them in order; docs/security.md describes what they guarantee.
"""
