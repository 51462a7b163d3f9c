"""The API alone, for any ASGI server.

```console
$ uvicorn --factory dagster_tidegate.web.api.asgi:app
```
"""

import atexit
from contextlib import ExitStack
from pathlib import Path

from starlette.types import ASGIApp

from dagster_tidegate.dagster_api.project import CodeOptions, find
from dagster_tidegate.settings import ServeSettings, SettingsError, load, problems
from dagster_tidegate.store import schema
from dagster_tidegate.store.database import SERVER_CONNECTIONS, Store
from dagster_tidegate.web.server import open_app


def app() -> ASGIApp:
    """Return the app, configured by environment variables.

    With `TIDEGATE_SERVE_WORKSPACE` it can start and terminate Dagster runs.

    Raises:
        SettingsError: If a variable is unknown or invalid.
        ProjectError: If there is no such workspace file.
        SchemaError: If the schema of the store has another version.
    """
    if wrong := problems():
        raise SettingsError("; ".join(wrong))
    settings = load(ServeSettings)
    store = Store.of_environment(connections=SERVER_CONNECTIONS)
    schema.make_ready(store)
    stack = ExitStack()
    atexit.register(stack.close)
    named = settings.workspace
    code = None if named is None else find(CodeOptions(workspaces=[named]), Path.cwd())
    app = open_app(store, settings, code, pages=False, read_only=False, log_level="warning")
    return stack.enter_context(app)
