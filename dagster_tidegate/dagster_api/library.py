"""Tells Dagster that this library is in use."""

from importlib.metadata import version

from dagster_shared.libraries import DagsterLibraryRegistry

NAME = "dagster-tidegate"


def register() -> None:
    """Add this library and its version to the ones that Dagster lists."""
    # Not one of Dagster's own packages, whose version follows that of Dagster.
    DagsterLibraryRegistry.register(NAME, version(NAME), is_dagster_package=False)
