"""The runbooks: what an alert, a finding or a rule means, what to look at, what to do.

`runbooks.md` beside this module is a copy of docs/runbooks.md, which `make reference` writes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, cast

Subject = Literal["alert", "finding", "rule"]
_ENTRY = re.compile(r"^### (Alert|Finding|Rule) `(\w+)`\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
_PART = re.compile(r"^- \*\*(.+?):\*\* (.+?)(?=^- |\Z)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")


@dataclass(frozen=True)
class Runbook:
    """An entry of the runbooks.

    Attributes:
        subject: What it is about: an alert, a finding of `tidegate doctor`, or a rule of
            Prometheus.
        name: The kind of the alert, the code of the finding, or the name of the rule.
        parts: The texts of `Meaning`, `Look at` and `Do`. Commands are in backticks.
    """

    subject: Subject
    name: str
    parts: Mapping[str, str]

    @property
    def anchor(self) -> str:
        """Its anchor on a page of the runbooks."""
        return anchor(self.subject, self.name)


@cache
def runbooks() -> tuple[Runbook, ...]:
    """Return all entries, alerts first."""
    text = files("dagster_tidegate.control").joinpath("runbooks.md").read_text(encoding="utf-8")
    return tuple(
        Runbook(
            cast(Subject, subject.lower()),
            name,
            {
                title: _LINK.sub(r"\1", " ".join(part.split()))
                for title, part in _PART.findall(body)
            },
        )
        for subject, name, body in _ENTRY.findall(text)
    )


def anchor(subject: Subject, name: str) -> str:
    """Return the anchor of an entry.

    Example:
        >>> anchor("alert", "gate_stale")
        'alert-gate_stale'
    """
    return f"{subject}-{name}"


def where(subject: Subject, name: str, pages: str | None) -> str:
    """Return where to read an entry: the URL of a page, or the command that prints it.

    Args:
        pages: The public URL of Tidegate's pages, if it is known.

    Example:
        >>> where("alert", "trip", None)
        'tidegate runbook trip'
        >>> where("alert", "trip", "https://dagster.example.org/tidegate")
        'https://dagster.example.org/tidegate/runbooks#alert-trip'
    """
    return (
        f"tidegate runbook {name}" if pages is None else f"{pages}/runbooks#{anchor(subject, name)}"
    )
