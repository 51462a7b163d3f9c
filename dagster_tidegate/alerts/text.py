"""The text of an alert, and the parts that several kinds share. Pure."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dagster_tidegate.alerts.kinds import AlertKind
from dagster_tidegate.control.runbooks import where
from dagster_tidegate.control.situation import CampaignSituation
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.text import shown

MAX_TITLE = 200
MAX_BODY = 4000
MAX_CAMPAIGNS = 10
MAX_TITLES = 50
# Discord, Slack and others notify everybody where a message has one of these.
_MENTION = re.compile(r"@(?=(everyone|here|channel|all)\b)", re.IGNORECASE)


@dataclass(frozen=True)
class Text:
    """The text of an alert: a title of one line, and a body."""

    title: str
    body: str

    def plain(self) -> "Text":
        """Return it bounded, and without control characters or mentions."""
        lines = [_plain(line) for line in self.body.split("\n")]
        return Text(_cut(_plain(self.title), MAX_TITLE), _cut("\n".join(lines), MAX_BODY))

    def linked(self, kind: AlertKind, url: str | None, pages: str | None) -> "Text":
        """Return it with its runbook, and a link to the web UI.

        Args:
            url: The public URL of the web UI, if it is known.
            pages: That of Tidegate's pages.
        """
        # While the store can't be reached, pages may refuse everybody.
        runbook = where("alert", kind, None if kind is AlertKind.STORE_LOST else pages)
        lines = [self.body, f"Runbook: {runbook}", *([] if url is None else [url])]
        return replace(self, body="\n".join(lines))


def digest(titles: Sequence[str]) -> Text:
    """Return one text for several alerts."""
    more = len(titles) - MAX_TITLES
    lines = [f"- {title}" for title in titles[:MAX_TITLES]]
    if more > 0:
        lines.append(f"and {more} more")
    lines += ["Full list: tidegate alerts list", "Runbook: tidegate runbook several"]
    return Text(f"{len(titles)} alerts", "\n".join(lines))


def affected(campaigns: Sequence[CampaignSituation]) -> str:
    """Return the line that names the affected campaigns and their unfinished runs."""
    names = []
    for campaign in campaigns[:MAX_CAMPAIGNS]:
        unfinished = (RunStatus.PROCESSING, RunStatus.PAUSED, RunStatus.PENDING)
        counts = [f"{campaign.runs[each]} {each}" for each in unfinished if campaign.runs.get(each)]
        names.append(campaign.spec.name + (f" ({', '.join(counts)})" if counts else ""))
    more = len(campaigns) - MAX_CAMPAIGNS
    listed = ", ".join(names) + (f" and {more} more" if more > 0 else "")
    return f"Affected campaigns: {listed}." if campaigns else "No campaign is affected as a whole."


def arguments(target: Target) -> str:
    """Return a target as arguments of a shell command."""
    kind = "run" if target.kind is TargetKind.CAMPAIGN_RUN else str(target.kind)
    return f"{kind} {shlex.quote(target.name)}" if target.name else kind


def _plain(text: str) -> str:
    return _MENTION.sub("@ ", shown(text))


def _cut(text: str, max_length: int) -> str:
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"
