"""Which paths are Tidegate's own, and which are Dagster's."""

import asyncio
from typing import Any

import pytest

from dagster_tidegate.web.middleware.connection import GuardedConnection
from dagster_tidegate.web.path_router import LOGIN, LOGOUT, PUBLIC, PathRouter, strip_prefix

PATHS = ["/", "/api", "/apis", "/login", "/logout/", "/metrics", "/runs", "/graphql", *PUBLIC]
OWN = ("api", "login", "public")


async def unused(*_: Any) -> Any:
    raise AssertionError


def sent_to(scope: dict[str, Any], prefix: str) -> str:
    """The app that gets a connection."""
    taken: list[str] = []

    def app(name: str) -> Any:
        async def take(*_: Any) -> None:
            taken.append(name)

        return take

    apps = {name: app(name) for name in (*OWN, "pages")}
    asyncio.run(PathRouter(**apps, prefix=prefix)(scope, unused, unused))
    return taken[0]


@pytest.mark.parametrize("prefix", ["", "/tide", "/api"])
@pytest.mark.parametrize("before", ["", "/tide", "/tides", "/tide/tide", "/api"])
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_own_paths_go_to_the_api_and_the_middlewares_agree(
    prefix: str, before: str, kind: str
) -> None:
    for path in PATHS:
        scope = {"type": kind, "path": before + path, "headers": []}
        connection = GuardedConnection(scope, prefix)
        app = sent_to(scope, prefix)
        assert connection.own == (app in OWN), scope
        assert (connection.own and connection.path in PUBLIC) == (app == "public"), scope
        assert (connection.own and connection.path in (LOGIN, LOGOUT)) == (app == "login"), scope


@pytest.mark.parametrize(
    ("path", "stripped"),
    [
        ("/tide/login", "/login"),
        ("/login", "/login"),  # from a proxy that removes the prefix
        ("/tide", ""),
        ("/tides/login", "/tides/login"),
        ("/tide/tide/login", "/tide/login"),
    ],
)
def test_a_path_without_its_prefix(path: str, stripped: str) -> None:
    assert strip_prefix(path, "/tide") == stripped


def test_only_http_is_own() -> None:
    scope = {"type": "http", "path": "/tide/api/v1/health/live", "headers": []}
    assert GuardedConnection(scope, "/tide").own
    assert not GuardedConnection({**scope, "type": "websocket"}, "/tide").own
    assert not GuardedConnection({**scope, "path": "/tides/api/v1/health/live"}, "/tide").own
