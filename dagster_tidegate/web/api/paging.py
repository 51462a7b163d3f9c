"""Pages of lists, and the opaque cursors between them."""

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, TypeVar

from fastapi import Depends, Query, Request

from dagster_tidegate.control.models import Page
from dagster_tidegate.web.api.problems import Code, Problem

T = TypeVar("T")
R = TypeVar("R")


class PageRequest:
    """The page of a list that a request asks for; a dependency of its route."""

    def __init__(
        self,
        request: Request,
        limit: Annotated[
            int, Query(ge=1, le=1000, description="The maximum number of items.")
        ] = 100,
        cursor: Annotated[
            str | None,
            Query(max_length=1000, description="`next_cursor` of the previous page. Opaque."),
        ] = None,
    ) -> None:
        self._of: str = request.scope["route"].name
        self._cursor = cursor
        self.limit = limit

    @property
    def before(self) -> int | None:
        """The id before which the page starts, in a list with the newest items first.

        Raises:
            Problem: `invalid`, if the cursor is not one of this list.
        """
        return None if self._cursor is None else decode(self._cursor, self._of, int)

    @property
    def after_name(self) -> str | None:
        """The name after which the page starts, in a list that is sorted by name.

        Raises:
            Problem: `invalid`, if the cursor is not one of this list.
        """
        return None if self._cursor is None else decode(self._cursor, self._of, str)

    def page(
        self, items: Sequence[T], position: Callable[[T], str | int], out: Callable[[T], R]
    ) -> Page[R]:
        """Return the first items as a page; one more than `limit` means that there is another."""
        shown = items[: self.limit]
        more = len(items) > self.limit
        cursor = encode(self._of, position(shown[-1])) if more else None
        return Page(items=[out(item) for item in shown], next_cursor=cursor)

    def page_by_name(
        self, items: Iterable[T], name: Callable[[T], str], out: Callable[[T], R]
    ) -> Page[R]:
        """Return a page of a whole list that is sorted by name.

        Raises:
            Problem: `invalid`, if the cursor is not one of this list.
        """
        after = self.after_name or ""
        return self.page([item for item in items if name(item) > after], name, out)


Paging = Annotated[PageRequest, Depends()]
V = TypeVar("V", str, int)


def encode(of: str, position: str | int) -> str:
    """Return the cursor that continues a list after a position.

    Example:
        >>> decode(encode("list_campaigns", "outreach"), "list_campaigns", str)
        'outreach'
    """
    text = json.dumps([of, position])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(cursor: str, of: str, kind: type[V]) -> V:
    """Return the position of a cursor.

    Raises:
        Problem: `invalid`, if it is not a cursor of this list.
    """
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        decoded = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        decoded = None
    match decoded:
        case [str(name), position] if name == of and type(position) is kind and _fits(position):
            return position
    raise Problem(Code.INVALID, "cursor: use the next_cursor of this list")


def _fits(position: str | int) -> bool:
    return "\0" not in position if isinstance(position, str) else 0 <= position < 2**63
