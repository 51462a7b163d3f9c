"""`tidegate alerts`: what people were told, and the sender that tells them."""

import logging
import signal
import threading
from dataclasses import asdict
from typing import Any

import click

from dagster_tidegate.alerts import loop, text
from dagster_tidegate.alerts.kinds import AlertKind
from dagster_tidegate.alerts.targets import Targets
from dagster_tidegate.cli import output
from dagster_tidegate.cli.reading import explained, named_store, open_store, url_option
from dagster_tidegate.settings import AlertSettings, GeneralSettings, SettingsError, load
from dagster_tidegate.store import alerts as stored
from dagster_tidegate.store.alerts import Alert, AlertStatus


@click.group()
def alerts() -> None:
    """Tell people what happens, and show what they were told."""


@alerts.command("list")
@output.limit_option("How many at most, the newest.")
@output.json_option
@url_option
def list_alerts(limit: int, as_json: bool, url: str | None) -> None:
    """List the alerts, the newest first, and whether people were told."""
    store = open_store(url)
    with explained(), store.read() as conn:
        found = stored.listed(conn, limit=limit)
    if as_json:
        output.print_json([_as_dict(alert) for alert in found])
        return
    table = output.table("", "since", "alert", "until", "told", "why not")
    for alert in found:
        table.add_row(
            output.moment(alert.raised_at),
            output.text(alert.title),
            output.moment(alert.ended_at) or "it lasts",
            output.text(_told(alert), "red" if alert.status is AlertStatus.GIVEN_UP else ""),
            output.text(alert.error),
        )
    output.console().print(table if found else "nobody was told of anything yet")


@alerts.command()
def test() -> None:
    """Send a message to every target, and say which has it."""
    targets = _targets()
    said = text.test().linked(load(GeneralSettings).public_url)
    errors = targets.send(said, AlertKind.TEST, to=sorted(targets.names))
    for name, error in errors.items():
        click.echo(output.text(f"{name}: {error or 'it has the message'}").plain)
    if any(errors.values()):
        raise click.ClickException(
            "not every target has the message: check its URL in TIDEGATE_ALERT_URLS, and whether "
            "it can be reached from here"
        )


@alerts.command()
@url_option
def run(url: str | None) -> None:
    """Send alerts until Ctrl-C or SIGTERM; `tidegate serve` does so too."""
    _targets()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    stop = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: stop.set())
    # A store that is away is one of the things to tell.
    loop.run(named_store(url), load(AlertSettings), stop)


def _targets() -> Targets:
    """The targets; a command that has none says so."""
    try:
        targets = Targets(load(AlertSettings).urls)
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    if not targets.names:
        raise click.ClickException(
            "there is nowhere to send to: set TIDEGATE_ALERT_URLS, see docs/alerts.md"
        )
    return targets


def _told(alert: Alert) -> str:
    status = alert.status
    if status is AlertStatus.SENT:
        return output.moment(alert.sent_at)
    if status is AlertStatus.RETRYING:
        return f"not yet, after {alert.tries} tries; again at {output.moment(alert.next_try_at)}"
    if status is AlertStatus.GIVEN_UP:
        return f"no: given up after {alert.tries} tries"
    return "not yet" if status is AlertStatus.PENDING else "no: it was over before"


def _as_dict(alert: Alert) -> dict[str, Any]:
    return {"status": alert.status.value, **asdict(alert)}
