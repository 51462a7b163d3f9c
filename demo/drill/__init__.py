"""The whole story with the real daemon: an outage, from the first call that fails to the last
campaign run that completes, and a report of what happened.
"""
