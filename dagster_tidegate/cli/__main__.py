"""`python -m dagster_tidegate.cli` is `tidegate`."""

from dagster_tidegate.cli import main

main(prog_name="tidegate")
