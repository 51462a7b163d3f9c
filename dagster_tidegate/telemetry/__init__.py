"""Logs, OpenTelemetry and Prometheus metrics."""
