"""The one door to Dagster: only the modules in here use its non-public API.

What callers need before they import Dagster, which takes a second, is in this file.
"""

PAGES_READ_ONLY = "tidegate_pages_read_only"
"""In the state of an ASGI scope: whether the Dagster UI is read-only for this user."""
CONTINUES_TAG = "tidegate/continues"
"""On a run that a person started with Tidegate to continue after a failure."""
HOLD_JOB, RELEASE_JOB, DOCTOR_JOB = "tidegate_hold", "tidegate_release", "tidegate_doctor"
REACHABLE_OP = "tidegate_reachable"
"""The jobs and the op of the checks that `build_definitions` adds: they call no service."""


class LaunchError(Exception):
    """A run can't be launched; the message says why and what to do."""


class UnreachableError(LaunchError):
    """Dagster or a code location is unavailable at the moment; the message says why."""
