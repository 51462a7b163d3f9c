"""One process and one port for the API and Dagster's webserver."""
