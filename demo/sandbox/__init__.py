"""A local HTTP server that simulates the third-party services and fails on request."""
