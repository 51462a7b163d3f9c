"""What `/metrics` says of the fleet, read from the store. Needs the extra `metrics`."""
