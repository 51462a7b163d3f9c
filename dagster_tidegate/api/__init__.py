"""The REST API: what is paused and why, and steering it, over HTTP. See docs/api.md."""
