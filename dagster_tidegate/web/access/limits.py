"""How often somebody may ask: counted in this process, per minute."""

import ipaddress
import math
import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

IPV6_PREFIX = 64
"""Bits of an IPv6 address that count: whoever has one address has its whole network."""


class TooManyError(Exception):
    """Somebody asked too often.

    Args:
        what: What they did too often.
        most: How often they may, per minute.
        retry_after_s: After how many seconds they may again.
    """

    def __init__(self, what: str, most: int, retry_after_s: int) -> None:
        super().__init__(f"more than {most} {what} in a minute; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Limit:
    """So many of a thing in a minute, for each of those who do it.

    Args:
        what: The thing, for the refusal: `requests of this token`.
        most: How many in a minute.

    Example:
        >>> limit = Limit("tries", 1)
        >>> limit.count("ana")
        >>> limit.count("bo")  # a second one of ana's would be too many
    """

    def __init__(self, what: str, most: int) -> None:
        self._what = what
        self._item = RateLimitItemPerMinute(most)
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    def count(self, who: str) -> None:
        """Count one.

        Raises:
            TooManyError: If that is more than there may be.
        """
        if self._limiter.hit(self._item, who):
            return
        resets_at = self._limiter.get_window_stats(self._item, who).reset_time
        wait_s = max(1, math.ceil(resets_at - time.time()))
        raise TooManyError(self._what, self._item.amount, wait_s)


def network(address: str | None) -> str:
    """Return by what a network address is counted.

    Example:
        >>> network("192.0.2.7"), network("2001:db8:1:2:3:4:5:6"), network(None)
        ('192.0.2.7', '2001:db8:1:2::', 'local')
    """
    if address is None:
        return "local"
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found.packed, IPV6_PREFIX), strict=False).network_address)
