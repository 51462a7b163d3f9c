"""What alerts say: one line, and all of it. Pure."""

import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.control.situation import CampaignSituation, Situation, StaleGate
from dagster_tidegate.holds import Hold, HoldSource, SystemActor, Target, TargetKind
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.text import length, shown, utc

MAX_TITLE = 200
MAX_BODY = 4000
MAX_NAMES = 10
# What Discord, Slack and others make of these would wake everybody.
_MENTION = re.compile(r"@(?=(everyone|here|channel|all)\b)", re.IGNORECASE)


@dataclass(frozen=True)
class Text:
    """What an alert says.

    Attributes:
        title: One line.
        body: All of it.
    """

    title: str
    body: str

    def plain(self) -> "Text":
        """Return it as data: of what people and programs gave, nothing is obeyed anywhere."""
        lines = [_plain(line) for line in self.body.split("\n")]
        return Text(_cut(_plain(self.title), MAX_TITLE), _cut("\n".join(lines), MAX_BODY))

    def linked(self, url: str | None) -> "Text":
        """Return it with the address of the pages."""
        return self if url is None else replace(self, body=f"{self.body}\n{url}")


def trip(seen: Situation, service: str, at: datetime, reason: str | None) -> Text:
    """Say that a breaker opened."""
    return Text(
        f"{service} is down: {reason or 'its breaker opened'}",
        "\n".join(
            [
                f"The breaker of {service} opened at {utc(at)}: {reason or 'by hand'}.",
                *_state(seen.circuits.get(service)),
                *_pauses(seen, service),
                f"They resume by themselves when {service} is back.",
                f"More: tidegate why {shlex.quote(service)}",
            ]
        ),
    )


def trips(seen: Situation, service: str, times: int, since: datetime | None) -> Text:
    """Say that a breaker opened several times, of which people were not told one by one."""
    circuit = seen.circuits.get(service)
    is_open = circuit is not None and circuit.state is not BreakerState.CLOSED
    after = "" if since is None else f" since the message of {utc(since)}"
    if since is None:
        again = "once" if times == 1 else f"{times} times"
    else:
        again = "once more" if times == 1 else f"{times} more times"
    return Text(
        f"{service} went down {again}, and is {'down' if is_open else 'back'} now",
        "\n".join(
            [
                f"The breaker of {service} opened {again}{after}.",
                *_state(circuit),
                *(_pauses(seen, service) if is_open else ()),
                f"More: tidegate history {shlex.quote(service)}",
            ]
        ),
    )


def recovery(seen: Situation, service: str, at: datetime, told: datetime | None) -> Text:
    """Say that a breaker closed."""
    lasted = "" if told is None else f", {length(at - told)} after it was told to be down"
    return Text(
        f"{service} is back",
        "\n".join(
            [
                f"The breaker of {service} closed at {utc(at)}{lasted}.",
                f"What it paused goes on, one run first: {_names(_needing(seen, service))}.",
            ]
        ),
    )


def operator_hold(seen: Situation, hold: Hold) -> Text:
    """Say that a person placed a hold."""
    until = "until it is released" if hold.expires_at is None else f"until {utc(hold.expires_at)}"
    return Text(
        f"{hold.actor} holds {hold.target}: {hold.reason}",
        "\n".join(
            [
                f"{hold.actor} placed a hold on {hold.target} at {utc(hold.placed_at)}, {until}.",
                f"Reason: {hold.reason}",
                f"Paused: {_names(_held_by(seen, hold))}.",
                f"To release it: tidegate release {_words(hold.target)}",
            ]
        ),
    )


def hold_released(name: str, hold: Hold | None) -> Text:
    """Say that a hold of which people were told, under a name, is over."""
    if hold is None or hold.released_at is None:
        kind, _, rest = name.partition(" ")
        what = f"{kind.replace('_', ' ')} {rest}"
        return Text(f"the hold on {what} is over", f"The hold on {what} is over.")
    how = (
        "expired"
        if hold.released_by == SystemActor.EXPIRY
        else f"was released by {hold.released_by}"
    )
    target = hold.target
    return Text(
        f"{target} is not held by {hold.actor} any more",
        f"The hold of {hold.actor} on {target} ({hold.reason}) {how} at {utc(hold.released_at)}.\n"
        "What no other hold covers goes on.",
    )


def hold_expires(seen: Situation, hold: Hold) -> Text:
    """Say that a hold will soon end by itself."""
    assert hold.expires_at is not None  # else it would not end by itself
    target = hold.target
    return Text(
        f"the hold on {target} ends in {length(hold.expires_at - seen.now)}",
        f"The hold of {hold.actor} on {target} ({hold.reason}) ends at {utc(hold.expires_at)}.\n"
        f"Paused by it: {_names(_held_by(seen, hold))}.\n"
        f"To keep it longer: tidegate hold {_words(hold.target)} --reason ... --for ...",
    )


def hold_old(seen: Situation, hold: Hold) -> Text:
    """Say that a hold lasts for long."""
    target = hold.target
    is_breakers = hold.source is HoldSource.BREAKER
    return Text(
        f"{target} is held for {length(seen.now - hold.placed_at)}",
        f"{'Its breaker' if is_breakers else hold.actor} holds {target} since "
        f"{utc(hold.placed_at)}: {hold.reason}\n"
        f"Paused by it: {_names(_held_by(seen, hold))}.\n"
        + (
            f"Is the service still there? More: tidegate why {shlex.quote(hold.target.name)}"
            if is_breakers
            else f"Is it forgotten? To release it: tidegate release {_words(hold.target)}"
        ),
    )


def gate_stale(gate: StaleGate) -> Text:
    """Say that a gate does not do its work."""
    sentence = str(gate)
    return Text(
        f"the gate of {gate.location} is stale",
        f"{sentence[0].upper()}{sentence[1:]}.\n"
        "Nothing is stopped or resumed in Dagster meanwhile. Runs at work still pause by "
        "themselves.\nIs the daemon running, and are the sensors on? tidegate doctor tells.\n"
        "If the code location is gone for good: tidegate store forget "
        f"{shlex.quote(gate.location)}",
    )


def in_doubt(run: str, records: int, since: datetime) -> Text:
    """Say that records may or may not have reached their service."""
    what = "1 record" if records == 1 else f"{records} records"
    return Text(
        f"{what} of {run} in doubt",
        f"{what} of {run} may or may not have reached the service: the attempt was cut off, "
        f"{utc(since)}.\n"
        "The next attempt sends them again with the same idempotency key.\n"
        f"Which they are: tidegate runs show {shlex.quote(run)}",
    )


def failed_after_pause(run: str, reason: str | None) -> Text:
    """Say that a campaign run failed in the attempt after a pause."""
    return Text(
        f"{run} failed after it resumed",
        f"{run} was paused, resumed, and failed{f': {reason}' if reason else '.'}\n"
        f"What failed: tidegate runs show {shlex.quote(run)}",
    )


def does_not_resume(campaign: str, runs: int, since: datetime) -> Text:
    """Say that paused runs stay paused though nothing holds them."""
    what = "1 paused run" if runs == 1 else f"{runs} paused runs"
    return Text(
        f"{campaign} does not resume: {what}, and no hold",
        f"{what} of {campaign}, paused since {utc(since)}, did not resume though nothing holds "
        f"the campaign any more.\nMore: tidegate why {shlex.quote(campaign)}, tidegate doctor",
    )


def store_lost(since: datetime) -> Text:
    """Say that the store can't be reached."""
    return Text(
        "the store of Tidegate can't be reached",
        f"The store can't be reached since {utc(since)}.\n"
        "Each process has its own breakers meanwhile; nothing is paused or resumed for the fleet, "
        "and runs wait before they take their next record.\n"
        "Why: tidegate doctor",
    )


def store_back(since: datetime, now: datetime) -> Text:
    """Say that the store is back."""
    return Text(
        "the store of Tidegate is back",
        f"The store could not be reached since {utc(since)}, for {length(now - since)}.",
    )


def several(titles: Sequence[str]) -> Text:
    """Say in one message what would be too many."""
    more = len(titles) - 50
    lines = [f"- {title}" for title in titles[:50]]
    return Text(
        f"{len(titles)} alerts",
        "\n".join([*lines, *([f"and {more} more"] if more > 0 else ())])
        + "\nAll of them: tidegate alerts list",
    )


def test() -> Text:
    """Say that this is a test."""
    return Text("a test of Tidegate's alerts", "Messages reach this place. Nothing has happened.")


def _state(circuit: BreakerStatus | None) -> Iterable[str]:
    if circuit is None:
        return
    if circuit.state is BreakerState.OPEN and circuit.open_until is not None:
        yield f"It is open, and tried again at {utc(circuit.open_until)} at the earliest."
    else:
        yield f"It is {str(circuit.state).replace('_', ' ')} since {utc(circuit.changed_at)}."


def _pauses(seen: Situation, service: str) -> Iterable[str]:
    yield f"Paused: {_names(_needing(seen, service))}."


def _needing(seen: Situation, service: str) -> Sequence[CampaignSituation]:
    return [each for each in seen.campaigns.values() if service in each.services]


def _held_by(seen: Situation, hold: Hold) -> Sequence[CampaignSituation]:
    if hold.target.kind is TargetKind.CAMPAIGN_RUN:
        return ()
    return [each for each in seen.campaigns.values() if hold in each.holds]


def _names(campaigns: Collection[CampaignSituation]) -> str:
    if not campaigns:
        return "no whole campaign"
    names = []
    for campaign in list(campaigns)[:MAX_NAMES]:
        waiting = (RunStatus.PROCESSING, RunStatus.PAUSED, RunStatus.PENDING)
        counts = [f"{campaign.runs[each]} {each}" for each in waiting if campaign.runs.get(each)]
        names.append(campaign.spec.name + (f" ({', '.join(counts)})" if counts else ""))
    more = len(campaigns) - MAX_NAMES
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def _words(target: Target) -> str:
    """A target as a command line has it; names are data, in a shell too."""
    kind = "run" if target.kind is TargetKind.CAMPAIGN_RUN else str(target.kind)
    return f"{kind} {shlex.quote(target.name)}" if target.name else kind


def _plain(text: str) -> str:
    return _MENTION.sub("@ ", shown(text))


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
