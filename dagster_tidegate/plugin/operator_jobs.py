"""Jobs for people who have only Dagster: hold, release and check from its launchpad."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from dagster_tidegate.control import operations, situation
from dagster_tidegate.control.runbooks import where
from dagster_tidegate.control.why import UnknownNameError, find
from dagster_tidegate.dagster_api import DOCTOR_JOB, HOLD_JOB, RELEASE_JOB
from dagster_tidegate.dagster_api.project import CodeOptions
from dagster_tidegate.holds import Target, TargetKind, named
from dagster_tidegate.settings import GeneralSettings, load
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.holds import NotYourHoldError
from dagster_tidegate.text import MAX_ACTOR, MAX_NAME, MAX_REASON, checked, plural, utc

if TYPE_CHECKING:
    from dagster_tidegate.plugin.resource import BreakerResource

MAX_HOURS = 24.0 * 366
MAX_LOGGED = 50
"""How many effects are logged."""


class _TargetConfig(dg.Config):
    kind: TargetKind = Field(
        default=TargetKind.SERVICE,
        description="Kind of the target: SERVICE, CAMPAIGN, CAMPAIGN_RUN or EVERYTHING.",
    )
    name: str = Field(
        default="",
        max_length=MAX_NAME,
        description="The service, the campaign (name of the job), or campaign/partition. Empty for "
        "EVERYTHING.",
    )
    dry_run: bool = Field(default=False, description="Only log what would happen.")


class HoldConfig(_TargetConfig):
    """What to hold, why and for how long."""

    reason: str = Field(description="Why, shown to everyone.")
    hours: float | None = Field(
        default=None,
        gt=0,
        le=MAX_HOURS,
        description="Hours until the hold expires. Default: it lasts until it is released.",
    )


class ReleaseConfig(_TargetConfig):
    """What to release."""

    force: bool = Field(
        default=False,
        description="Also release a breaker's own hold and close the breaker.",
    )


class DoctorConfig(dg.Config):
    """Where the code locations are defined."""

    workspace: str | None = Field(
        default=None,
        description="The workspace file. Default: the dg project or workspace.yaml of the working "
        "directory of the run or the nearest above; without one, code locations are not checked.",
    )


def jobs_of_operators(resource_key: str) -> Sequence[dg.JobDefinition]:
    """Return the jobs; `resource_key` is that of the `BreakerResource`."""

    @dg.op(name="hold", required_resource_keys={resource_key})
    def hold_op(context: dg.OpExecutionContext, config: HoldConfig) -> None:
        reason = checked(config.reason, "reason", MAX_REASON)

        def place(conn: Connection, now: datetime, target: Target) -> str:
            ends = None if config.hours is None else now + timedelta(hours=config.hours)
            actor = _actor(context)
            operations.hold(conn, now, target, reason=reason, actor=actor, expires_at=ends)
            return f"{target} is held {f'until {utc(ends)}' if ends else 'until it is released'}"

        _change(context, getattr(context.resources, resource_key), config, place)

    @dg.op(name="release", required_resource_keys={resource_key})
    def release_op(context: dg.OpExecutionContext, config: ReleaseConfig) -> None:
        def release(conn: Connection, now: datetime, target: Target) -> str:
            actor = _actor(context)
            released = operations.release(conn, now, target, actor=actor, force=config.force)
            return f"{target}: {plural(len(released), 'hold')} released"

        _change(context, getattr(context.resources, resource_key), config, release)

    @dg.op(name="doctor", required_resource_keys={resource_key})
    def doctor_op(context: dg.OpExecutionContext, config: DoctorConfig) -> None:
        _diagnose(context, getattr(context.resources, resource_key), config)

    return [
        _job(HOLD_JOB, hold_op, "Hold a service, a campaign, one of its runs or everything."),
        _job(RELEASE_JOB, release_op, "Release operators' holds."),
        _job(DOCTOR_JOB, doctor_op, "Check Dagster, the store and the code locations."),
    ]


def _job(name: str, op: dg.OpDefinition, description: str) -> dg.JobDefinition:
    graph = dg.GraphDefinition(name=name, node_defs=[op])
    return graph.to_job(name=name, description=description, executor_def=dg.in_process_executor)


def _actor(context: dg.OpExecutionContext) -> str:
    """Who acts, for the audit log: the run, and who started it if Dagster knows."""
    person = context.run.tags.get(operations.ACTOR_TAG)
    run = f"Dagster run {context.run_id}"
    return f"{person[: MAX_ACTOR - len(run) - 4]} in {run}" if person else run


def _change(
    context: dg.OpExecutionContext,
    resource: "BreakerResource",
    config: _TargetConfig,
    make: Callable[[Connection, datetime, Target], str],
) -> None:
    """Change the holds on the target of a configuration, and log the effects."""
    try:
        target = _target(resource, config)
        with operations.changing(resource.store, target, dry_run=config.dry_run) as change:
            made = make(change.conn, change.now, target)
    except (ValueError, UnknownNameError, NotYourHoldError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    context.log.info("%s%s", "Dry run: " if config.dry_run else "", made)
    affected = [effect for effect in change.effects if effect.changes]
    for effect in affected[:MAX_LOGGED]:
        verb = "pauses" if effect.held_after else "resumes"
        context.log.info("%s %s", effect.run or effect.campaign, verb)
    if len(affected) > MAX_LOGGED:
        context.log.info("and %d more", len(affected) - MAX_LOGGED)


def _target(resource: "BreakerResource", config: _TargetConfig) -> Target:
    target = named(config.kind, config.name)
    with resource.store.read() as conn:
        current = situation.read(conn, resource.store.now(conn))
    # A typing error would place a hold that holds nothing.
    return find(current, target.name or "everything", {}, target.kind)


def _diagnose(
    context: dg.OpExecutionContext, resource: "BreakerResource", config: DoctorConfig
) -> None:
    from dagster_tidegate.doctor.checks import Severity, diagnose, unchecked
    from dagster_tidegate.doctor.gather import gather  # loads code: only this job needs it

    workspace = () if config.workspace is None else (Path(config.workspace),)
    url = resource.store.url.render_as_string(hide_password=False)
    facts = gather(CodeOptions(workspace), url, instance=context.instance)
    pages = load(GeneralSettings).page_url("")
    findings = diagnose(facts)
    for finding in findings:
        log = context.log.error if finding.severity is Severity.ERROR else context.log.warning
        runbook = where("finding", finding.code, pages)
        log(
            "%s: %s. To fix it: %s (%s; %s)",
            finding.about,
            finding.what,
            finding.do,
            finding.code,
            runbook,
        )
    for line in unchecked(facts):
        context.log.info("Not checked: %s", line)
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    if errors:
        raise dg.Failure(
            f"{plural(errors, 'error')}, {plural(len(findings) - errors, 'warning')}: see the log",
            allow_retries=False,
        )
    context.log.info("No errors, %s", plural(len(findings), "warning"))
