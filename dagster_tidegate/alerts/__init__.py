"""Tells people what happens, through Apprise. Needs the extra `alerts`."""
