"""Where a page of a list ends, as a text that means nothing to who passes it back."""

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from dagster_tidegate.web.api.problems import Code, Problem

V = TypeVar("V", str, int)
T = TypeVar("T")


def encode(what: str, position: str | int) -> str:
    """Return the cursor of a position in a list.

    Args:
        what: Which list.
        position: The last thing of the page.

    Example:
        >>> decode(encode("campaigns", "outreach"), "campaigns", str)
        'outreach'
    """
    text = json.dumps([what, position])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(cursor: str | None, what: str, kind: type[V]) -> V | None:
    """Return the position of a cursor; None for no cursor.

    Args:
        cursor: The cursor.
        what: Which list it has to be of.
        kind: The type of the position.

    Raises:
        Problem: `invalid`, if it is not a cursor of this list.
    """
    if cursor is None:
        return None
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        found = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        found = None
    match found:
        case [str(of), position] if of == what and type(position) is kind and _fits(position):
            return position
    raise Problem(Code.INVALID, f"cursor: it is not the next_cursor of a page of {what}")


def cut(
    found: Iterable[T], what: str, cursor: str | None, limit: int, name: Callable[[T], str]
) -> tuple[Sequence[T], str | None]:
    """Return a page of a list that is sorted by name, and the cursor of the next one.

    Args:
        found: The whole list.
        what: Which list it is.
        cursor: Where the page begins.
        limit: How many things it may have.
        name: Returns the name of a thing.

    Raises:
        Problem: `invalid`, if it is not a cursor of this list.
    """
    after = decode(cursor, what, str)
    left = [each for each in found if after is None or name(each) > after]
    return page(left, what, limit, name)


def page(
    found: Sequence[T], what: str, limit: int, position: Callable[[T], str | int]
) -> tuple[Sequence[T], str | None]:
    """Return a page of a list, and the cursor of the next one.

    Args:
        found: What is left of the list, or one thing more than the page may have.
        what: Which list it is.
        limit: How many things it may have.
        position: Returns the position of a thing.
    """
    items = found[:limit]
    return items, encode(what, position(items[-1])) if len(found) > limit else None


def _fits(position: str | int) -> bool:
    return "\0" not in position if isinstance(position, str) else 0 <= position < 2**63
