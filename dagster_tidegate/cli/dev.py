"""`tidegate dev`: a local Dagster with the API on the port of its UI."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from dagster_tidegate.cli import console
from dagster_tidegate.cli.connections import explained, named_store
from dagster_tidegate.cli.options import Port, code_options
from dagster_tidegate.dagster_api.project import (
    TEMPORARY_HOME,
    CodeOptions,
    Project,
    ProjectError,
    find,
    root,
    workspace_file,
)
from dagster_tidegate.doctor.dagster_yaml import NotEditableError, with_settings
from dagster_tidegate.store import schema

POLL_S = 0.5
STOP_TIMEOUT_S = 60.0


@click.command()
@click.option("--host", "-h", help="Address to listen on. Default: 127.0.0.1.")
@click.option("--port", "-p", type=Port(free=True), help="Port. Default: 3000.")
@code_options
def dev(host: str | None, port: int | None, code: CodeOptions) -> None:
    """Run Dagster's UI, its daemon and the API on this machine until Ctrl-C.

    Like dg dev, but also serves the API on the UI's port, and creates and upgrades the store.
    Without DAGSTER_HOME, it uses a temporary one with the settings that Tidegate needs.
    """
    if find_spec("dagster_webserver") is None:
        raise console.failure("the Dagster UI is not installed: pip install dagster-webserver")
    with explained(ProjectError):
        project = find(code, Path.cwd())
    with ExitStack() as stack:
        if not os.environ.get("DAGSTER_HOME"):
            stack.enter_context(_temporary_home(root(Path.cwd())))
        _warn_of_settings(Path(os.environ["DAGSTER_HOME"]))
        with explained():
            store = named_store(None)
            if store.embedded:
                schema.upgrade(store)
            schema.require_compatible(store)
            store.dispose()
        _make_storage()
        workspaces = stack.enter_context(_workspaces(project))
        given = {"--host": host, "--port": port}
        options = [str(x) for pair in given.items() if pair[1] is not None for x in pair]
        _run(
            [
                [sys.executable, "-m", "dagster_tidegate.cli", "serve", *options, *workspaces],
                [sys.executable, "-m", "dagster._daemon", "run", *workspaces],
            ]
        )


@contextmanager
def _temporary_home(directory: Path) -> Iterator[None]:
    """Make a DAGSTER_HOME where `dg dev` makes one, so that other commands find it."""
    file = directory / "dagster.yaml"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    try:
        text = with_settings(text)
    except NotEditableError as error:
        raise console.failure(f"{file}: {error}") from error
    with TemporaryDirectory(prefix=TEMPORARY_HOME, dir=directory) as home:
        # Other commands read it from where `dg dev` does; here are the settings that it may lack.
        Path(home, "dagster.yaml").write_text(text, encoding="utf-8")
        os.environ["DAGSTER_HOME"] = home
        console.say(
            "DAGSTER_HOME is not set: the data is deleted at the end. Set it to keep runs, results "
            "and holds"
        )
        try:
            yield
        finally:
            del os.environ["DAGSTER_HOME"]


def _warn_of_settings(home: Path) -> None:
    file = home / "dagster.yaml"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    with suppress(NotEditableError):  # Dagster itself says what is wrong
        if with_settings(text) != text:
            console.say(f"{file} lacks settings: run 'tidegate init'", err=True)


def _make_storage() -> None:
    from dagster_tidegate.dagster_api.workspace import make_storage, open_instance

    with open_instance() as instance:
        make_storage(instance)


@contextmanager
def _workspaces(project: Project) -> Iterator[list[str]]:
    """Yield the options by which the server and the daemon load the same code locations."""
    folder = TemporaryDirectory(prefix="tidegate-dev-")
    with folder as name:
        files = [*project.workspaces]
        if project.locations:
            files.append(Path(name, "workspace.yaml"))
            files[-1].write_text(workspace_file(project), encoding="utf-8")
        yield [option for file in files for option in ("--workspace", str(file))]


def _run(commands: Sequence[Sequence[str]]) -> None:
    """Run commands until one ends or this process receives SIGINT or SIGTERM."""
    stopping: list[int] = []
    previous = {
        number: signal.signal(number, lambda number, _: stopping.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    # In groups of their own, so that Ctrl-C reaches them once, from here.
    processes = [subprocess.Popen(command, start_new_session=True) for command in commands]
    try:
        while not stopping and all(process.poll() is None for process in processes):
            time.sleep(POLL_S)
    finally:
        _stop(processes)
        for number, handler in previous.items():
            signal.signal(number, handler)
    failed = [process.returncode for process in processes if process.returncode]
    if failed and not stopping:
        raise console.failure("a process of Dagster ended; its error is above")


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
