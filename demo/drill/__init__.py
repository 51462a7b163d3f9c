"""The outage drill: a scripted outage against real processes, and a report of the result."""
