"""Shared by the CLI, the API and alerts: what is paused and why, and the operations on it."""
