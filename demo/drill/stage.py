"""The stage of a drill: a DAGSTER_HOME, ports and processes of its own."""

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
from demo.sandbox.control import SandboxControl
from demo.up import dagster_web, deployment, home
from demo.up.children import Child, Children
from demo.up.ports import free

SANDBOX_LATENCY_S = 0.02
NOT_THE_PROJECTS = ("storage", "run_launcher", "local_artifact_storage", "compute_logs")
"""A drill has its own of these, so that it can't touch a deployment's."""


@dataclass
class Stage:
    """Everything that a drill touches.

    Attributes:
        workspace: The project's `workspace.yaml`.
        leads: The directory that the deployment watches for lead files.
        store: The store that the deployment uses.
        instance: Its Dagster instance.
        sandbox: The sandbox that plays its services.
        web: Address of Dagster's webserver.
        children: Its processes.
        env: Their environment.
        ahead: How far the store's clock is ahead of this machine's.
        dagster_schema: The schema of a PostgreSQL store's database that has Dagster's storage.
    """

    workspace: Path
    leads: Path
    store: Store
    instance: dg.DagsterInstance
    sandbox: SandboxControl
    web: str
    children: Children
    env: dict[str, str]
    ahead: timedelta
    dagster_schema: str | None

    @property
    def dagster(self) -> Dagster:
        """The pools, schedules and sensors of the instance."""
        return Dagster(self.instance)

    def start_daemon(self) -> Child:
        """Start Dagster's daemon, after the former one has ended."""
        command = deployment.daemon_command(self.workspace)
        return self.children.start("daemon", command, env=self.env, cwd=self.workspace.parent)

    def kill_daemon(self) -> None:
        """Kill Dagster's daemon; nothing of it gets to tidy up."""
        self.children.kill("daemon")

    def launch(self, job: str) -> str:
        """Start a run of a recent partition, as the launch button does, and return its id."""
        address = urlsplit(self.web)
        assert address.hostname is not None  # this stage's own address
        client = DagsterGraphQLClient(address.hostname, port_number=address.port)
        partition = dagster_web.recent_partition(self.web, job)
        return client.submit_job_execution(job, tags={"dagster/partition": partition})

    def local(self, at: datetime) -> datetime:
        """Return a time of the store's clock by this machine's, which the sandbox has too."""
        return at - self.ahead


def drop(url: str, schema: str) -> None:
    """Delete Dagster's storage of a drill that is over.

    Args:
        url: URL of the store, on PostgreSQL.
        schema: Its `Stage.dagster_schema`.
    """
    _execute(url, sa.schema.DropSchema(schema, cascade=True))


@contextmanager
def stage(workspace: Path, place: Path, *, store_url: str | None) -> Iterator[Stage]:
    """Set a stage up, and take it down.

    Args:
        workspace: The project's `workspace.yaml`; its `dagster.yaml` is beside it.
        place: An empty directory for all that it needs.
        store_url: URL of the store; a SQLite file in `place` if None. On PostgreSQL, Dagster's
            storage is in a schema of its own in the same database.

    Yields:
        The stage; its processes answer.
    """
    dagster_home, leads = place / "home", place / "leads"
    for directory in (dagster_home, leads):
        directory.mkdir()
    url = store_url or f"sqlite:///{dagster_home / 'tidegate.db'}"
    deployment.upgrade_store(url)
    schema = _configure_dagster(workspace.parent, dagster_home, url)
    port, sandbox_port = free(), free()
    env = {
        **{name: value for name, value in os.environ.items() if name != "TIDEGATE_RESULTS_URL"},
        "DAGSTER_HOME": str(dagster_home),
        "TIDEGATE_LEADS": str(leads),
        "TIDEGATE_SANDBOX_URL": deployment.address(sandbox_port),
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
            ahead = store.now(conn) - datetime.now(UTC)
        yield Stage(
            workspace=workspace,
            leads=leads,
            store=store,
            instance=stack.enter_context(dg.DagsterInstance.from_config(str(dagster_home))),
            sandbox=stack.enter_context(SandboxControl(deployment.address(sandbox_port))),
            web=deployment.address(port),
            children=children,
            env=env,
            ahead=ahead,
            dagster_schema=schema,
        )


def _configure_dagster(project: Path, dagster_home: Path, url: str) -> str | None:
    """Write the project's `dagster.yaml` with a storage of the drill's own, beside the store.

    Returns:
        The schema that is made for it, where the store is on PostgreSQL.
    """
    try:
        config = yaml.safe_load((project / "dagster.yaml").read_text()) or {}
    except FileNotFoundError:
        raise home.HomeError(f"there is no dagster.yaml in {project}") from None
    for key in NOT_THE_PROJECTS:
        config.pop(key, None)
    schema, address = None, read_url(url)
    if address.get_backend_name() == "postgresql":
        schema = f"tidegate_drill_{token_hex(4)}"
        _execute(url, sa.schema.CreateSchema(schema))
        # Dagster's own driver; `postgresql://` alone is psycopg 3 for SQLAlchemy 2.1.
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
