"""The start page: what is paused and why, what needs a person first, and the services."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dagster_tidegate.control.leftovers import leftovers
from dagster_tidegate.control.models import AlertHealth
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.control.why import Reason, reason_of
from dagster_tidegate.holds import EVERYTHING, Hold, HoldSource, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import alerts, run_problems
from dagster_tidegate.store.database import Connection
from dagster_tidegate.text import enumerated, plural, sentence
from dagster_tidegate.web.pages.rendering import TONES, Banner
from dagster_tidegate.web.pages.services import ServiceRow, services

ENDS_SOON = timedelta(hours=1)
MAX_LISTED = 50


@dataclass(frozen=True)
class Need:
    """Something that waits for a person.

    Attributes:
        tone: How urgent it is: `bad`, `warn` or `held`.
        text: What happened, and what to do.
        label: The name of the button; empty without one.
        path: The page that the button leads to, and its query.
        changes: Whether that page changes something, and the button is for operators.
    """

    tone: str
    title: str
    text: str
    at: datetime | None = None
    ends_at: datetime | None = None
    label: str = ""
    path: str = ""
    query: Mapping[str, str] | None = None
    changes: bool = True


@dataclass(frozen=True)
class Pause:
    """A live hold and what it stops.

    Attributes:
        reason: The hold, and the breaker whose it is.
        paused: How many of their runs are paused.
    """

    reason: Reason
    campaigns: Sequence[str]
    paused: int

    @property
    def hold(self) -> Hold:
        """The hold."""
        return self.reason.hold


@dataclass(frozen=True)
class Now:
    """The start page.

    Attributes:
        headline: The situation in one sentence.
        runs: Number of campaign runs by status.
        paused_campaigns: How many campaigns are held.
    """

    headline: str
    tone: str
    needs: Sequence[Need]
    pauses: Sequence[Pause]
    services: Sequence[ServiceRow]
    runs: Mapping[RunStatus, int]
    campaigns: int
    paused_campaigns: int
    everything_held: bool


def now_page(conn: Connection, situation: Situation) -> Now:
    """Return the start page."""
    listed = services(conn, situation)
    pauses = _pauses(situation)
    held = sum(bool(each.holds) for each in situation.campaigns.values())
    headline, tone = _headline(situation, listed, held)
    runs = {
        status: sum(each.runs.get(status, 0) for each in situation.campaigns.values())
        for status in RunStatus
    }
    return Now(
        headline=headline,
        tone=tone,
        needs=[
            *_denied(listed),
            *_ending(situation),
            *_records(conn, situation),
            *_left(situation),
        ],
        pauses=pauses[:MAX_LISTED],
        services=listed,
        runs=runs,
        campaigns=len(situation.campaigns),
        paused_campaigns=held,
        everything_held=any(hold.target == EVERYTHING for hold in situation.holds),
    )


def banners(conn: Connection, situation: Situation) -> Sequence[Banner]:
    """Return what is wrong with Tidegate itself, for the top of every page."""
    shown = []
    if not situation.enabled:
        text = "TIDEGATE_ENABLED is false on this server: processes with this setting ignore holds."
        shown.append(Banner("Tidegate is switched off", text))
    if stale := situation.stale_gates():
        text = "; ".join(f"Code location {gate.location}: {gate.text}" for gate in stale)
        do = "Nothing is paused or resumed until it recovers. Run"
        shown.append(Banner("The gate is stale", f"{text}. {do}", "tidegate doctor"))
    health = AlertHealth.of(alerts.counts(conn, situation.now), situation.now)
    if health.stale:
        shown.append(Banner("Alerts are not being sent", f"{sentence(health.text)}."))
    return shown


def _headline(situation: Situation, listed: Sequence[ServiceRow], held: int) -> tuple[str, str]:
    if any(hold.target == EVERYTHING for hold in situation.holds):
        return "Everything is held", "held"
    parts = []
    for statuses, what in (
        (("denied", "open"), "down"),
        (("throttled",), "throttled"),
        (("half_open",), "being tried"),
    ):
        if names := [each.name for each in listed if each.state.status in statuses]:
            verb = "is" if len(names) == 1 else "are"
            parts.append(f"{enumerated(names, 'service')} {verb} {what}")
    if held:
        parts.append(f"{plural(held, 'campaign')} paused")
    if parts:
        first = listed[0].state.status if listed else "held"
        return "; ".join(parts), TONES.get(first, "held") if first != "closed" else "held"
    if not situation.services and not situation.campaigns:
        return "Nothing to watch yet", "plain"
    if situation.stale_gates():
        return "Nothing is paused, but the gate is stale", "warn"
    return "Everything runs", "good"


def _pauses(situation: Situation) -> list[Pause]:
    pauses = []
    for hold in situation.holds:
        target = hold.target
        if target.kind is TargetKind.CAMPAIGN_RUN:
            campaigns = [target.name.partition("/")[0]]
            paused = 0
        else:
            covered = situation.campaigns_by_hold.get(hold.id, ())
            campaigns = [each.spec.name for each in covered]
            paused = sum(each.runs.get(RunStatus.PAUSED, 0) for each in covered)
        pauses.append(Pause(reason_of(situation, hold), campaigns, paused))
    return sorted(
        pauses, key=lambda each: (each.hold.source is not HoldSource.BREAKER, -each.hold.id)
    )


def _denied(listed: Sequence[ServiceRow]) -> list[Need]:
    return [
        Need(
            "bad",
            f"{each.name} refuses this client",
            _what_to_repair(each),
            at=each.state.since,
            label="Repaired…",
            path="/change/repaired",
            query={"service": each.name},
        )
        for each in listed
        if each.state.status == "denied"
    ]


def _what_to_repair(service: ServiceRow) -> str:
    breaker = service.breaker
    answer = breaker.answer if breaker is not None else None
    said = f"It said: {answer}" if answer else sentence(service.state.reason)
    return (
        f"{said.rstrip('.')}. Waiting does not help, so it is not called again. "
        "Repair the cause (key, credits, plan or address), then say so: a trial call checks it."
    )


def _ending(situation: Situation) -> list[Need]:
    return [
        Need(
            "held",
            f"The hold on {hold.target} is about to end",
            f"{sentence(hold.reason)} ({hold.actor}). Extend it if the reason still stands.",
            ends_at=hold.expires_at,
            label="Extend…",
            path="/change/hold",
            query={"target": hold.target.key, "reason": hold.reason},
        )
        for hold in situation.holds
        if _ends_soon(hold, situation.now)
    ]


def _ends_soon(hold: Hold, now: datetime) -> bool:
    """Whether a hold ends within the hour; a short one is not urgent as soon as it is placed."""
    if hold.expires_at is None or hold.is_of_window:
        return False
    half = (hold.expires_at - hold.placed_at) / 2
    return hold.expires_at - now <= min(ENDS_SOON, half)


def _records(conn: Connection, situation: Situation) -> list[Need]:
    now = situation.now
    needs = []
    for run in run_problems.in_doubt(conn, now):
        needs.append(
            Need(
                "warn",
                f"{plural(run.records, 'record')} in doubt in {run.name}",
                "The attempt ended in the middle of them: they may or may not have reached the "
                "service. The next attempt sends them again with the same idempotency keys.",
                at=run.ended_at,
                label="Review",
                path=f"/runs/{run.campaign_run}/records",
                query={"state": "in_doubt"},
                changes=False,
            )
        )
    failed = run_problems.failed_records(conn, now)
    if failed:
        count = sum(each.failed for each in failed)
        runs = plural(len(failed), "campaign run")
        needs.append(
            Need(
                "warn",
                f"{plural(count, 'record')} failed in {runs} that ended in the last 24 hours",
                "Look at what the service said, then try them again or skip them.",
                label="Review",
                path="/records",
                changes=False,
            )
        )
    return needs


def _left(situation: Situation) -> list[Need]:
    return [
        Need("warn", f"{each.name} {each.what}", f"Nothing clears it by itself: run {each.do}")
        for each in leftovers(situation)
    ]
