"""The pages that change something: each says what it would do, and has a form that does it.

They call what the API calls, so roles, owners and the audit log are the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import uuid4

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from dagster_tidegate.control.effects import Effect, if_held, if_released, in_words
from dagster_tidegate.control.operations import REPAIRED
from dagster_tidegate.control.records import to_retry
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.control.starting import Refusal, verdict
from dagster_tidegate.control.why import why
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.settings import PAGES
from dagster_tidegate.statuses import UNFINISHED, RunStatus
from dagster_tidegate.store import records, runs
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.records import RecordState
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.store.tokens import Role
from dagster_tidegate.text import enumerated, plural, sentence
from dagster_tidegate.web.access.identity import Identity
from dagster_tidegate.web.access.origins import local_path
from dagster_tidegate.web.api import lookup, starting
from dagster_tidegate.web.api.authentication import Operator, require_force, require_owner
from dagster_tidegate.web.api.changes import HoldChange
from dagster_tidegate.web.api.context import AppContext, Context
from dagster_tidegate.web.api.models import (
    KeepClosed,
    NewHold,
    Release,
    Repaired,
    RetryRecords,
    SkipRecords,
)
from dagster_tidegate.web.api.problems import REFUSALS, Code, Problem, problem_of
from dagster_tidegate.web.api.routes import records as records_api
from dagster_tidegate.web.api.routes import runs as runs_api
from dagster_tidegate.web.api.routes import services as services_api
from dagster_tidegate.web.middleware.connection import connection_of
from dagster_tidegate.web.pages import now
from dagster_tidegate.web.pages.forms import Form
from dagster_tidegate.web.pages.rendering import PageRoute, page, visitor, without_command

MAX_LINES = 12
MAX_NAMED = 3
LENGTHS = (
    ("", "until it is released"),
    ("900", "15 minutes"),
    ("3600", "1 hour"),
    ("14400", "4 hours"),
    ("86400", "1 day"),
    ("604800", "1 week"),
)
"""For how long something is held or kept closed, in seconds."""

router = APIRouter(route_class=PageRoute)


@dataclass(frozen=True)
class Preview:
    """What a change would do, and the form that makes it.

    Attributes:
        lines: What it would do, in words.
        said: What the service said of the records, most often first.
        hidden: The fields that say what is changed.
        reason: The reason that is filled in; None: it takes none.
        lasts: Whether it may be made for a while.
        may_force: Whether the form offers to release the breaker's own hold too.
        nothing: Why there is nothing to do; there is no form then.
        error: Why it was refused.
    """

    title: str
    button: str
    lines: Sequence[str] = ()
    said: Sequence[str] = ()
    hidden: Sequence[tuple[str, str]] = ()
    reason: str | None = None
    lasts: bool = False
    for_seconds: str = ""
    may_force: bool = False
    harmful: bool = False
    nothing: str = ""
    error: str = ""


@dataclass(frozen=True)
class Asked:
    """A change that somebody asks for."""

    conn: Connection
    situation: Situation
    identity: Identity
    form: Form

    def own_service(self) -> str:
        """Return the service, if all campaigns that need it may be controlled."""
        name = self.form.text("service")
        lookup.own_campaigns_of(self.conn, self.situation.now, name, self.identity)
        return name

    def own_run(self) -> CampaignRun:
        """Return the campaign run, if its campaign may be controlled."""
        run = lookup.run_by_id(self.conn, self.form.number("run"))
        require_owner(self.identity, lookup.campaign_in(self.situation, run.campaign).spec)
        return run

    def words(self, target: Target, effects: Sequence[Effect]) -> list[str]:
        """Return the effects of a change of the holds on a target in words."""
        if not effects:
            return [f"No known campaign depends on {target}."]
        breakers = self.situation.breakers
        said = [without_command(in_words(each, target, breakers)) for each in effects]
        lines = [f"{sentence(each)}." for each in said]
        changed = [each for each in effects if each.changes]
        if len(changed) > MAX_LINES:
            verb = "pause" if changed[0].held_after else "resume"
            lines.insert(0, f"{len(changed):,} campaigns {verb}:")
        return lines

    def count(self, run: CampaignRun, selection: records.Selection) -> tuple[int, list[str]]:
        """Count the records of a selection, and say what the service said of them."""
        groups = records.summary(self.conn, self.situation.now, run, selection)
        open_ = [group for group in groups if group.state is not RecordState.IN_FLIGHT]
        said = [f"{group.count:,} x {group.error}" for group in open_[:MAX_NAMED] if group.error]
        return sum(group.count for group in open_), said


@dataclass(frozen=True)
class Action:
    """Something that a person can do on the pages.

    Attributes:
        preview: Returns what it would do, and changes nothing.
    """

    preview: Callable[[Asked], Preview]
    make: Callable[[AppContext, Identity, Form], object]


@router.get("/change/{action}")
def show_change(request: Request, context: Context, identity: Operator, action: str) -> Response:
    """What a change would do, and a form that does it."""
    form = Form(str(request.query_params))
    return _show(request, context, identity, action, form)


@router.post("/change/{action}")
def make_change(request: Request, context: Context, identity: Operator, action: str) -> Response:
    """Make a change and go back to where it was asked for."""
    form = Form(connection_of(request.scope).body.decode("ascii", "replace"))
    try:
        _action(action).make(context, identity, form)
    except (Problem, *REFUSALS) as error:
        problem = problem_of(request, error)
        if error is problem and problem.code is not Code.INVALID:
            raise
    else:
        return RedirectResponse(_back(request, form, action), 303)
    answer = _show(request, context, identity, action, form, error=problem.detail)
    answer.status_code = problem.code.status
    return answer


def _show(
    request: Request,
    context: AppContext,
    identity: Identity,
    name: str,
    form: Form,
    *,
    error: str = "",
) -> Response:
    action = _action(name)
    with context.reading() as (conn, situation):
        preview = action.preview(Asked(conn, situation, identity, form))
        filled = replace(
            preview,
            reason=None if preview.reason is None else form.text("reason") or preview.reason,
            for_seconds=form.text("for_seconds"),
            error=sentence(error),
        )
        return page(
            request,
            "change.html",
            visitor=visitor(context, identity),
            now=situation.now,
            banners=now.banners(conn, situation),
            view=filled,
            action=name,
            back=local_path(form.text("next"), request.scope.get("root_path", "") + PAGES),
            lengths=LENGTHS,
        )


def _action(name: str) -> Action:
    if name not in ACTIONS:
        raise Problem(Code.NOT_FOUND, f"there is no change named {name[:40]!r}")
    return ACTIONS[name]


def _back(request: Request, form: Form, action: str) -> str:
    wanted = local_path(form.text("next"), request.scope.get("root_path", "") + PAGES)
    parts = urlsplit(wanted)
    query = [(name, value) for name, value in parse_qsl(parts.query) if name != "did"]
    return f"{parts.path}?{urlencode([*query, ('did', action)])}"


# Holds


def _preview_hold(asked: Asked) -> Preview:
    targets = asked.form.targets()
    lines: list[str] = []
    staying: set[str] = set()  # each is said once, whatever else would hold it
    for target in targets:
        lookup.require_control(asked.conn, asked.identity, target)
        effects = if_held(asked.situation, target, runs.of_target(asked.conn, target))
        shown = [e for e in effects if e.changes or e.run or e.campaign not in staying]
        if shown or not effects:
            lines += asked.words(target, shown)
        staying |= {each.campaign for each in effects if not each.changes}
    mine = [
        hold
        for hold in asked.situation.holds
        if hold.target in targets and hold.actor == asked.identity.name
    ]
    if mine:
        lines.append("You hold some of it already: reason and expiry are updated.")
    return Preview(
        title=f"Hold {_named(targets)}",
        button="Hold",
        lines=_short(lines),
        hidden=asked.form.given("target"),
        reason="",
        lasts=True,
        harmful=any(target.kind is TargetKind.EVERYTHING for target in targets),
    )


def _hold(context: AppContext, identity: Identity, form: Form) -> None:
    targets, body = form.targets(), form.body(NewHold)
    change = HoldChange(context, identity)
    with change.begin() as (conn, _):
        for target in targets:
            lookup.require_control(conn, identity, target)
            run = runs.of_target(conn, target)
            if run is None:
                change.hold(target, body)
            else:
                change.pause(run, body)


def _preview_release(asked: Asked) -> Preview:
    targets = asked.form.targets()
    lines: list[str] = []
    may_force = False
    releasable = False
    for target in targets:
        lookup.require_control(asked.conn, asked.identity, target)
        on_it = [hold for hold in asked.situation.holds if hold.target == target]
        people = [hold for hold in on_it if hold.source is not HoldSource.BREAKER]
        releasable = releasable or bool(people)
        may_force = may_force or len(people) < len(on_it)
        lines += [f"The hold of {hold.actor} ({hold.reason}) ends." for hold in people]
        if people:
            effects = if_released(asked.situation, target, runs.of_target(asked.conn, target))
            lines += asked.words(target, effects)
        elif on_it:
            lines.append(
                f"{sentence(str(target))} is held by its breaker alone, which releases it when the "
                "service recovers."
            )
    by_force = may_force and asked.identity.role.allows(Role.ADMIN)
    return Preview(
        title=f"Release {_named(targets)}",
        button="Release",
        lines=_short(lines),
        hidden=asked.form.given("target"),
        may_force=by_force,
        nothing=""
        if releasable or by_force
        else " ".join(_short(lines)) or "Nobody holds it: there is nothing to release.",
    )


def _release(context: AppContext, identity: Identity, form: Form) -> None:
    targets = form.targets()
    force = require_force(identity, Release(force=bool(form.text("force"))))
    change = HoldChange(context, identity)
    with change.begin() as (conn, _):
        for target in targets:
            lookup.require_control(conn, identity, target)
            change.release(target, force=force)


# Services


def _preview_repaired(asked: Asked) -> Preview:
    name = asked.own_service()
    breaker = asked.situation.breakers.get(name)
    denied = breaker is not None and breaker.is_denied
    return Preview(
        title=f"{name} is repaired",
        button="Try it now",
        lines=[
            f"The breaker of {name} becomes half open: one trial call checks the repair.",
            "If the call succeeds, the breaker closes and paused work resumes automatically.",
            "If the service refuses it again, everything stays paused, and this page says so.",
        ],
        hidden=[("service", name)],
        reason=REPAIRED,
        nothing="" if denied else f"{name} does not refuse this client: it needs no repair.",
    )


def _repaired(context: AppContext, identity: Identity, form: Form) -> None:
    change = HoldChange(context, identity)
    services_api.service_is_repaired(change, form.text("service"), form.body(Repaired))


def _preview_keep_closed(asked: Asked) -> Preview:
    name = asked.own_service()
    target = Target(TargetKind.SERVICE, name)
    effects = if_released(asked.situation, target, force=True)
    return Preview(
        title=f"Keep the breaker of {name} closed",
        button="Keep it closed",
        lines=_short(
            [
                f"Calls to {name} continue even if they fail: for a breaker that trips by mistake.",
                *(asked.words(target, effects) if why(asked.situation, target).paused else ()),
            ]
        ),
        hidden=[("service", name)],
        reason="",
        lasts=True,
        harmful=True,
    )


def _keep_closed(context: AppContext, identity: Identity, form: Form) -> None:
    change = HoldChange(context, identity)
    services_api.keep_breaker_closed(change, form.text("service"), form.body(KeepClosed))


def _preview_let_trip(asked: Asked) -> Preview:
    name = asked.own_service()
    breaker = asked.situation.breakers.get(name)
    kept = breaker is not None and breaker.kept_closed(asked.situation.now)
    return Preview(
        title=f"Let the breaker of {name} trip again",
        button="Let it trip",
        lines=[f"If calls to {name} fail, its breaker opens as its policy says."],
        hidden=[("service", name)],
        nothing="" if kept else "Nobody keeps it closed.",
    )


def _let_trip(context: AppContext, identity: Identity, form: Form) -> None:
    services_api.let_breaker_trip(HoldChange(context, identity), form.text("service"))


# Campaign runs


def _preview_start(asked: Asked) -> Preview:
    name, partition = asked.form.text("campaign"), asked.form.text("partition")
    campaign = lookup.campaign_in(asked.situation, name)
    require_owner(asked.identity, campaign.spec)
    target = Target(TargetKind.CAMPAIGN, name)
    lines = [f"A Dagster run of {name} is queued."]
    if campaign.holds:
        summary = why(asked.situation, target).summary
        lines.append(f"The campaign is {without_command(summary)}. The run waits in the queue.")
    return Preview(
        title=f"Start {name}{f' with {partition}' if partition else ''}",
        button="Start",
        lines=lines,
        hidden=[
            ("campaign", name),
            ("partition", partition),
            ("run_id", asked.form.text("run_id") or str(uuid4())),
        ],
    )


def _start(context: AppContext, identity: Identity, form: Form) -> None:
    starting.start(
        context,
        identity,
        form.text("campaign"),
        form.text("partition") or None,
        queue=True,
        run_id=form.id("run_id"),
    )


def _preview_cancel(asked: Asked) -> Preview:
    run = asked.own_run()
    lines = [f"{run.name} ends as cancelled, and does not resume."]
    if run.status is RunStatus.PROCESSING:
        lines.append("Its Dagster run stops after the record in flight.")
    lines.append("Records that are done stay done. It can be started again later.")
    return Preview(
        title=f"Cancel {run.name}",
        button="Cancel the run",
        lines=lines,
        hidden=[("run", str(run.id))],
        harmful=True,
        nothing=""
        if run.status in UNFINISHED
        else f"It is {run.status}: there is nothing to cancel.",
    )


def _cancel(context: AppContext, identity: Identity, form: Form) -> None:
    run = _run(context, form)
    runs_api.cancel_run(context, identity, run.campaign, run.partition)


# Records


def _preview_retry(asked: Asked) -> Preview:
    run = asked.own_run()
    body = asked.form.body(RetryRecords, reason="-", **_selected(asked.form))
    target = Target(TargetKind.CAMPAIGN_RUN, run.name)
    decision = verdict(why(asked.situation, target, run))
    nothing = ""
    if decision.refusal is Refusal.HELD:
        nothing = f"{without_command(decision.text)}."
    elif decision.refusal is not None or run.status in (RunStatus.PENDING, RunStatus.PROCESSING):
        nothing = f"{run.name} is {run.status}: wait until it has ended, or pause it first."
    count, said = asked.count(run, to_retry(body.selection))
    return Preview(
        title=f"Try {plural(count, 'record')} again",
        button="Try again",
        lines=[
            f"{plural(count, 'record')} of {run.name} will be processed again with the same "
            "idempotency keys. A service that honours the keys repeats no effect.",
            "One Dagster run that processes only these is queued.",
        ],
        said=said,
        hidden=[*_which(asked.form), ("run_id", asked.form.text("run_id") or str(uuid4()))],
        reason="",
        nothing=nothing or ("" if count else "There are no such records now."),
    )


def _retry(context: AppContext, identity: Identity, form: Form) -> None:
    run, body = _run(context, form), form.body(RetryRecords, **_selected(form))
    records_api.retry(
        context, identity, run.campaign, run.partition, body, False, form.id("run_id")
    )


def _preview_skip(asked: Asked) -> Preview:
    run = asked.own_run()
    body = asked.form.body(SkipRecords, reason="-", **_selected(asked.form))
    count, said = asked.count(run, to_retry(body.selection))
    busy = run.status is RunStatus.PROCESSING
    nothing = (
        f"{run.name} is processing: pause it first, or wait until it has ended." if busy else ""
    )
    return Preview(
        title=f"Skip {plural(count, 'record')}",
        button="Skip",
        lines=[
            f"{plural(count, 'record')} of {run.name} will need no result: the campaign run can "
            "complete without them.",
            "They can still be tried again later.",
        ],
        said=said,
        hidden=_which(asked.form),
        reason="",
        harmful=True,
        nothing=nothing or ("" if count else "There are no such records now."),
    )


def _skip(context: AppContext, identity: Identity, form: Form) -> None:
    run, body = _run(context, form), form.body(SkipRecords, **_selected(form))
    records_api.skip_records(context, identity, run.campaign, run.partition, body)


ACTIONS: Mapping[str, Action] = {
    "hold": Action(_preview_hold, _hold),
    "release": Action(_preview_release, _release),
    "repaired": Action(_preview_repaired, _repaired),
    "keep-closed": Action(_preview_keep_closed, _keep_closed),
    "let-trip": Action(_preview_let_trip, _let_trip),
    "start": Action(_preview_start, _start),
    "cancel": Action(_preview_cancel, _cancel),
    "retry": Action(_preview_retry, _retry),
    "skip": Action(_preview_skip, _skip),
}
"""Everything that a person can do on the pages, by its place in the address."""


def _run(context: AppContext, form: Form) -> CampaignRun:
    with context.store.read() as conn:
        return lookup.run_by_id(conn, form.number("run"))


def _short(lines: Sequence[str]) -> Sequence[str]:
    unique = list(dict.fromkeys(lines))
    more = len(unique) - MAX_LINES
    return [*unique[:MAX_LINES], f"And {more:,} more."] if more > 0 else unique


def _named(targets: Sequence[Target]) -> str:
    return enumerated([target.name or "everything" for target in targets], "thing", MAX_NAMED)


def _selected(form: Form) -> dict[str, object]:
    """The selection of records in a form, as a body of the API has it."""
    chosen: dict[str, object] = {"keys": list(form.all("key")), "status": list(form.all("state"))}
    if form.text("said"):
        chosen["said"] = form.text("said")
    return chosen


def _which(form: Form) -> list[tuple[str, str]]:
    return [each for name in ("run", "key", "state", "said") for each in form.given(name)]
