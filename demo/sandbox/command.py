"""`python -m demo sandbox`: run the local services, make them fail, ask what arrived."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dagster_tidegate.cli.port import Port
from dagster_tidegate.settings import ReferenceSettings, SettingsError, load

if TYPE_CHECKING:
    from demo.sandbox.control import SandboxControl

# Written out here, so that `tidegate --help` need not import the server; a test compares.
SERVICES = ("apollo", "millionverifier", "perplexity", "openai", "instantly")
DEFAULT_PORT = 8765
URL_VARIABLE = "TIDEGATE_SANDBOX_URL"

_service = click.argument("service", type=click.Choice(SERVICES))
_url = click.option(
    "--url",
    help=f"Address of the running sandbox. Default: {URL_VARIABLE}, else "
    f"http://127.0.0.1:{DEFAULT_PORT}.",
)
_for = click.option(
    "--for", "for_s", type=float, metavar="SECONDS", help="Heal by itself after so long."
)


@click.group()
def sandbox() -> None:
    """Run the local services, make them fail, ask what arrived.

    Exit codes: 0 done, 1 the sandbox is not there or refused the order, 2 wrong usage.
    """


@sandbox.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. Whoever reaches it may make the services fail.",
)
@click.option(
    "--port",
    default=DEFAULT_PORT,
    show_default=True,
    type=Port(free=True),
    help="Port; 0 takes a free one.",
)
@click.option(
    "--latency",
    "latency_s",
    default=0.003,
    show_default=True,
    type=click.FloatRange(0, 60),
    metavar="SECONDS",
    help="How long every answer takes.",
)
def serve(host: str, port: int, latency_s: float) -> None:
    """Run the services in the foreground until Ctrl-C."""
    from demo.sandbox import server

    try:
        sock = server.listen(port, host)
    except server.PortTakenError as error:
        raise click.ClickException(str(error)) from error
    with sock:
        host, taken = sock.getsockname()[:2]
        click.echo(f"sandbox: http://{host}:{taken} plays {', '.join(SERVICES)}")
        with suppress(KeyboardInterrupt):
            server.serve(sock, latency_s=latency_s)


@sandbox.command()
@_service
@click.option("--status", type=int, help="Status of the refusals.  [default: 503]")
@click.option("--rate-limit", is_flag=True, help="Refuse with 429 and a Retry-After.")
@click.option(
    "--retry-after",
    "retry_after_s",
    type=float,
    metavar="SECONDS",
    help="Retry-After of the refusals.  [default: 5 with --rate-limit, else none]",
)
@click.option("--share", type=float, help="Refuse only this share of the calls, 0 to 1.")
@click.option("--wrong", is_flag=True, help="Answer 200 with something wrong in it.")
@_for
@_url
def fail(
    url: str | None, service: str, rate_limit: bool, wrong: bool, **fields: float | None
) -> None:
    """Make SERVICE refuse its calls, or answer them wrongly."""
    chosen = {
        "rate_limit": rate_limit,
        "wrong": wrong,
        "share": fields["share"] is not None,
    }
    modes = [mode for mode, is_chosen in chosen.items() if is_chosen]
    if len(modes) > 1:
        raise click.UsageError(f"choose one of {' and '.join(modes)}")
    _place(url, service, {"mode": modes[0] if modes else "outage", **fields})


@sandbox.command()
@_service
@click.option(
    "--latency",
    "latency_s",
    type=float,
    metavar="SECONDS",
    help="How long an answer takes.  [default: 5]",
)
@_for
@_url
def slow(url: str | None, service: str, **fields: float | None) -> None:
    """Make SERVICE answer late."""
    _place(url, service, {"mode": "slow", **fields})


@sandbox.command()
@click.argument("services", nargs=-1, type=click.Choice(SERVICES))
@_url
def heal(url: str | None, services: tuple[str, ...]) -> None:
    """Make SERVICES well again; all of them if none is named."""
    with _running(url) as running:
        for service in services or SERVICES:
            had_one = running.heal(service)
            if had_one or services:
                click.echo(f"{service}: {'healed' if had_one else 'was well'}")


@sandbox.command()
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
@click.option("--reset", is_flag=True, help="Set the counts back after showing them.")
@_url
def stats(url: str | None, as_json: bool, reset: bool) -> None:
    """Show what arrived at each service."""
    with _running(url) as running:
        found = running.stats()
        if reset:
            running.reset()
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _print_table(found)


@sandbox.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--count", default=500, show_default=True, type=click.IntRange(1, 1_000_000))
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Another seed gives other people.",
)
def leads(file: Path, count: int, seed: int) -> None:
    """Write a lead FILE (CSV) of made-up people; a new one starts a run of outreach."""
    from demo.sandbox.leads import write_lead_file

    if file.exists():
        raise click.ClickException(f"{file} is there already; choose another name")
    try:
        write_lead_file(file, count, seed=seed)
    except OSError as error:
        raise click.ClickException(f"can't write {file}: {error.strerror}") from error
    click.echo(f"{file}: {count} leads")


def _place(url: str | None, service: str, fields: dict[str, Any]) -> None:
    from pydantic import ValidationError

    from demo.sandbox.faults import Fault, explain

    try:
        fault = Fault.model_validate(fields)
    except ValidationError as error:
        raise click.UsageError(explain(error)) from error
    with _running(url) as running:
        placed = running.place(service, fault)
    until = placed["healed_at"]
    click.echo(
        f"{service}: {placed['mode']} "
        + (f"until {until}" if until else f"until 'python -m demo sandbox heal {service}'")
    )


@contextmanager
def _running(url: str | None) -> "Iterator[SandboxControl]":
    from demo.sandbox.control import SandboxControl, SandboxError

    try:
        address = load(ReferenceSettings, sandbox_url=url).sandbox_url
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    with SandboxControl(address) as running:
        try:
            yield running
        except SandboxError as error:
            raise click.ClickException(str(error)) from error


def _print_table(found: dict[str, dict[str, Any]]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    columns = ("service", "now", "calls", "failed", "effects", "repeated", "last call, UTC")
    table = Table(*columns, box=SIMPLE)
    for service, counts in found.items():
        fault = counts["fault"]
        table.add_row(
            service,
            "well" if fault is None else fault["mode"],
            *(
                str(counts[name])
                for name in ("calls", "failures_served", "effects", "keys_repeated")
            ),
            (counts["last_call_at"] or "")[11:19],
        )
    Console().print(table)
