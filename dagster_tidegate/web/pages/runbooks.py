"""The page of the runbooks. It needs no store, since the store may be what is down."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dagster_tidegate.control.runbooks import Runbook, runbooks

_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Section:
    """The runbooks about alerts, about findings, or about rules."""

    title: str
    anchor: str
    entries: Sequence[Runbook]


def runbooks_page() -> Sequence[Section]:
    """Return the runbooks by what they are about."""
    titles = {
        "alert": "Alerts",
        "finding": "Findings of tidegate doctor",
        "rule": "Prometheus rules",
    }
    return [
        Section(title, f"{subject}s", [each for each in runbooks() if each.subject == subject])
        for subject, title in titles.items()
    ]


def with_code(text: str) -> Markup:
    """Return a text with what is in backticks as code, and bold as bold.

    Example:
        >>> with_code("Run `a <b>`, then **c**.")
        Markup('Run <code>a &lt;b&gt;</code>, then <b>c</b>.')
    """
    html = str(Markup.escape(text))
    html = _CODE.sub(r"<code>\1</code>", html)
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", html))
