"""The headers of every answer that tell a browser what it may do with it."""

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Scope

NOTHING = "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
"""What our own answers load: nothing. They may be framed by nobody."""
NO_FRAMES = "base-uri 'self'; object-src 'none'; frame-ancestors 'none'"
"""For those pages of Dagster that say nothing themselves."""
EVERYWHERE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
HTTPS_ONLY = "max-age=31536000"


def secure(message: Message, scope: Scope, *, own: bool) -> None:
    """Complete the headers of an answer. What it says itself stays.

    Args:
        message: The `http.response.start` of the answer.
        scope: The request's scope; its scheme is `https` where that is known.
        own: Whether the answer is one of ours, and not a page of Dagster's.
    """
    headers = MutableHeaders(raw=message.setdefault("headers", []))
    for name, value in EVERYWHERE.items():
        headers.setdefault(name, value)
    headers.setdefault("Content-Security-Policy", NOTHING if own else NO_FRAMES)
    if own:
        headers.setdefault("Cache-Control", "no-store")
    if scope.get("scheme") in ("https", "wss"):
        headers.setdefault("Strict-Transport-Security", HTTPS_ONLY)
