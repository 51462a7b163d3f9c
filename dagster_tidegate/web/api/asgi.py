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
from dagster_tidegate.web.server import open_app


def app() -> ASGIApp:
    """Return the app, configured by environment variables.

    With `TIDEGATE_SERVE_WORKSPACE` it can start and terminate Dagster runs.

    Raises:
        SettingsError: If a variable is unknown or invalid.
        SchemaError: If the schema of the store has another version.
    """
    if wrong := problems():
        raise SettingsError("; ".join(wrong))
    settings = load(ServeSettings)
    store = Store(default_url(), connections=SERVER_CONNECTIONS)
    schema.require_compatible(store)
    stack = ExitStack()
    atexit.register(stack.close)
    app = open_app(
        store, settings, settings.workspace, pages=False, read_only=False, log_level="warning"
    )
    return stack.enter_context(app)
