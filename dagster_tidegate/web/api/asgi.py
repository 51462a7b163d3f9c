"""The API alone, for any ASGI server.

```console
$ uvicorn --factory dagster_tidegate.web.api.asgi:app
```
"""

import atexit
from contextlib import ExitStack

from starlette.types import ASGIApp

from dagster_tidegate.settings import ServeSettings, SettingsError, load, problems
from dagster_tidegate.store import schema
from dagster_tidegate.store.database import SERVER_CONNECTIONS, Store, default_url
from dagster_tidegate.web.api.app import create_app
from dagster_tidegate.web.middleware.guard import Guard


def app() -> ASGIApp:
    """Return the app, with the settings and the store of the environment.

    With `TIDEGATE_SERVE_WORKSPACE` it can start and end Dagster runs.

    Raises:
        SettingsError: If a setting is unknown or can't be used.
        SchemaError: If the store has another schema.
    """
    if wrong := problems():
        raise SettingsError("; ".join(wrong))
    settings = load(ServeSettings)
    store = Store(default_url(), connections=SERVER_CONNECTIONS)
    schema.require_compatible(store)
    workspace = None
    if settings.workspace is not None:
        from dagster_tidegate.dagster_api import (
            workspace as workspaces,  # it takes Dagster a second to import
        )

        stack = ExitStack()
        atexit.register(stack.close)
        code = stack.enter_context(workspaces.serve(settings.workspace, log_level="warning"))
        workspace = code.workspace
    return Guard(create_app(store, settings=settings, workspace=workspace), store, settings)
