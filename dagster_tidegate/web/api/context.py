"""What the routes of one app share."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request
from prometheus_client import CollectorRegistry

from dagster_tidegate.control import situation
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.store.database import Connection, Store
from dagster_tidegate.telemetry.collector import FleetCollector
from dagster_tidegate.web.api.problems import Code, Problem
from dagster_tidegate.web.api.stream import Feed

if TYPE_CHECKING:
    from dagster_tidegate.dagster_api.workspace import Workspace


@dataclass(frozen=True)
class AppContext:
    """What the routes of one app share.

    Attributes:
        feed: Wakes the event streams.
        open_workspace: Returns the code locations as they are now; None if the server has none.
        read_only: Whether the server refuses every change.
    """

    store: Store
    feed: Feed
    open_workspace: "Callable[[], Workspace] | None" = None
    read_only: bool = False

    @contextmanager
    def reading(
        self, only: Callable[[Connection], Collection[str] | None] | None = None
    ) -> Iterator[tuple[Connection, Situation]]:
        """Read the situation, and anything else as of the same moment.

        Args:
            only: Returns the names of the campaigns that matter, or None for all of them.
        """
        with self.store.read() as conn:
            names = None if only is None else only(conn)
            yield conn, situation.read(conn, self.store.now(conn), names)

    @cached_property
    def metrics(self) -> CollectorRegistry:
        """The metrics of the fleet, which are read when they are encoded."""
        registry = CollectorRegistry()
        registry.register(FleetCollector(self.store))
        return registry

    def workspace(self) -> "Workspace":
        """Return the code locations as they are now.

        Raises:
            Problem: `dagster_unavailable`, if this server has none.
        """
        if self.open_workspace is None:
            raise Problem(
                Code.DAGSTER_UNAVAILABLE,
                "this server has no code locations, so it can't start or terminate Dagster runs: "
                "start it with --workspace",
            )
        return self.open_workspace()

    def has_run(self, run_id: str) -> bool:
        """Return whether Dagster has the run of a repeated request.

        The server that launched it may have died before it answered.
        """
        return self.open_workspace is not None and self.open_workspace().has_run(run_id)


async def _context(request: Request) -> AppContext:
    return request.app.state.context


Context = Annotated[AppContext, Depends(_context)]
