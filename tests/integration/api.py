"""The API of a store over real HTTP, as the tests of the API use it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from dagster_tidegate.settings import ServeSettings
from dagster_tidegate.store.database import Store
from dagster_tidegate.web.api.app import create_app
from dagster_tidegate.web.middleware.guard import Guard
from tests.integration.served import served

MAX_S = 60.0
# Tests ask more often than anybody does.
SETTINGS = ServeSettings(requests_per_address=1_000_000, requests_per_token=1_000_000)


class Api:
    """Asks a server, and checks what it answers.

    Args:
        client: Knows the server.
    """

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def get(self, path: str, expect: int = 200, **query: Any) -> Any:
        """Return what a path answers; `expect` is its status."""
        return self._json(self.client.get(f"/api/v1{path}", params=query), expect)

    def post(
        self,
        path: str,
        body: Any = None,
        expect: int = 200,
        headers: dict[str, str] | None = None,
        **query: Any,
    ) -> Any:
        """Return what a path answers to a body; `expect` is its status."""
        answer = self.client.post(f"/api/v1{path}", json=body, params=query, headers=headers)
        return self._json(answer, expect)

    @staticmethod
    def _json(answer: httpx.Response, expect: int) -> Any:
        assert answer.status_code == expect, answer.text
        found = answer.json()
        if expect >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            assert found["status"] == expect
            assert found["type"].endswith(found["code"])
        return found


@contextmanager
def api(store: Store, workspace: Callable[[], Any] | None = None, **options: Any) -> Iterator[Api]:
    """Serve the API of a store until the end of the block."""
    app = create_app(store, settings=SETTINGS, workspace=workspace, **options)
    with (
        served(Guard(app, store, SETTINGS)) as address,
        httpx.Client(
            base_url=address, timeout=MAX_S, headers={"X-Tidegate-Actor": "ana"}
        ) as client,
    ):
        yield Api(client)
