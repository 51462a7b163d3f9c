"""`python -m demo sandbox`: simulated services that fail on request."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dagster_tidegate.cli.options import Port

if TYPE_CHECKING:
    from demo.sandbox.client import SandboxClient

# Repeated here so that --help need not import the server; a test compares the two.
SERVICES = ("apollo", "millionverifier", "perplexity", "openai", "instantly")
CASES = (
    "no-credits",
    "day-used",
    "dead-key",
    "no-plan",
    "rate-limited",
    "maintenance",
    "pending",
    "invalid",
    "internal-error",
    "overloaded",
    "page",
    "redirect",
    "cut-off",
    "one-record",
)
DEFAULT_PORT = 8765
URL_VARIABLE = "DEMO_SANDBOX_URL"

_service = click.argument("service", type=click.Choice(SERVICES))
_url = click.option(
    "--url",
    help=f"Address of the running sandbox. Default: {URL_VARIABLE}, else "
    f"http://127.0.0.1:{DEFAULT_PORT}.",
)
_for = click.option(
    "--for", "for_s", type=float, metavar="SECONDS", help="Recover after this many seconds."
)


@click.group()
def sandbox() -> None:
    """Run simulated services, make them fail, and inspect what they received.

    Exit codes: 0 success, 1 the sandbox is unreachable or rejected the request, 2 usage error.
    """


@sandbox.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. Anyone who can reach it can make the services fail.",
)
@click.option(
    "--port",
    default=DEFAULT_PORT,
    show_default=True,
    type=Port(free=True),
    help="Port; 0 picks a free one.",
)
@click.option(
    "--latency",
    "latency_s",
    default=0.003,
    show_default=True,
    type=click.FloatRange(0, 60),
    metavar="SECONDS",
    help="Latency of every response.",
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
        click.echo(f"sandbox: http://{host}:{taken} simulates {', '.join(SERVICES)}")
        with suppress(KeyboardInterrupt):
            server.serve(sock, latency_s=latency_s)


@sandbox.command()
@_service
@click.option("--status", type=int, help="Status of error responses.  [default: 503]")
@click.option("--rate-limit", is_flag=True, help="Respond with 429 and Retry-After.")
@click.option(
    "--retry-after",
    "retry_after_s",
    type=float,
    metavar="SECONDS",
    help="Retry-After of error responses.  [default: 5 with --rate-limit, else none]",
)
@click.option("--share", type=float, help="Fail only this share of the calls, 0 to 1.")
@click.option("--wrong", is_flag=True, help="Respond 200 with an invalid body.")
@click.option("--as", "case", type=click.Choice(CASES), help="Answer as the real service does.")
@click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="TEXT",
    help="Fail only calls whose idempotency key, parameters or body contain this. Repeatable.",
)
@_for
@_url
def fail(
    url: str | None,
    service: str,
    rate_limit: bool,
    wrong: bool,
    keys: tuple[str, ...],
    **fields: Any,
) -> None:
    """Make SERVICE return errors or invalid responses."""
    chosen = {
        "rate_limit": rate_limit,
        "wrong": wrong,
        "share": fields["share"] is not None,
        "answer": fields["case"] is not None,
    }
    fields["keys"] = list(keys) or None
    modes = [mode for mode, is_chosen in chosen.items() if is_chosen]
    if len(modes) > 1:
        words = " and ".join(mode.replace("answer", "as") for mode in modes)
        raise click.UsageError(f"choose one of {words}")
    _place(url, service, {"mode": modes[0] if modes else "outage", **fields})


@sandbox.command()
@_service
@click.option(
    "--latency",
    "latency_s",
    type=float,
    metavar="SECONDS",
    help="Latency of each response.  [default: 5]",
)
@_for
@_url
def slow(url: str | None, service: str, **fields: float | None) -> None:
    """Make SERVICE respond slowly."""
    _place(url, service, {"mode": "slow", **fields})


@sandbox.command()
@_service
@click.option("--calls", type=int, required=True, help="Calls that are permitted in that time.")
@click.option("--per", "per_s", type=float, required=True, metavar="SECONDS", help="The time.")
@_for
@_url
def limit(url: str | None, service: str, **fields: float | None) -> None:
    """Let SERVICE permit only so many calls in a time, and answer 429 to others."""
    _place(url, service, {"mode": "limit", **fields})


@sandbox.command()
@click.argument("services", nargs=-1, type=click.Choice(SERVICES))
@_url
def heal(url: str | None, services: tuple[str, ...]) -> None:
    """End the outage of SERVICES, or of all services if none is named."""
    with _client(url) as client:
        for service in services or SERVICES:
            had_fault = client.heal(service)
            if had_fault or services:
                click.echo(f"{service}: {'recovered' if had_fault else 'was healthy'}")


@sandbox.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--reset", is_flag=True, help="Reset the counters afterwards.")
@_url
def stats(url: str | None, as_json: bool, reset: bool) -> None:
    """Show what each service received."""
    with _client(url) as client:
        stats = client.stats()
        if reset:
            client.reset()
    if as_json:
        click.echo(json.dumps(stats, indent=2))
    else:
        _print_table(stats)


@sandbox.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--count", default=500, show_default=True, type=click.IntRange(1, 1_000_000))
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Different seeds give different people.",
)
def leads(file: Path, count: int, seed: int) -> None:
    """Write a lead FILE (CSV) of fictitious people; a new file starts a run of outreach."""
    from demo.sandbox.leads import write_lead_file

    if file.exists():
        raise click.ClickException(f"{file} already exists; choose another name")
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
    with _client(url) as client:
        placed = client.place(service, fault)
    until = placed["healed_at"]
    click.echo(
        f"{service}: {placed.get('case') or placed['mode']} "
        + (f"until {until}" if until else f"until 'python -m demo sandbox heal {service}'")
    )


@contextmanager
def _client(url: str | None) -> "Iterator[SandboxClient]":
    from demo.sandbox.client import SandboxClient, SandboxError
    from resources.settings import DemoSettings, SettingsError

    try:
        address = url or DemoSettings.load().sandbox_url
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    with SandboxClient(address) as client:
        try:
            yield client
        except SandboxError as error:
            raise click.ClickException(str(error)) from error


def _print_table(stats: dict[str, dict[str, Any]]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    columns = ("service", "now", "calls", "failed", "effects", "repeated", "last call, UTC")
    table = Table(*columns, box=SIMPLE)
    for service, counts in stats.items():
        fault = counts["fault"]
        table.add_row(
            service,
            "healthy" if fault is None else fault.get("case") or fault["mode"],
            *(
                str(counts[name])
                for name in ("calls", "failures_served", "effects", "keys_repeated")
            ),
            (counts["last_call_at"] or "")[11:19],
        )
    Console().print(table)
