"""The conditions that raise an alert for as long as they last. Pure.

Each function yields the name of what is affected, and the text of the alert about it.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta

from dagster_tidegate.alerts.kinds import AlertKind
from dagster_tidegate.alerts.snapshot import RunProblems, Snapshot
from dagster_tidegate.alerts.text import Text, affected, arguments
from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.holds import Hold, HoldSource, TargetKind, targets_of
from dagster_tidegate.settings import AlertSettings
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.text import bounded, length, plural, sentence, utc

MAX_NAME = 512
"""The length of the store's column."""

Findings = Iterator[tuple[str, Text]]


def operator_hold_name(hold: Hold) -> str:
    """Return the name of the alerts about an operator's hold."""
    return bounded(f"{hold.target.key} by {hold.actor}", MAX_NAME)


def denied_services(snapshot: Snapshot, _settings: AlertSettings) -> Findings:
    """Yield the services that refuse this client, until their breakers are closed again."""
    for breaker in snapshot.situation.breakers.values():
        is_open = breaker.state is not BreakerState.CLOSED
        if not is_open or breaker.cause is not VerdictKind.DENIED:
            continue
        name = breaker.name
        since = breaker.opened_at or breaker.changed_at
        answer = f"{name} answered: {breaker.answer}\n" if breaker.answer else ""
        yield (
            name,
            Text(
                f"{name} refuses this client: {breaker.reason or 'denied'}",
                f"{name} has refused this client since {utc(since)}: {breaker.reason}.\n"
                f"{answer}"
                f"{affected(snapshot.campaigns_of(name))}\n"
                "Waiting does not help. Repair the key, the credits, the plan or whatever it "
                f"names, then: tidegate services repaired {shlex.quote(name)}",
            ),
        )


def budgets_nearly_spent(snapshot: Snapshot, _settings: AlertSettings) -> Findings:
    """Yield the budgets of which little is left, until they are reset."""
    for name, budget in snapshot.situation.budgets.items():
        if not budget.is_nearly_spent:
            continue
        most = [
            f"{campaign}: {spent:g}" for campaign, spent in budget.campaigns.items() if campaign
        ]
        by = f"By campaign: {', '.join(most[:3])}\n" if most else ""
        yield (
            name,
            Text(
                f"{budget.share:.0%} of the budget of {name} is used up",
                f"{name}: {budget}.\n"
                f"{by}"
                f"{affected(snapshot.campaigns_of(name))}\n"
                f"When it is used up, {name} is throttled until {utc(budget.resets_at)}.\n"
                "To go on earlier, raise the budget in the code, or: "
                f"tidegate services keep-closed {shlex.quote(name)} --reason ... --for ...",
            ),
        )


def operator_holds(snapshot: Snapshot, _settings: AlertSettings) -> Findings:
    """Yield the holds of operators, without those of maintenance windows."""
    for hold in snapshot.situation.holds:
        if hold.source is not HoldSource.OPERATOR or hold.is_of_window:
            continue
        end = "it is released" if hold.expires_at is None else utc(hold.expires_at)
        yield (
            operator_hold_name(hold),
            Text(
                f"{hold.actor} placed a hold on {hold.target}: {hold.reason}",
                f"{hold.actor} placed a hold on {hold.target} at {utc(hold.placed_at)}, until "
                f"{end}.\n"
                f"Reason: {hold.reason}\n"
                f"{affected(snapshot.campaigns_under(hold))}\n"
                f"To release it: tidegate release {arguments(hold.target)}",
            ),
        )


def expiring_holds(snapshot: Snapshot, settings: AlertSettings) -> Findings:
    """Yield the holds that expire soon, short ones only in the last quarter of their time."""
    now = snapshot.situation.now
    for hold in snapshot.situation.holds:
        if hold.expires_at is None or hold.is_of_window:
            continue
        notice = timedelta(seconds=settings.hold_expires_within_s)
        if now < hold.expires_at - min(notice, (hold.expires_at - hold.placed_at) / 4):
            continue
        yield (
            _hold_name(hold),
            Text(
                f"The hold on {hold.target} expires in {length(hold.expires_at - now)}",
                f"The hold of {hold.actor} on {hold.target} ({hold.reason}) expires at "
                f"{utc(hold.expires_at)}.\n"
                f"{affected(snapshot.campaigns_under(hold))}\n"
                f"To extend it: tidegate hold {arguments(hold.target)} --reason ... --for ...",
            ),
        )


def old_holds(snapshot: Snapshot, settings: AlertSettings) -> Findings:
    """Yield the holds of breakers and operators that are older than the limit."""
    for hold in snapshot.situation.holds:
        age = snapshot.situation.now - hold.placed_at
        if age <= timedelta(seconds=settings.hold_older_than_s):
            continue
        if hold.source is HoldSource.BREAKER:
            holder = "Its breaker"
            breaker = snapshot.situation.breakers.get(hold.target.name)
            remedy = None if breaker is None else breaker.remedy
            advice = (
                "Does the service still exist? Details: tidegate why "
                f"{shlex.quote(hold.target.name)}"
                if remedy is None
                else f"Once it is repaired: {remedy}"
            )
        else:
            holder = hold.actor
            advice = (
                f"If it is no longer needed, release it: tidegate release {arguments(hold.target)}"
            )
        yield (
            _hold_name(hold),
            Text(
                f"{hold.target} has been on hold for {length(age)}",
                f"{holder} has held {hold.target} since {utc(hold.placed_at)}: {hold.reason}\n"
                f"{affected(snapshot.campaigns_under(hold))}\n"
                f"{advice}",
            ),
        )


def stale_gates(snapshot: Snapshot, settings: AlertSettings) -> Findings:
    """Yield the gates that have not finished a tick for too long."""
    now = snapshot.situation.now
    since = now - timedelta(seconds=settings.gate_stale_after_s)
    for gate in snapshot.situation.stale_gates():
        # A gate that has never finished a tick gets the same time from when it was defined.
        if (gate.last or snapshot.defined_at.get(gate.location, now)) > since:
            continue
        yield (
            gate.location,
            Text(
                f"The gate of {gate.location} is stale",
                f"{sentence(str(gate))}.\n"
                "Until it recovers, nothing is stopped or resumed in Dagster. Runs in progress "
                "still pause.\n"
                "Check that the Dagster daemon is running and the gate's sensors are on: "
                "tidegate doctor\n"
                "If the code location was removed for good: tidegate store forget "
                f"{shlex.quote(gate.location)}",
            ),
        )


def records_in_doubt(snapshot: Snapshot, _settings: AlertSettings) -> Findings:
    """Yield the campaign runs that have records in doubt."""
    for each in _problems(snapshot).in_doubt:
        records = plural(each.records, "record")
        yield (
            each.name,
            Text(
                f"{records} of {each.name} in doubt",
                f"An attempt of {each.name} was cut off at {utc(each.ended_at)}: {records} may or "
                "may not have reached the service.\n"
                "The next attempt sends them again with the same idempotency keys.\n"
                f"To list them: tidegate runs show {shlex.quote(each.name)}",
            ),
        )


def failed_records(snapshot: Snapshot, settings: AlertSettings) -> Findings:
    """Yield the campaign runs that have ended with too large a share of failed records."""
    for each in _problems(snapshot).failed_records:
        if each.failed <= settings.failed_records_share * each.finished:
            continue
        run = shlex.quote(each.run)
        yield (
            each.run,
            Text(
                f"{each.run} is {each.status}, {plural(each.failed, 'record')} failed",
                f"{each.failed} of {each.finished} records of {each.run} failed.\n"
                f"What the service said: tidegate records {run} --failed\n"
                f"To retry them: tidegate records retry {run} --reason ...",
            ),
        )


def failed_resumes(snapshot: Snapshot, settings: AlertSettings) -> Findings:
    """Yield the runs that failed after a pause, and the campaigns that do not resume."""
    problems = _problems(snapshot)
    for run, reason in problems.failed.items():
        yield (
            run,
            Text(
                f"{run} failed after resuming",
                f"{run} was paused, resumed, and failed{f': {reason}' if reason else '.'}\n"
                f"Details: tidegate runs show {shlex.quote(run)}",
            ),
        )
    for campaign in _stuck_campaigns(snapshot, settings):
        paused = problems.paused[campaign]
        runs = plural(paused.count, "paused run")
        yield (
            campaign,
            Text(
                f"{campaign} is not resuming: {runs} without a hold",
                f"{runs} of {campaign}, the first since {utc(paused.since)}, did not resume "
                "although no hold covers the campaign.\n"
                f"Details: tidegate why {shlex.quote(campaign)}, tidegate doctor",
            ),
        )


CONDITIONS: Mapping[AlertKind, Callable[[Snapshot, AlertSettings], Findings]] = {
    AlertKind.DENIED: denied_services,
    AlertKind.BUDGET: budgets_nearly_spent,
    AlertKind.OPERATOR_HOLD: operator_holds,
    AlertKind.HOLD_EXPIRES: expiring_holds,
    AlertKind.HOLD_OLD: old_holds,
    AlertKind.GATE_STALE: stale_gates,
    AlertKind.IN_DOUBT: records_in_doubt,
    AlertKind.RECORDS_FAILED: failed_records,
    AlertKind.RESUME_FAILED: failed_resumes,
}
NEED_PROBLEMS = frozenset({AlertKind.IN_DOUBT, AlertKind.RECORDS_FAILED, AlertKind.RESUME_FAILED})
"""The kinds that can only be evaluated for a snapshot that has `problems`."""


def _hold_name(hold: Hold) -> str:
    return f"{hold.target.key}, hold {hold.id}"


def _problems(snapshot: Snapshot) -> RunProblems:
    assert snapshot.problems is not None  # see NEED_PROBLEMS
    return snapshot.problems


def _stuck_campaigns(snapshot: Snapshot, settings: AlertSettings) -> Iterator[str]:
    """Yield the campaigns whose paused runs should have resumed and did not."""
    situation = snapshot.situation
    resume_since = situation.now - timedelta(seconds=settings.resume_within_s)
    stale = {gate.location for gate in situation.stale_gates()}
    released = {
        hold.target
        for hold in snapshot.ended_holds
        if hold.released_at and hold.released_at > resume_since
    }
    campaigns_of_released_runs = {
        target.name.partition("/")[0]
        for target in released
        if target.kind is TargetKind.CAMPAIGN_RUN
    }
    for name, paused in _problems(snapshot).paused.items():
        campaign = situation.campaigns.get(name)
        if campaign is None or campaign.holds or campaign.spec.location in stale:
            continue
        recently_released = name in campaigns_of_released_runs or not released.isdisjoint(
            targets_of(services=campaign.services, campaign=name)
        )
        # A service's ramp may admit one run at a time, across all campaigns that need it.
        waits_for_a_run = any(
            other.runs.get(RunStatus.PROCESSING)
            for other in situation.campaigns.values()
            if other is campaign or other.services & campaign.services
        )
        if paused.changed_at <= resume_since and not recently_released and not waits_for_a_run:
            yield name
