"""Where a request comes from, and where a browser may be redirected. Pure.

A page of another site can make a browser send requests here, and can resolve its own name to this
machine's address (DNS rebinding). Browsers send headers that reveal both; other clients can't be
misled.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

LOCALHOST = "localhost"


def is_loopback(address: str | None) -> bool:
    """Return whether an address is a loopback address.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("192.0.2.7")
        (True, True, False)
    """
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def host_name(host: str) -> str | None:
    """Return the name in a `Host` header without its port; None if it is malformed.

    Example:
        >>> host_name("Localhost:3000"), host_name("[::1]:3000"), host_name("a b")
        ('localhost', '::1', None)
    """
    try:
        parsed = urlsplit(f"//{host}")
        _ = parsed.port  # raises if it is not a number
    except ValueError:
        return None
    if parsed.netloc != host or "@" in host or any(c.isspace() for c in host):
        return None
    return parsed.hostname


def allowed_host(host: str, allowed: Collection[str], *, any_name: bool) -> bool:
    """Return whether a `Host` header names this server.

    Args:
        allowed: The accepted names besides those of loopback.
        any_name: Whether every name is accepted if `allowed` is empty. Never for local connections,
            which need no token as long as none exists: DNS rebinding makes them look local.
    """
    name = host_name(host)
    if name is None:
        return False
    if name == LOCALHOST or is_loopback(name) or name in {each.lower() for each in allowed}:
        return True
    return any_name and not allowed


def same_origin(host: str, *, site: str | None, origin: str | None, browser: bool) -> bool:
    """Return whether a request was not sent by a page of another site.

    Args:
        browser: Whether only a browser can have sent it; then one of the two headers is required.
    """
    if site is not None:
        return site == "same-origin"
    if origin is None:
        return not browser
    parsed = urlsplit(origin)
    standard = {"http": "80", "https": "443"}.get(parsed.scheme)
    if standard is None:
        return False
    port = f":{standard}"
    return parsed.netloc.lower().removesuffix(port) == host.lower().removesuffix(port)


def local_path(wanted: str | None, default: str = "/") -> str:
    r"""Return where a browser goes after its login: always a path of this server.

    Example:
        >>> local_path("/runs?q=1"), local_path("//elsewhere.example"), local_path("/\\elsewhere")
        ('/runs?q=1', '/', '/')
    """
    if (
        not wanted
        or not wanted.startswith("/")
        or wanted.startswith("//")
        or len(wanted) > 2048
        or not wanted.isascii()
        or not wanted.isprintable()
        or any(character in wanted for character in "\\ \"'<>")
    ):
        return default
    return wanted
