"""Alert targets: Apprise URLs, which are secrets and therefore have names."""

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from pydantic import SecretStr

from dagster_tidegate.alerts.kinds import severity
from dagster_tidegate.alerts.text import Text
from dagster_tidegate.settings import SettingsError

if TYPE_CHECKING:
    from apprise import Apprise

TIMEOUT_S = 20.0
"""How long a target may take to accept a message."""
_ENTRY = re.compile(
    r"(?:(?P<name>[\w-]{1,32})=)?(?P<url>(?P<scheme>[a-z][a-z0-9+.-]*)://\S*)", re.I
)
_HTTP_STATUS = re.compile(r"\berror=(\d{3})\b")


class Targets:
    """The targets that alerts are sent to.

    Args:
        urls: Apprise URLs, optionally with a name: `ops=slack://...`. The default name is the
            URL's scheme.

    Raises:
        SettingsError: If Apprise does not know a URL, or two have the same name. The message does
            not repeat the URL.
    """

    def __init__(self, urls: Sequence[SecretStr]) -> None:
        self._targets: dict[str, _Target] = {}
        unnamed: Counter[str] = Counter()
        for place, url in enumerate(urls, 1):
            entry = _ENTRY.fullmatch(url.get_secret_value())
            apprise = None if entry is None else _apprise(entry["url"])
            if entry is None or apprise is None:
                scheme = f" ({entry['scheme']})" if entry else ""
                raise SettingsError(
                    f"number {place} of TIDEGATE_ALERT_URLS{scheme} is not a URL that Apprise "
                    "supports; use slack://..., mailto://..., json://... or another of "
                    "https://appriseit.com/services/, optionally with a name: ops=slack://..."
                )
            name = entry["name"]
            if name is None:
                scheme = entry["scheme"].lower()
                unnamed[scheme] += 1
                name = scheme if unnamed[scheme] == 1 else f"{scheme}-{unnamed[scheme]}"
            if name in self._targets:
                raise SettingsError(f"two targets in TIDEGATE_ALERT_URLS are named {name!r}")
            self._targets[name] = _Target(name, apprise)

    @property
    def names(self) -> frozenset[str]:
        """The names of all targets."""
        return frozenset(self._targets)

    def send(
        self, text: Text, kind: str, *, to: Collection[str], timeout_s: float = TIMEOUT_S
    ) -> Mapping[str, str | None]:
        """Send a message to several targets at once.

        Args:
            timeout_s: How long to wait for all of them, in seconds.

        Returns:
            Why sending to each target failed, or None if it succeeded.
        """
        attempts = {name: self._targets[name].send(text, kind) for name in to}
        deadline = time.monotonic() + timeout_s
        errors: dict[str, str | None] = {}
        for name, attempt in attempts.items():
            try:
                errors[name] = attempt.result(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                errors[name] = f"no answer within {timeout_s:g} s"
        return errors


class _Target:
    """A target. It gets no further message while one is in flight."""

    def __init__(self, name: str, apprise: "Apprise") -> None:
        self._name, self._apprise = name, apprise
        self._in_flight: Future[str | None] = Future()
        self._in_flight.set_result(None)

    def send(self, text: Text, kind: str) -> Future[str | None]:
        """Begin to send a message; the result is an error, or None."""
        attempt: Future[str | None] = Future()
        if not self._in_flight.done():
            attempt.set_result("still waiting for its answer to an earlier message")
            return attempt
        self._in_flight = attempt
        # A daemon thread: a target that hangs does not delay the end of the process.
        threading.Thread(
            target=lambda: attempt.set_result(self._notify(text, kind)),
            name=f"tidegate-alert-{self._name}",
            daemon=True,
        ).start()
        return attempt

    def _notify(self, text: Text, kind: str) -> str | None:
        try:
            result = self._apprise.notify(
                title=text.title, body=text.body, body_format="text", notify_type=severity(kind)
            )
        except Exception as error:  # noqa: BLE001 -- a plugin may raise anything
            return type(error).__name__
        if result:
            return None
        # Apprise's messages may contain secrets; only these facts are safe.
        messages = [entry.message for entry in result.logs()]
        for message in messages:
            if status := _HTTP_STATUS.search(message):
                return f"HTTP status {status[1]}"
        if any("onnection" in message for message in messages):
            return "connection failed or timed out"
        return "message rejected"


def _apprise(url: str) -> "Apprise | None":
    try:
        import apprise  # an extra, and only needed where there is a target
    except ModuleNotFoundError as error:
        raise SettingsError(
            "TIDEGATE_ALERT_URLS is set but Apprise is not installed: "
            "pip install 'dagster-tidegate[alerts]'"
        ) from error
    # Apprise and urllib3 log URLs and paths, which may be secrets.
    log = logging.getLogger("apprise")
    log.propagate = False
    log.setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.INFO)
    # Without threads of its own, which would delay the end of the process.
    target = apprise.Apprise(asset=apprise.AppriseAsset(async_mode=False, service_timeout=0))
    return target if target.add(url) else None
