"""The deployment that a drill runs against: its own DAGSTER_HOME, ports and processes."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_hex
from urllib.parse import urlsplit

import dagster as dg
import sqlalchemy as sa
import yaml
from dagster_graphql import DagsterGraphQLClient

from dagster_tidegate.dagster_api.instance import Dagster
from dagster_tidegate.store.database import URL_VARIABLE, Store, read_url
from demo.sandbox.client import SandboxClient
from demo.up import dagster_web, deployment, home
from demo.up.children import Child, Children
from demo.up.ports import free

SANDBOX_LATENCY_S = 0.02
PROJECT_ONLY = ("storage", "run_launcher", "local_artifact_storage", "compute_logs")
"""Not copied from the project's dagster.yaml, so that a drill can't touch its databases."""


@dataclass
class Deployment:
    """A running deployment.

    Attributes:
        workspace: The project's `workspace.yaml`.
        leads: The directory it watches for lead files.
        web: Address of Dagster's webserver.
        env: Environment of its processes.
        clock_offset: The store's clock minus this machine's.
        dagster_schema: On PostgreSQL, the schema with Dagster's storage.
    """

    workspace: Path
    leads: Path
    store: Store
    instance: dg.DagsterInstance
    sandbox: SandboxClient
    web: str
    children: Children
    env: dict[str, str]
    clock_offset: timedelta
    dagster_schema: str | None

    @property
    def dagster(self) -> Dagster:
        """The pools, schedules and sensors of the instance."""
        return Dagster(self.instance)

    def start_daemon(self) -> Child:
        """Start Dagster's daemon; the previous one must have ended."""
        command = deployment.daemon_command(self.workspace)
        return self.children.start("daemon", command, env=self.env, cwd=self.workspace.parent)

    def kill_daemon(self) -> None:
        """Kill Dagster's daemon with SIGKILL."""
        self.children.kill("daemon")

    def launch(self, job: str) -> str:
        """Launch a run of a recent partition over GraphQL, as the UI does; return its id."""
        address = urlsplit(self.web)
        assert address.hostname is not None  # an address that we made
        client = DagsterGraphQLClient(address.hostname, port_number=address.port)
        partition = dagster_web.recent_partition(self.web, job)
        return client.submit_job_execution(job, tags={"dagster/partition": partition})

    def local(self, at: datetime) -> datetime:
        """Convert a time of the store's clock to this machine's, which the sandbox uses."""
        return at - self.clock_offset


def drop(url: str, schema: str) -> None:
    """Drop the PostgreSQL schema with Dagster's storage of a finished drill."""
    _execute(url, sa.schema.DropSchema(schema, cascade=True))


@contextmanager
def start_deployment(
    workspace: Path, folder: Path, *, store_url: str | None
) -> Iterator[Deployment]:
    """Start a deployment and stop it on exit.

    Args:
        workspace: The project's `workspace.yaml`; its `dagster.yaml` is beside it.
        folder: An empty directory for everything it writes.
        store_url: URL of the store; None is a SQLite file in `folder`. On PostgreSQL, Dagster's
            storage gets a schema of its own in the same database.

    Yields:
        The deployment, once its processes answer.
    """
    dagster_home, leads = folder / "home", folder / "leads"
    for directory in (dagster_home, leads):
        directory.mkdir()
    url = store_url or f"sqlite:///{dagster_home / 'tidegate.db'}"
    deployment.upgrade_store(url)
    schema = _configure_dagster(workspace.parent, dagster_home, url)
    port, sandbox_port = free(), free()
    env = {
        **{name: value for name, value in os.environ.items() if name != "DEMO_RESULTS_URL"},
        "DAGSTER_HOME": str(dagster_home),
        "DEMO_LEADS": str(leads),
        "DEMO_SANDBOX_URL": deployment.address(sandbox_port),
        URL_VARIABLE: url,
    }
    with ExitStack() as stack:
        children = stack.enter_context(Children(dagster_home / deployment.LOGS))
        deployment.start(
            children,
            workspace,
            port=port,
            sandbox_port=sandbox_port,
            sandbox_options=("--latency", str(SANDBOX_LATENCY_S)),
            env=env,
        )
        store = Store(url)
        stack.callback(store.dispose)
        with store.read() as conn:
            clock_offset = store.now(conn) - datetime.now(UTC)
        yield Deployment(
            workspace=workspace,
            leads=leads,
            store=store,
            instance=stack.enter_context(dg.DagsterInstance.from_config(str(dagster_home))),
            sandbox=stack.enter_context(SandboxClient(deployment.address(sandbox_port))),
            web=deployment.address(port),
            children=children,
            env=env,
            clock_offset=clock_offset,
            dagster_schema=schema,
        )


def _configure_dagster(project: Path, dagster_home: Path, url: str) -> str | None:
    """Write the project's `dagster.yaml` with a storage of its own beside the store.

    Returns:
        On PostgreSQL, the schema created for it.
    """
    try:
        config = yaml.safe_load((project / "dagster.yaml").read_text()) or {}
    except FileNotFoundError:
        raise home.HomeError(f"there is no dagster.yaml in {project}") from None
    for key in PROJECT_ONLY:
        config.pop(key, None)
    schema, address = None, read_url(url)
    if address.get_backend_name() == "postgresql":
        schema = f"tidegate_drill_{token_hex(4)}"
        _execute(url, sa.schema.CreateSchema(schema))
        # SQLAlchemy 2.1 resolves `postgresql://` to psycopg 3; dagster-postgres needs psycopg2.
        own = address.set(drivername="postgresql+psycopg2").update_query_dict(
            {"options": f"-csearch_path={schema}"}
        )
        text = own.render_as_string(hide_password=False)
        config["storage"] = {"postgres": {"postgres_url": text}}
    (dagster_home / "dagster.yaml").write_text(yaml.safe_dump(config))
    return schema


def _execute(url: str, statement: sa.Executable) -> None:
    store = Store(url)
    try:
        with store.begin() as conn:
            conn.execute(statement)
    finally:
        store.dispose()
