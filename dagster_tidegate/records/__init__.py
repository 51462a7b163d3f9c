"""The record loop: works through the records of an op, each once, and stops between two of them."""
