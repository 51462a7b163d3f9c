"""Calls a service as often as it may be called."""

from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.breaker.fleet import Fleet


def calls(fleet: Fleet, service: str = "mail", at_most: int = 100) -> int:
    """Call the service until it is refused; return how many calls were made."""
    for made in range(at_most):
        try:
            fleet.breaker(service).call(str.upper, "x")
        except BreakerOpenError:
            return made
    return at_most
