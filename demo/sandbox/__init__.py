"""A local HTTP server that plays the third-party services, fails on request, and counts."""
