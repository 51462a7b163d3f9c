"""What the routes work with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from dagster_tidegate.control import situation
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.store.database import Connection, Store
from dagster_tidegate.web.api.problems import Code, Problem
from dagster_tidegate.web.api.stream import Feed

if TYPE_CHECKING:
    from dagster_tidegate.dagster_api.workspace import Workspace


@dataclass(frozen=True)
class Context:
    """What the routes of one app work with.

    Attributes:
        store: The store.
        feed: Tells the event streams of new events.
        open_workspace: Returns the code locations as they are now; None where the server has none.
    """

    store: Store
    feed: Feed
    open_workspace: "Callable[[], Workspace] | None" = None

    @contextmanager
    def reading(self) -> Iterator[tuple[Connection, Situation]]:
        """Read the situation, and whatever else is read of the store at the same moment."""
        with self.store.read() as conn:
            now = self.store.now(conn)
            yield conn, situation.read(conn, now)

    def workspace(self) -> "Workspace":
        """Return the code locations as they are now.

        Raises:
            Problem: `dagster_unavailable`, if this server has none.
        """
        if self.open_workspace is None:
            raise Problem(
                Code.DAGSTER_UNAVAILABLE,
                "this server knows no code locations, so it can't start or end Dagster runs: "
                "start it with --workspace",
            )
        return self.open_workspace()


async def _context(request: Request) -> Context:
    return request.app.state.context


Here = Annotated[Context, Depends(_context)]
"""What a route works with."""
