"""Processes that start in less time, and Dagster on SQLite with less work around each query.

A process that imports Dagster spends a fifth of that on looking for garbage, and finds none: here
it looks less often. Dagster reads all its migration scripts whenever it opens an instance, as at
each tick of a sensor, or the events of one more run; it makes an engine for each query, and
connects; it asks before most queries whether its schema is of today; and it makes the schema of a
resource's config whenever it copies the resource. Here all of that happens once. Each engine of
SQLAlchemy compiles its statements: here one does it for all of its kind. Dagster starts two
processes of Python for each step, to end those that copy its output: here these end by themselves.
Each client of httpx reads all certificates of the machine: here the first one does. Dagster notes
each run for its telemetry, in the home of whoever runs the tests: here it does not. Nothing else is
changed.

`sitecustomize` imports this when a process starts that has this folder in its PYTHONPATH, as
`tests/conftest.py` gives it to all children.
"""

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial, wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from threading import Lock
from types import ModuleType
from typing import Any

ENGINES = 64
CLASSES = 512
STATEMENTS = 3000
ALLOCATIONS = 50_000
"""How many more objects there are before Python looks for garbage; its default is 700."""

_engines: dict[tuple[Any, ...], Any] = {}
_engines_lock = Lock()


def keep_migrations(module: Any) -> None:
    """Let `alembic.script.base` read the scripts of Dagster once."""
    directory = module.ScriptDirectory
    read: Callable[..., Any] = directory.from_config.__func__
    kept: dict[str, Any] = {}

    def from_config(cls: type, config: Any) -> Any:
        place = config.get_alembic_option("script_location")
        if not str(place).startswith("dagster"):
            return read(cls, config)
        if place not in kept:
            scripts = read(cls, config)
            scripts.as_revision_number("head")  # reads them
            kept[place] = scripts
        return kept[place]

    directory.from_config = classmethod(from_config)


def keep_engines(module: Any) -> None:
    """Let `dagster._core.storage.sql` make one engine for each file of SQLite, and connect once.

    Each of Dagster's queries connects anew: SQLite reads the whole schema again, and when the last
    connection closes, it copies its log to the database and removes it.
    """
    make = module.create_engine

    def new(url: str, timeout_s: float | None) -> Any:
        arguments: dict[str, Any] = {"check_same_thread": False}  # one thread at a time has it
        arguments |= {} if timeout_s is None else {"timeout": timeout_s}
        queue = module.db.pool.QueuePool
        engine = make(url, connect_args=arguments, poolclass=queue, pool_size=1, max_overflow=-1)
        vars(engine)["dispose"] = lambda: None  # Dagster calls it after each query
        return engine

    def one_for(*key: Any) -> Any:
        with _engines_lock:
            engine = _engines.pop(key, None) or new(*key)
            _engines[key] = engine  # behind all that were used before
            if len(_engines) > ENGINES:
                _disconnect(_engines.pop(next(iter(_engines))))
        return engine

    def create_engine(url: Any, **options: Any) -> Any:
        pool, arguments = options.get("poolclass"), options.get("connect_args", {})
        known = options.keys() <= {"poolclass", "connect_args"} and arguments.keys() <= {"timeout"}
        is_file = str(url).startswith("sqlite:////")
        if known and is_file and getattr(pool, "__name__", "") == "NullPool":
            return one_for(str(url), arguments.get("timeout"))
        return make(url, **options)

    module.create_engine = create_engine


def disconnect() -> None:
    """Close the connections that no query uses: a fork must neither use nor close them."""
    for engine in _engines.values():
        _disconnect(engine)


def _disconnect(engine: Any) -> None:
    type(engine).dispose(engine)


def _before_fork() -> None:
    _engines_lock.acquire()
    disconnect()


def keep_schema(name: str, questions: Sequence[str], module: ModuleType) -> None:
    """Let a storage ask once for what it has: tables, columns and indexes do not go away."""
    storage = getattr(module, name)
    for question in questions:
        setattr(storage, question, _asked_once(getattr(storage, question)))


def _asked_once(ask: Callable[..., bool]) -> Callable[..., bool]:
    @wraps(ask)
    def answer(self: Any, *arguments: Any) -> bool:
        # Besides names, there may be a connection among the arguments.
        asked = (ask.__name__, *(each for each in arguments if isinstance(each, str)))
        had = self.__dict__.setdefault("_had", set())
        if asked not in had and ask(self, *arguments):
            had.add(asked)
        return asked in had

    return answer


class Compiled:
    """The statements that one engine has compiled, for all others of the same kind of database."""

    def __init__(self, kept: Any) -> None:
        self._kept = kept

    def get(self, key: tuple[Any, ...]) -> Any:
        return self._kept.get(self._alike(*key))

    def __setitem__(self, key: tuple[Any, ...], compiled: Any) -> None:
        self._kept[self._alike(*key)] = compiled

    def clear(self) -> None:
        self._kept.clear()

    def _alike(self, dialect: Any, *statement: Any) -> tuple[Any, ...]:
        options = ("server_version_info", "_json_serializer", "_json_deserializer")
        return (type(dialect), *(getattr(dialect, each, None) for each in options), *statement)


def share_compiled(module: Any) -> None:
    """Let the engines of `sqlalchemy.engine.base` share what they have compiled."""
    init = module.Engine.__init__
    compiled = Compiled(module.util.LRUCache(STATEMENTS))

    @wraps(init)
    def share(self: Any, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        vars(self)["_compiled_cache"] = compiled

    module.Engine.__init__ = share


def keep_config_schemas(module: Any) -> None:
    """Let `dagster._config.pythonic_config.config` make the schema of a class once."""
    infer = module.infer_schema_from_config_class

    @lru_cache(CLASSES)
    def once(model: type, description: str | None, omitted: frozenset[str]) -> Any:
        return infer(model, description, set(omitted))

    def infer_schema_from_config_class(
        model_cls: type,
        description: str | None = None,
        fields_to_omit: set[str] | None = None,
        default: Any = None,
    ) -> Any:
        if default is not None:
            return infer(model_cls, description, fields_to_omit, default)
        return once(model_cls, description, frozenset(fields_to_omit or ()))

    module.infer_schema_from_config_class = infer_schema_from_config_class


def keep_certificates(module: Any) -> None:
    """Let `httpx._config` read the certificates of this machine once, not for each client."""
    module.create_ssl_context = lru_cache(module.create_ssl_context)


def keep_no_telemetry(module: Any) -> None:
    """Let `dagster_shared.telemetry` write nothing, and so keep no file open."""
    module.log_telemetry_action = lambda *_, **__: None


def tail_alone(module: Any) -> None:
    """Let `dagster._core.execution.compute_logs` start no Python that watches each `tail`."""
    number_of = vars(module)["_fileno"]

    @contextmanager
    def execute_posix_tail(path: str, stream: Any) -> Iterator[tuple[int, None]]:
        stream = stream if number_of(stream) else None
        # It ends with this process, by itself.
        command = ["tail", f"--pid={os.getpid()}", "-F", "-c", "+0", path]
        tail = module.subprocess.Popen(command, stdout=stream)
        try:
            yield tail.pid, None
        finally:
            tail.terminate()
            tail.communicate(timeout=30)

    if sys.platform == "linux":
        module.execute_posix_tail = execute_posix_tail


PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "alembic.script.base": keep_migrations,
    "dagster._config.pythonic_config.config": keep_config_schemas,
    "dagster._core.execution.compute_logs": tail_alone,
    "dagster._core.storage.sql": keep_engines,
    "dagster_shared.telemetry": keep_no_telemetry,
    "httpx._config": keep_certificates,
    "sqlalchemy.engine.base": share_compiled,
    "dagster._core.storage.schedules.sql_schedule_storage": partial(
        keep_schema,
        "SqlScheduleStorage",
        [
            "has_instigators_table",
            "_has_instigators_table",
            "has_secondary_index_table",
            "has_built_index",
        ],
    ),
    "dagster._core.storage.runs.sql_run_storage": partial(
        keep_schema,
        "SqlRunStorage",
        [
            "has_run_stats_index_cols",
            "has_bulk_actions_selector_cols",
            "has_backfill_id_column",
            "has_bulk_action_job_name_column",
            "has_backfill_tags_table",
        ],
    ),
}


class Patching(MetaPathFinder, Loader):
    """Patches a module when it is imported."""

    def __init__(self) -> None:
        self._loaders: dict[str, Loader] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in PATCHES or fullname in self._loaders:
            return None
        for finder in sys.meta_path:
            if finder is self or not (spec := finder.find_spec(fullname, path, target)):
                continue
            if spec.loader is None:
                return spec
            self._loaders[fullname] = spec.loader
            spec.loader = self
            return spec
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loaders[spec.name].create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loaders[module.__name__].exec_module(module)
        PATCHES[module.__name__](module)


# The workers of pytest-xdist import it twice: as children, and for `tests/conftest.py`.
if not any(type(finder).__name__ == Patching.__name__ for finder in sys.meta_path):
    gc.set_threshold(ALLOCATIONS)
    unlock = _engines_lock.release
    os.register_at_fork(before=_before_fork, after_in_parent=unlock, after_in_child=unlock)
    sys.meta_path.insert(0, Patching())
    for name in PATCHES.keys() & sys.modules.keys():
        PATCHES[name](sys.modules[name])
