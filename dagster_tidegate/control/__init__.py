"""What every surface shares: what is paused and why, and the operations on it."""
