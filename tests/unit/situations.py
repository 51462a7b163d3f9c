"""Situations for the tests of what is pure: a fleet of two services and two campaigns."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.control.situation import CampaignSituation, Situation
from dagster_tidegate.holds import EVERYTHING, Hold, HoldSource, Target, TargetKind, covering
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store.campaigns import CampaignSpec, Trigger
from dagster_tidegate.store.heartbeats import PARTS, Heartbeat
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.store.takeovers import Takeover, TakeoverKind

NOW = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
MAIL = Target(TargetKind.SERVICE, "mail")
MAPS = Target(TargetKind.SERVICE, "maps")
LETTERS = Target(TargetKind.CAMPAIGN, "letters")
MONDAY = Target(TargetKind.CAMPAIGN_RUN, "letters/monday")
TARGETS = (EVERYTHING, MAIL, MAPS, LETTERS, MONDAY)
SHAPES = (
    CampaignSpec(
        "letters",
        "here",
        "latest",
        ops={"begin": "@letters", "send": "mail"},
        triggers=(Trigger(TakeoverKind.SCHEDULE, "daily", "id-daily", True),),
    ),
    CampaignSpec("guide", "here", "none", ops={"look_up": "maps", "post": "mail+maps"}),
    CampaignSpec("tour", "here", "none", ops={"look_up": "maps"}),
)


def hold(
    target: Target,
    *,
    source: HoldSource = HoldSource.OPERATOR,
    id: int = 1,
    actor: str = "ana",
    reason: str = "new copy",
    until: datetime | None = None,
) -> Hold:
    return Hold(id, target, source, reason, actor, NOW - timedelta(minutes=5), until)


def breakers_hold(target: Target, id: int = 9) -> Hold:
    return hold(target, source=HoldSource.BREAKER, id=id, actor="breaker", reason="503 x5")


def open_breaker(name: str, due_in_s: float = 20) -> BreakerStatus:
    return BreakerStatus(
        name,
        changed_at=NOW - timedelta(minutes=5),
        state=BreakerState.OPEN,
        open_until=NOW + timedelta(seconds=due_in_s),
        reason="503 x5",
    )


def denied(name: str) -> BreakerStatus:
    return replace(
        open_breaker(name),
        cause=VerdictKind.DENIED,
        reason="401 invalid_api_key",
        answer='{"error": "The API key is invalid."}',
    )


def half_open(name: str) -> BreakerStatus:
    return replace(open_breaker(name), state=BreakerState.HALF_OPEN)


def takeover(kind: TakeoverKind, name: str, **values: object) -> Takeover:
    fields = {
        "id": 1,
        "label": name,
        "campaign": None,
        "location": "here",
        "former": "unset",
        "set_from": "0",
        "set_to": "2",
        "pending": False,
        "version": 1,
        "taken_at": NOW - timedelta(minutes=5),
        "running_since": None,
        "ramp_step_at": NOW,
        "left_at": None,
        **values,
    }
    return Takeover(kind=kind, name=name, **fields)  # type: ignore[arg-type] -- as above


def campaign_run(
    status: RunStatus, name: str = "letters/monday", reason: str | None = None
) -> CampaignRun:
    campaign, _, partition = name.partition("/")
    return CampaignRun(7, campaign, partition, status, 1, 0, reason, None, NOW, NOW)


def situation(
    holds: Sequence[Hold] = (),
    *,
    breakers: Sequence[BreakerStatus] = (),
    counts: Mapping[str, Mapping[RunStatus, int]] | None = None,
    takeovers: Sequence[Takeover] = (),
    silent: Sequence[str] = (),
    enabled: bool = True,
    specs: Sequence[CampaignSpec] = SHAPES,
    trials: Mapping[str, int] | None = None,
) -> Situation:
    """A situation in which all is well, but for what is said."""
    known = {
        name: BreakerStatus(name, changed_at=NOW - timedelta(hours=1)) for name in ("mail", "maps")
    }
    known |= {breaker.name: breaker for breaker in breakers}
    campaigns = {}
    for spec in specs:
        needed = spec.services(known)
        held = covering(holds, NOW, services=needed, campaign=spec.name)
        runs = (counts or {}).get(spec.name, {})
        campaigns[spec.name] = CampaignSituation(spec, needed, runs, held)
    beats = [
        Heartbeat("here", part, NOW - timedelta(hours=1 if part in silent else 0), None, "")
        for part in PARTS
    ]
    return Situation(
        NOW, enabled, known, trials or {}, campaigns, list(holds), list(takeovers), beats
    )
