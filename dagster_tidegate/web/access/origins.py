"""Where a request comes from, and where a browser may be sent. Pure.

A page of another site can make a browser send requests here, and can give its own name the address
of this machine. The browser says where a request comes from; what is no browser can't be misled.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

LOCALHOST = "localhost"


def is_loopback(address: str | None) -> bool:
    """Return whether an address is this machine's own.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("192.0.2.7")
        (True, True, False)
    """
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def host_name(host: str) -> str | None:
    """Return the name in a `Host` header, without its port; None where it has none.

    Example:
        >>> host_name("Localhost:3000"), host_name("[::1]:3000"), host_name("a b")
        ('localhost', '::1', None)
    """
    try:
        found = urlsplit(f"//{host}")
        _ = found.port  # refuses one that is no number
    except ValueError:
        return None
    if found.netloc != host or "@" in host or any(c.isspace() for c in host):
        return None
    return found.hostname


def allowed_host(host: str, allowed: Collection[str], *, any_name: bool) -> bool:
    """Return whether a `Host` header names this server.

    Args:
        host: The header.
        allowed: The names that were given to the server, besides loopback's.
        any_name: Whether every name will do where none were given. It must not where anybody on
            this machine is let in: then a page of another site, by giving its name this machine's
            address, would be let in too.
    """
    name = host_name(host)
    if name is None:
        return False
    if name == LOCALHOST or is_loopback(name) or name in {each.lower() for each in allowed}:
        return True
    return any_name and not allowed


def same_origin(host: str, *, site: str | None, origin: str | None, browser: bool) -> bool:
    """Return whether a request was not made by a page of another site.

    Args:
        host: Its `Host` header.
        site: Its `Sec-Fetch-Site` header.
        origin: Its `Origin` header.
        browser: Whether only a browser can have sent it. Then one of the headers must be there.
    """
    if site is not None:
        return site == "same-origin"
    if origin is None:
        return not browser
    found = urlsplit(origin)
    standard = {"http": "80", "https": "443"}.get(found.scheme)
    if standard is None:
        return False
    without = f":{standard}"
    return found.netloc.lower().removesuffix(without) == host.lower().removesuffix(without)


def local_path(wanted: str | None, default: str = "/") -> str:
    r"""Return where a browser is sent after its login: a path of this server, and nothing else.

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
