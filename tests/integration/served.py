"""An app on a real port of this machine."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

MAX_S = 60


@contextmanager
def served(app: ASGIApp, **options: Any) -> Iterator[str]:
    """Serve an app; yields its URL."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, lifespan="off", log_config=None, server_header=False,
        **{"proxy_headers": False, **options},
    )  # fmt: skip
    server = uvicorn.Server(config)
    started = threading.Event()
    startup = server.startup

    async def tell_startup(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = tell_startup  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        assert started.wait(MAX_S), "the server did not start"
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(MAX_S)
        assert not thread.is_alive()
