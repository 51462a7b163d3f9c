"""Runs the API, and Dagster's pages beside it, until told to stop."""

import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from dagster_tidegate.alerts import loop as alerts
from dagster_tidegate.alerts.targets import Targets
from dagster_tidegate.settings import AlertSettings, ServeSettings, load
from dagster_tidegate.store.database import Store
from dagster_tidegate.web.access import exposure
from dagster_tidegate.web.api.app import create_app
from dagster_tidegate.web.middleware.guard import Guard
from dagster_tidegate.web.path_router import OnePort

GRACE_S = 5
"""Answers under way when the server is told to stop get so long, in seconds."""
BACKLOG = 2048
SWITCH_S = 0.001

log = logging.getLogger(__name__)


class ListenError(Exception):
    """The address can't be listened on; the message says what to do."""


def run(
    store: Store,
    settings: ServeSettings,
    *,
    workspace: Path | None,
    pages: bool,
    read_only: bool,
    log_level: str,
    ready: Callable[[str], None],
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        store: The store.
        settings: Where and to whom.
        workspace: The workspace file; None: the API alone, which starts no runs.
        pages: Serve Dagster's pages too, for which a workspace is needed.
        read_only: Refuse every change.
        log_level: Of what is logged: `warning`.
        ready: Told the address when everything is about to answer.

    Raises:
        ExposedError: If other machines would reach it, and no token lets anybody in.
        ListenError: If the address can't be listened on.
        WorkspaceError: If the workspace can't be read, or there is no Dagster instance.
    """
    exposure.check(store, settings.host)
    # A thread that computes, for a long list, must not keep those waiting that are soon through.
    sys.setswitchinterval(SWITCH_S)
    with ExitStack() as stack:
        listener = stack.enter_context(_listener(settings))
        stack.enter_context(_ends_by_exit())
        app = stack.enter_context(
            _app(store, settings, workspace, pages=pages, read_only=read_only, log_level=log_level)
        )
        stack.enter_context(_alerts(store))
        port = listener.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        ready(f"http://{host}:{port}{settings.path_prefix}")
        uvicorn.Server(_config(app, settings, log_level)).run(sockets=[listener])


def _config(app: ASGIApp, settings: ServeSettings, log_level: str) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        # Below this it logs the headers of websockets, which have tokens.
        log_level="info" if log_level == "debug" else log_level,
        server_header=False,
        ws_max_size=settings.request_bytes,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_graceful_shutdown=GRACE_S,
    )


@contextmanager
def _app(
    store: Store,
    settings: ServeSettings,
    workspace: Path | None,
    *,
    pages: bool,
    read_only: bool,
    log_level: str,
) -> Iterator[ASGIApp]:
    if workspace is None:
        yield Guard(create_app(store, settings=settings, read_only=read_only), store, settings)
        return
    from dagster_tidegate.dagster_api import (
        workspace as workspaces,  # it takes Dagster a second to import
    )

    with workspaces.serve(workspace, log_level=log_level, read_only=read_only) as code:
        app: ASGIApp = create_app(
            store, settings=settings, workspace=code.workspace, read_only=read_only
        )
        if pages:
            from dagster_webserver.app import create_app_from_workspace_process_context

            ui = create_app_from_workspace_process_context(code.process, settings.path_prefix)
            app = OnePort(app, ui, settings.path_prefix)
        yield Guard(app, store, settings)


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
            "Stop what uses it, or choose another with --port"
        ) from error
    with listener:
        yield listener


@contextmanager
def _ends_by_exit() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that code servers are told to end."""
    former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


@contextmanager
def _alerts(store: Store) -> Iterator[None]:
    """Send alerts meanwhile, in a thread."""
    stop = threading.Event()
    settings = load(AlertSettings)
    Targets(settings.urls)  # a URL that can't be used is refused now, and not in the thread
    thread = threading.Thread(
        target=alerts.run, args=(store, settings, stop), name="tidegate-alerts", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(GRACE_S)
