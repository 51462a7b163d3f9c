"""The tables, and everything that is kept in them. Does not import Dagster."""
