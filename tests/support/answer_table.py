"""Answers of services with the right verdict on each, as files of JSON have them."""

import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import format_datetime
from math import ceil
from pathlib import Path
from typing import Any

from dagster_tidegate.breaker.profiles import NAMES
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind


@dataclass(frozen=True)
class Row:
    """An answer and what it means.

    Texts such as "HTTP-DATE NOW+120" stand for a time: `ISO-DATE`, `EPOCH` and `EPOCH-MS` too.
    """

    id: str
    status: int
    verdict: str = ""
    service: str = "any"
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = ""
    until: int | None = None
    scope: str = "service"

    @property
    def profile(self) -> str:
        """The profile that judges it."""
        return self.service if self.service in NAMES else "generic"

    @property
    def has_times(self) -> bool:
        """Whether it names times that depend on when it is sent."""
        return " NOW+" in json.dumps([self.headers, self.body])

    def at(self, now: datetime) -> tuple[int, dict[str, str], Any]:
        """Return its status, headers and body, as they would be sent at a time."""

        def time(match: re.Match[str]) -> str:
            at = now + timedelta(seconds=int(match[2]))
            return {
                "HTTP-DATE": format_datetime(at, usegmt=True),
                "ISO-DATE": at.strftime("%Y-%m-%d at %H:%M:%S UTC"),
                "EPOCH": str(int(at.timestamp())),
                "EPOCH-MS": str(int(at.timestamp() * 1000)),
            }[match[1]]

        sent = json.dumps([self.headers, self.body])
        headers, body = json.loads(re.sub(r"([A-Z]+-?[A-Z]*) NOW\+(\d+)", time, sent))
        return self.status, headers, body


def read(path: Path) -> list[Row]:
    """Return the rows of a file."""
    fields = Row.__dataclass_fields__
    return [Row(**{name: row.get(name) for name in fields}) for row in json.loads(path.read_text())]


def summary(verdict: Verdict, at: datetime) -> dict[str, Any]:
    """Return a verdict as a row has it; `until` in seconds from `at`."""
    until = None
    if verdict.until is not None and verdict.kind in (VerdictKind.THROTTLED, VerdictKind.PENDING):
        until = ceil((verdict.until - at).total_seconds())
    return {"verdict": str(verdict.kind), "until": until, "scope": str(verdict.scope)}
