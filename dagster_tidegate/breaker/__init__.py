"""The circuit breaker of a service, shared by all processes of a fleet. Usable without Dagster."""
