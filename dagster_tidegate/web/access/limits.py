"""Rate limits, per minute, counted in this process."""

import ipaddress
import math
import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

IPV6_PREFIX = 64
"""An IPv6 address counts with its network: whoever has one address has all of them."""


class TooManyError(Exception):
    """A limit was exceeded.

    Args:
        retry_after_s: When it may be done again, in seconds.
    """

    def __init__(self, what: str, per_minute: int, retry_after_s: int) -> None:
        super().__init__(
            f"more than {per_minute} {what} in a minute; try again in {retry_after_s} s"
        )
        self.retry_after_s = retry_after_s


class Limit:
    """A limit for each key, such as a token or an address.

    Args:
        what: What is limited, for the message: `requests with this token`.

    Example:
        >>> limit = Limit("tries", 1)
        >>> limit.count("ana")
        >>> limit.count("bo")  # a second one of ana's would raise TooManyError
    """

    def __init__(self, what: str, per_minute: int) -> None:
        self._what = what
        self._item = RateLimitItemPerMinute(per_minute)
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    def count(self, key: str) -> None:
        """Count one.

        Raises:
            TooManyError: If the limit is exceeded.
        """
        if self._limiter.hit(self._item, key):
            return
        resets_at = self._limiter.get_window_stats(self._item, key).reset_time
        wait_s = max(1, math.ceil(resets_at - time.time()))
        raise TooManyError(self._what, self._item.amount, wait_s)


def network(address: str | None) -> str:
    """Return the key by which a network address is limited.

    Example:
        >>> network("192.0.2.7"), network("2001:db8:1:2:3:4:5:6"), network(None)
        ('192.0.2.7', '2001:db8:1:2::', 'local')
    """
    if address is None:
        return "local"
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed.packed, IPV6_PREFIX), strict=False).network_address)
