"""What is ours and what is Dagster's: the guard and what stands behind it must agree."""

import asyncio
from typing import Any

import pytest

from dagster_tidegate.web.middleware.guard import PUBLIC
from dagster_tidegate.web.middleware.visit import Visit, below
from dagster_tidegate.web.path_router import OnePort

PATHS = ["/", "/api", "/apis", "/login", "/logout/", "/metrics", "/runs", "/graphql", *PUBLIC]


async def unused(*_: Any) -> Any:
    raise AssertionError


def sent_to(scope: dict[str, Any], prefix: str) -> str:
    """Where a connection goes: to the API or to the pages."""
    taken = []

    async def api(*_: Any) -> None:
        taken.append("api")

    async def pages(*_: Any) -> None:
        taken.append("pages")

    asyncio.run(OnePort(api, pages, prefix)(scope, unused, unused))
    return taken[0]


@pytest.mark.parametrize("prefix", ["", "/tide", "/api"])
@pytest.mark.parametrize("before", ["", "/tide", "/tides", "/tide/tide", "/api"])
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_what_the_guard_takes_for_ours_goes_to_the_api(prefix: str, before: str, kind: str) -> None:
    for path in PATHS:
        scope = {"type": kind, "path": before + path, "headers": []}
        visit = Visit(scope, unused, unused, prefix)
        assert visit.own == (sent_to(scope, prefix) == "api"), scope


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/tide/login", "/login"),
        ("/login", "/login"),  # from a proxy that takes the prefix off
        ("/tide", ""),
        ("/tides/login", "/tides/login"),
        ("/tide/tide/login", "/tide/login"),
    ],
)
def test_a_path_below_the_prefix(path: str, found: str) -> None:
    assert below(path, "/tide") == found


def test_only_http_is_ours() -> None:
    scope = {"type": "http", "path": "/tide/api/v1/health/live", "headers": []}
    assert Visit(scope, unused, unused, "/tide").own
    assert not Visit({**scope, "type": "websocket"}, unused, unused, "/tide").own
    assert not Visit({**scope, "path": "/tides/api/v1/health/live"}, unused, unused, "/tide").own
