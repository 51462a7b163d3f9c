"""Where alerts are sent to: Apprise URLs, each with a name, since the URLs are secrets."""

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import SecretStr

from dagster_tidegate.alerts.kinds import BAD, GOOD, AlertKind
from dagster_tidegate.alerts.text import Text
from dagster_tidegate.settings import SettingsError

if TYPE_CHECKING:
    from apprise import Apprise

MAX_TRY_S = 20.0
"""A target that does not answer for so long has failed."""
_ENTRY = re.compile(
    r"(?:(?P<name>[\w-]{1,32})=)?(?P<url>(?P<scheme>[a-z][a-z0-9+.-]*)://\S*)", re.I
)
_STATUS = re.compile(r"\berror=(\d{3})\b")
# Its messages may name addresses with what is secret in them: nothing of it reaches another log.
_log = logging.getLogger("apprise")


class Targets:
    """The places that alerts are sent to.

    Args:
        urls: Apprise URLs, each with a name before it or not: `ops=slack://...`. One without is
            named by its scheme.

    Raises:
        SettingsError: If one is not an Apprise URL, or two have one name. No URL is repeated.
    """

    def __init__(self, urls: Sequence[SecretStr]) -> None:
        self._targets: dict[str, _Target] = {}
        unnamed: Counter[str] = Counter()
        for place, url in enumerate(urls, 1):
            entry = _ENTRY.fullmatch(url.get_secret_value())
            made = None if entry is None else _made(entry["url"])
            if entry is None or made is None:
                scheme = f" ({entry['scheme']})" if entry else ""
                raise SettingsError(
                    f"number {place} of TIDEGATE_ALERT_URLS{scheme} is not a URL that Apprise "
                    "knows; it can be slack://..., mailto://..., json://... or another of "
                    "https://appriseit.com/services/, with a name before it: ops=slack://..."
                )
            name = entry["name"]
            if name is None:
                unnamed[entry["scheme"].lower()] += 1
                number = unnamed[entry["scheme"].lower()]
                name = entry["scheme"].lower() + (f"-{number}" if number > 1 else "")
            if name in self._targets:
                raise SettingsError(f"two of TIDEGATE_ALERT_URLS are named {name!r}")
            self._targets[name] = _Target(name, made)

    @property
    def names(self) -> frozenset[str]:
        """The names of all."""
        return frozenset(self._targets)

    def send(
        self,
        text: Text,
        kind: str,
        *,
        to: Collection[str],
        timeout_s: float = MAX_TRY_S,
    ) -> Mapping[str, str | None]:
        """Send a message, to several targets at once.

        Args:
            text: What it says.
            kind: What it tells of; one of a newer version is a warning.
            to: The names of the targets.
            timeout_s: How long to wait for all of them, in seconds.

        Returns:
            Why it failed, by name; None where it did not.
        """
        tries = {name: self._targets[name].begin(text, kind) for name in to}
        until = time.monotonic() + timeout_s
        return {
            name: "it still has not answered to a message before"
            if attempt is None
            else attempt.result(until - time.monotonic(), timeout_s)
            for name, attempt in tries.items()
        }


class _Target:
    """One place. While it does not answer, nothing more is sent to it."""

    def __init__(self, name: str, to: "Apprise") -> None:
        self._name, self._to = name, to
        self._latest: _Try | None = None

    def begin(self, text: Text, kind: str) -> "_Try | None":
        if self._latest is not None and self._latest.is_alive():
            return None
        self._latest = _Try(self._name, self._to, text, kind)
        self._latest.start()
        return self._latest


class _Try(threading.Thread):
    """Sends one message to one place. Nothing waits for it at the end of the process."""

    def __init__(self, name: str, to: "Apprise", text: Text, kind: str) -> None:
        super().__init__(name=f"tidegate-alert-{name}", daemon=True)
        self._to, self._text, self._kind = to, text, kind
        self._sent = False
        self._said: list[str] = []

    def run(self) -> None:
        result = self._to.notify(
            title=self._text.title,
            body=self._text.body,
            body_format="text",
            notify_type=_type(self._kind),
        )
        self._said = [entry.message for entry in result.logs()]
        self._sent = bool(result)

    def result(self, wait_s: float, timeout_s: float) -> str | None:
        self.join(max(0.0, wait_s))
        if self.is_alive():
            return f"no answer in {timeout_s:g} s"
        if self._sent:
            return None
        # Of what Apprise says, only what can't have a secret in it.
        status = next((found[1] for line in self._said if (found := _STATUS.search(line))), None)
        if status is not None:
            return f"it answered {status}"
        refused = any("onnection" in line for line in self._said)
        return "it can't be reached, or did not answer" if refused else "it was refused"


def _made(url: str) -> "Apprise | None":
    try:
        import apprise  # an extra, and only needed where there is a target
    except ModuleNotFoundError as error:
        raise SettingsError(
            "TIDEGATE_ALERT_URLS is set, and Apprise is not installed: "
            "pip install 'dagster-tidegate[alerts]'"
        ) from error
    _log.propagate = False
    _log.setLevel(logging.WARNING)
    # It tells the path of each request, which of many services is the secret.
    logging.getLogger("urllib3").setLevel(logging.INFO)
    # Apprise's own pool of threads would be waited for at the end of the process, hanging or not.
    found = apprise.Apprise(asset=apprise.AppriseAsset(async_mode=False, service_timeout=0))
    return found if found.add(url) else None


def _type(kind: str) -> str:
    """What Apprise calls it."""
    if kind in GOOD:
        return "success"
    if kind in BAD:
        return "failure"
    return "info" if kind == AlertKind.TEST else "warning"
