"""`tidegate alerts`: list alerts, test the targets, run a sender."""

import logging
import signal
import threading

import click

from dagster_tidegate.alerts import loop
from dagster_tidegate.alerts.kinds import AlertKind
from dagster_tidegate.alerts.targets import Targets
from dagster_tidegate.alerts.text import Text
from dagster_tidegate.cli import console
from dagster_tidegate.cli.connections import explained, named_store, open_store
from dagster_tidegate.cli.options import json_option, limit_option, url_option
from dagster_tidegate.control.models import AlertOut
from dagster_tidegate.settings import AlertSettings, SettingsError, load
from dagster_tidegate.store import alerts as outbox
from dagster_tidegate.store.alerts import Alert, AlertStatus


@click.group()
def alerts() -> None:
    """List alerts, test their targets, or send alerts."""


@alerts.command("list")
@limit_option("Maximum number of alerts; the newest are shown.")
@json_option
@url_option
def list_alerts(limit: int, as_json: bool, url: str | None) -> None:
    """List the alerts, the newest first, and whether they were sent."""
    store = open_store(url)
    with explained(), store.read() as conn:
        newest = outbox.listed(conn, limit=limit)
    if as_json:
        console.print_json([AlertOut.model_validate(alert) for alert in newest])
        return
    table = console.table("", "raised", "alert", "ended", "sent", "error")
    for alert in newest:
        table.add_row(
            alert.raised_at,
            alert.title,
            console.moment(alert.ended_at) or "ongoing",
            console.text(_sent(alert), "red" if alert.status is AlertStatus.GIVEN_UP else ""),
            alert.error,
        )
    if newest:
        console.console().print(table)
        return
    console.say("No alerts yet.")
    with explained(SettingsError):
        targets = Targets(load(AlertSettings).urls)
    if not targets.names:
        console.say(
            "TIDEGATE_ALERT_URLS is not set here: if it is not set for 'tidegate serve' or "
            "'tidegate alerts run' either, no alerts are raised; see docs/alerts.md"
        )


@alerts.command()
def test() -> None:
    """Send a test message to every target, and report which ones accepted it."""
    targets = _targets()
    text = Text("Test alert from Tidegate", "This is only a test. Alerts reach this target.")
    text = loop.linked(text, AlertKind.TEST)
    errors = targets.send(text, AlertKind.TEST, to=sorted(targets.names))
    for name, error in errors.items():
        console.say(f"{name}: {error or 'sent'}")
    if any(errors.values()):
        raise console.failure(
            "not every target accepted the message: check its URL in TIDEGATE_ALERT_URLS, and "
            "that it can be reached from this machine"
        )


@alerts.command()
@url_option
def run(url: str | None) -> None:
    """Send alerts until Ctrl-C or SIGTERM. `tidegate serve` does this too."""
    _targets()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop.set())
    # The store need not be reachable: that it is not is worth an alert.
    loop.run(named_store(url), load(AlertSettings), stop)


def _targets() -> Targets:
    """Return the configured targets.

    Raises:
        click.ClickException: If there are none, or one is invalid.
    """
    with explained(SettingsError):
        targets = Targets(load(AlertSettings).urls)
    if not targets.names:
        raise console.failure(
            "no alert targets are configured: set TIDEGATE_ALERT_URLS, see docs/alerts.md"
        )
    return targets


def _sent(alert: Alert) -> str:
    match alert.status:
        case AlertStatus.SENT:
            return console.moment(alert.sent_at)
        case AlertStatus.RETRYING:
            return f"not yet: {alert.tries} tries; next at {console.moment(alert.next_try_at)}"
        case AlertStatus.GIVEN_UP:
            return f"no: gave up after {alert.tries} tries"
        case AlertStatus.PENDING:
            return "not yet"
        case AlertStatus.WITHDRAWN:
            return "no: its cause ended first"
