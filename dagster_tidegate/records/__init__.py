"""The record loop: processes each record of an op once, and stops between two of them."""
