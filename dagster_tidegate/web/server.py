"""Runs the API, the Dagster UI and the alert sender until it is stopped."""

import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import uvicorn
from starlette.types import ASGIApp

from dagster_tidegate.alerts import loop as alerts
from dagster_tidegate.alerts.targets import Targets
from dagster_tidegate.dagster_api.project import Project
from dagster_tidegate.settings import AlertSettings, ServeSettings, load
from dagster_tidegate.store.database import Store
from dagster_tidegate.web.access import exposure
from dagster_tidegate.web.api.app import create_app
from dagster_tidegate.web.middleware.stack import guarded

SHUTDOWN_GRACE_S = 5
"""How long requests in flight may take during shutdown."""
BACKLOG = 2048
THREAD_SWITCH_INTERVAL_S = 0.001


class ListenError(Exception):
    """The address can't be listened on; the message says what to do."""


def run(
    store: Store,
    settings: ServeSettings,
    *,
    code: Project | None,
    pages: bool,
    read_only: bool,
    log_level: str,
    ready: Callable[[str], None],
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        code: The code to load. None: the API alone, which can't start runs.
        pages: Serve the Dagster UI too; it needs the code.
        ready: Called with the URL just before requests are answered.

    Raises:
        ExposedError: If other machines could reach it and no token was ever created.
        ListenError: If the address can't be listened on.
        WorkspaceError: If the workspace can't be read, or there is no Dagster instance.
    """
    exposure.check(store, settings.host)
    # A thread that builds a long list must not delay short requests.
    sys.setswitchinterval(THREAD_SWITCH_INTERVAL_S)
    with ExitStack() as stack:
        listener = stack.enter_context(_listener(settings))
        stack.enter_context(_sigterm_exits())
        app = stack.enter_context(
            open_app(store, settings, code, pages=pages, read_only=read_only, log_level=log_level)
        )
        stack.enter_context(_alerts(store))
        port = listener.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        ready(f"http://{host}:{port}{settings.path_prefix}")
        uvicorn.Server(_config(app, settings, log_level)).run(sockets=[listener])


def _config(app: ASGIApp, settings: ServeSettings, log_level: str) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        # At debug it logs the headers of websockets, which contain tokens.
        log_level="info" if log_level == "debug" else log_level,
        server_header=False,
        ws_max_size=settings.request_bytes,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
    )


@contextmanager
def open_app(
    store: Store,
    settings: ServeSettings,
    code: Project | None,
    *,
    pages: bool,
    read_only: bool,
    log_level: str,
) -> Iterator[ASGIApp]:
    """Load the code locations, and return the app; the arguments are those of `run`.

    Raises:
        WorkspaceError: If the workspace can't be read, or there is no Dagster instance.
    """
    if code is None:
        yield guarded(create_app(store, settings=settings, read_only=read_only), store, settings)
        return
    from dagster_tidegate.dagster_api import (
        workspace as workspaces,  # importing Dagster takes a second
    )

    with workspaces.serve(code, log_level=log_level, read_only=read_only) as served:
        api = create_app(store, settings=settings, workspace=served.workspace, read_only=read_only)
        webserver = served.pages(settings.path_prefix) if pages else None
        yield guarded(api, store, settings, pages=webserver)


@contextmanager
def _listener(settings: ServeSettings) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server(
            (settings.host, settings.port), family=family, backlog=BACKLOG
        )
    except OSError as error:
        raise ListenError(
            f"{settings.host} port {settings.port} can't be used: {error.strerror or error}. "
            "Stop the process that uses it, or choose another port with --port"
        ) from error
    with listener:
        yield listener


@contextmanager
def _sigterm_exits() -> Iterator[None]:
    """Let SIGTERM unwind the stack, which stops the code servers."""
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _alerts(store: Store) -> Iterator[None]:
    """Send alerts in a thread."""
    stop = threading.Event()
    settings = load(AlertSettings)
    Targets(settings.urls)  # refuses an unusable URL now rather than in the thread
    thread = threading.Thread(
        target=alerts.run, args=(store, settings, stop), name="tidegate-alerts", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(SHUTDOWN_GRACE_S)
