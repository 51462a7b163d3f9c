"""What is wrong with a deployment. Pure: facts go in, findings come out."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from difflib import get_close_matches
from enum import StrEnum

from packaging.specifiers import SpecifierSet

from dagster_tidegate.control.situation import Situation
from dagster_tidegate.dagster_api.deployment import Daemon, InstanceSettings
from dagster_tidegate.dagster_api.locations import LocationCode, OpCode
from dagster_tidegate.pools import needs
from dagster_tidegate.store.database import shown_url
from dagster_tidegate.store.heartbeats import PARTS
from dagster_tidegate.text import utc

SILENT_AFTER = timedelta(minutes=2)
"""A daemon has a heartbeat twice a minute."""


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"  # pausing or resuming does not work, or is about not to
    WARNING = "warning"  # it works, but perhaps not as meant


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        code: Its stable name; `docs/cli.md` lists them.
        severity: How bad it is.
        about: What it is about.
        what: What is wrong.
        do: What to do about it: the exact setting or command.
    """

    code: str
    severity: Severity
    about: str
    what: str
    do: str


@dataclass(frozen=True)
class Version:
    """A version that runs, and those that this package claims to work with."""

    found: str
    wanted: str

    @property
    def fits(self) -> bool:
        """Whether the one is among the others."""
        return SpecifierSet(self.wanted).contains(self.found, prereleases=True)


@dataclass(frozen=True)
class StoreFacts:
    """The store.

    Attributes:
        url: Its URL, without the password.
        error: Why it can't be read; None if it can.
        refusal: Why this version does not work with it; None if it does.
        situation: What it says of the fleet; None where it can't be read.
        called: The services to which calls were made lately.
    """

    url: str
    error: str | None = None
    refusal: str | None = None
    situation: Situation | None = None
    called: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Facts:
    """What was found out about a deployment.

    Attributes:
        now: When, UTC.
        python: Python's version.
        dagster: Dagster's version here.
        enabled: Whether `TIDEGATE_ENABLED` lets Tidegate work here.
        instance_error: Why the Dagster instance can't be read; None if it can.
        settings: Its settings; None where it can't be read.
        daemons: The daemons that it needs.
        workspace_error: Why the workspace can't be read; None if it can.
        locations: Its code locations.
        store: The store.
    """

    now: datetime
    python: Version
    dagster: Version
    enabled: bool
    store: StoreFacts
    instance_error: str | None = None
    settings: InstanceSettings | None = None
    daemons: Sequence[Daemon] = ()
    workspace_error: str | None = None
    locations: Sequence[LocationCode] = ()
    services: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        known = {name for location in self.locations for name in location.policies}
        if self.store.situation is not None:
            known |= set(self.store.situation.circuits)
        object.__setattr__(self, "services", frozenset(known))


CODES: Mapping[str, str] = {
    "python_version": "Python is of a version that the package does not claim to work with.",
    "dagster_version": "Dagster is of such a version, here or in a code location.",
    "kill_switch": "`TIDEGATE_ENABLED` is false: no hold counts.",
    "instance_unreadable": "The Dagster instance can't be read.",
    "run_coordinator": "Runs start at once instead of going through the queue.",
    "pool_granularity": "A pool holds back steps, and not whole runs.",
    "run_buffer": "The queue lets more runs through than a pool's limit.",
    "run_monitoring": "Runs are not monitored.",
    "free_slots": "Runs that were cancelled keep their places in pools.",
    "daemon_dead": "A daemon that the instance needs has no recent heartbeat.",
    "daemon_silent": "A daemon has had no heartbeat for two minutes: it is busy, or dead.",
    "daemon_failing": "A daemon reports errors.",
    "workspace_unreadable": "The workspace can't be read.",
    "location_broken": "A code location can't be loaded.",
    "location_gone": "The store has campaigns of a code location that the workspace lacks.",
    "sensor_missing": "A code location lacks a sensor of the gate.",
    "sensor_stopped": "A sensor of the gate is switched off.",
    "sensor_failing": "The last tick of a sensor of the gate failed.",
    "store_unreachable": "The store can't be read.",
    "store_revision": "The store has no schema that this version works with.",
    "store_elsewhere": "A code location uses another store than the one that is looked at.",
    "gate_stale": "A part of the gate has not finished its work for a minute.",
    "policies_unreadable": "The policies of a code location can't be read from outside.",
    "policies_differ": "Code locations have different policies for the same service.",
    "pool_missing": "An op reaches the breakers, and its pool names no service.",
    "pool_unknown": "A pool names a service that nobody has a policy for.",
    "pool_lacks_service": "An op uses a client named as a service that its pool does not name.",
    "campaign_pool": "No op of a campaign has its pool, or one has that of another.",
    "not_a_campaign": "A job reaches the breakers, and the gate does not know it.",
    "calls_without_pool": "A service is called that no op of a campaign has in its pool.",
}
"""What each finding says."""

BLIND_SPOTS = (
    "An op whose pool names one service, and that calls another one too, is seen only where it "
    "uses a client resource that is named as that service.",
    "A call that does not go through a breaker is not seen.",
    "TIDEGATE_ENABLED is read in this process; the daemon and the workers may have another value.",
)


def diagnose(facts: Facts) -> list[Finding]:
    """Return what is wrong with a deployment, the worst first.

    Args:
        facts: What was found out about it; what could not be is not judged.
    """
    found = [
        *_versions(facts),
        *_instance(facts),
        *_daemons(facts),
        *_store(facts),
        *_workspace(facts),
        *_sensors(facts),
        *_gate(facts),
        *_policies(facts),
        *_ops(facts),
        *_jobs(facts),
        *_calls(facts),
    ]
    return sorted(found, key=lambda finding: finding.severity is not Severity.ERROR)


def unchecked(facts: Facts) -> list[str]:
    """Return what could not be looked at, and what never can, for people."""
    found = []
    if facts.instance_error is not None:
        found.append("Dagster's settings and daemons were not checked: see instance_unreadable.")
    if facts.workspace_error is not None or facts.instance_error is not None:
        found.append("Code locations, sensors, pools of ops and policies were not checked.")
    if facts.store.situation is None:
        found.append(
            "The gate and its campaigns were not checked: see the findings about the store."
        )
    return [*found, *BLIND_SPOTS]


def _error(code: str, about: str, what: str, do: str) -> Finding:
    return Finding(code, Severity.ERROR, about, what, do)


def _warning(code: str, about: str, what: str, do: str) -> Finding:
    return Finding(code, Severity.WARNING, about, what, do)


def _versions(facts: Facts) -> Iterator[Finding]:
    if not facts.python.fits:
        yield _error(
            "python_version",
            "python",
            f"Python is {facts.python.found}; this package claims {facts.python.wanted}",
            f"make the environment anew with a Python {facts.python.wanted}",
        )
    versions = {"this environment": facts.dagster.found}
    versions |= {
        f"code location {location.name}": location.dagster_version
        for location in facts.locations
        if location.dagster_version is not None
    }
    for where, found in versions.items():
        version = Version(found, facts.dagster.wanted)
        if not version.fits:
            yield _error(
                "dagster_version",
                where,
                f"Dagster is {version.found}; this package claims {version.wanted}",
                f"pip install 'dagster{version.wanted}' in {where}",
            )


def _instance(facts: Facts) -> Iterator[Finding]:
    if not facts.enabled:
        yield _warning(
            "kill_switch",
            "TIDEGATE_ENABLED",
            "it is false here: processes that have it so trip no breaker and heed no hold",
            "unset TIDEGATE_ENABLED, or set it to true, in the environment of the daemon, the "
            "code locations and the workers, and restart them",
        )
    if facts.instance_error is not None:
        yield _error(
            "instance_unreadable",
            "Dagster instance",
            facts.instance_error,
            "set DAGSTER_HOME to the directory with the instance's dagster.yaml, and check that "
            "its storage can be reached",
        )
    settings = facts.settings
    if settings is None:
        return
    if not settings.queues:
        yield _error(
            "run_coordinator",
            "dagster.yaml",
            f"the run coordinator is {settings.run_coordinator}: runs start at once, so that "
            "nothing can be held in the queue",
            "in dagster.yaml: run_coordinator: {module: dagster.core.run_coordinator, class: "
            "QueuedRunCoordinator}; then restart daemon and webserver",
        )
    if settings.pool_granularity != "run":
        yield _error(
            "pool_granularity",
            "dagster.yaml",
            f"concurrency.pools.granularity is {settings.pool_granularity or 'not set'}: runs of "
            "a held service start, and idle on a worker",
            "in dagster.yaml: concurrency: {pools: {granularity: run}}; then restart daemon and "
            "webserver",
        )
    if settings.run_buffer:
        yield _error(
            "run_buffer",
            "dagster.yaml",
            f"the queue lets {settings.run_buffer} runs through beyond a pool's limit, also "
            "beyond 0",
            "in dagster.yaml: remove concurrency.pools.op_granularity_run_buffer and "
            "run_coordinator's op_concurrency_slot_buffer, or set them to 0",
        )
    if not settings.run_monitoring:
        yield _error(
            "run_monitoring",
            "dagster.yaml",
            "runs are not monitored: a run whose worker died keeps its campaign run for ever",
            "in dagster.yaml: run_monitoring: {enabled: true, "
            "free_slots_after_run_end_seconds: 10}",
        )
    elif settings.free_slots_after_s is None:
        yield _error(
            "free_slots",
            "dagster.yaml",
            "run_monitoring.free_slots_after_run_end_seconds is not set: cancelled runs keep their "
            "places in pools",
            "in dagster.yaml: run_monitoring: {free_slots_after_run_end_seconds: 10}",
        )


def _daemons(facts: Facts) -> Iterator[Finding]:
    dead = [daemon for daemon in facts.daemons if not daemon.alive]
    if dead:
        last = max((daemon.last for daemon in dead if daemon.last), default=None)
        since = "never" if last is None else f"last at {utc(last)}"
        yield _error(
            "daemon_dead",
            ", ".join(daemon.name for daemon in dead),
            f"no recent heartbeat ({since}): nothing is paused in Dagster, and nothing resumes",
            "start the daemon: dagster-daemon run -w workspace.yaml (with 'tidegate up': start "
            "that)",
        )
    for daemon in facts.daemons:
        # Dagster itself waits for half an hour before it calls a daemon dead.
        if daemon.alive and daemon.last is not None and facts.now - daemon.last > SILENT_AFTER:
            yield _warning(
                "daemon_silent",
                daemon.name,
                f"its last heartbeat was at {utc(daemon.last)}: it is busy, or dead",
                "see that the process of dagster-daemon runs, and start it if it does not",
            )
        if daemon.alive and daemon.error is not None:
            yield _warning(
                "daemon_failing",
                daemon.name,
                daemon.error,
                "read the daemon's log; the page Deployment > Daemons has the whole error",
            )


def _store(facts: Facts) -> Iterator[Finding]:
    store = facts.store
    if store.error is not None:
        yield _error(
            "store_unreachable",
            store.url,
            store.error,
            "set TIDEGATE_STORE_URL (or DAGSTER_HOME) as the daemon has it, and check that the "
            "database runs",
        )
    elif store.refusal is not None:
        what, _, remedy = store.refusal.rpartition(": ")
        yield _error("store_revision", store.url, what, remedy)


def _workspace(facts: Facts) -> Iterator[Finding]:
    if facts.workspace_error is not None:
        yield _error(
            "workspace_unreadable",
            "workspace",
            facts.workspace_error,
            "name the workspace file of the deployment: tidegate doctor --workspace FILE",
        )
        return
    for location in facts.locations:
        if location.error is not None:
            yield _error(
                "location_broken",
                location.name,
                f"it can't be loaded: {_first_line(location.error)}",
                "mend the code (dagster definitions validate shows the whole error), or start "
                "its code server; its schedules stay as the gate has set them until then",
            )
    seen = facts.store.situation
    if seen is None or facts.instance_error is not None:
        return
    here = {location.name for location in facts.locations}
    gone: dict[str, list[str]] = {}
    for campaign in seen.campaigns.values():
        if campaign.spec.location not in here:
            gone.setdefault(campaign.spec.location, []).append(campaign.spec.name)
    for name, campaigns in gone.items():
        yield _warning(
            "location_gone",
            name,
            f"the store knows it for {', '.join(sorted(campaigns))}, and this workspace lacks it",
            "look at it with the workspace file that has it, or put it back: what the gate "
            "stopped of it stays stopped until then. If it is gone for good: "
            f"tidegate store forget {shlex.quote(name)}",
        )


def _sensors(facts: Facts) -> Iterator[Finding]:
    for location in facts.locations:
        if location.error is not None or not (location.sensors or location.reaches_breakers):
            continue
        parts = {sensor.part for sensor in location.sensors}
        for part in PARTS:
            if part not in parts:
                yield _error(
                    "sensor_missing",
                    location.name,
                    f"it has no {part} sensor",
                    f"add build_{part}_sensor(campaigns=...) to the sensors of its Definitions",
                )
        for sensor in location.sensors:
            if not sensor.runs:
                yield _error(
                    "sensor_stopped",
                    f"{location.name}: {sensor.name}",
                    f"the {sensor.part} sensor is switched off",
                    f"dagster sensor start {sensor.name} -w workspace.yaml -l {location.name} (or "
                    "the page Automation)",
                )
            elif sensor.error is not None:
                yield _error(
                    "sensor_failing",
                    f"{location.name}: {sensor.name}",
                    f"its last tick failed: {_first_line(sensor.error)}",
                    "the page Automation has the whole error of the tick; Dagster alerts nobody "
                    "of it",
                )


def _gate(facts: Facts) -> Iterator[Finding]:
    seen = facts.store.situation
    if seen is None:
        return
    here = {location.name for location in facts.locations}
    for gate in seen.stale_gates():
        if not here or gate.location in here:  # others are told as location_gone
            yield _error(
                "gate_stale",
                gate.location,
                str(gate),
                "see the findings of daemon, code location and sensors; without any, read the "
                "ticks of the sensors in the page Automation",
            )
    for location in facts.locations:
        known = any(c.spec.location == location.name for c in seen.campaigns.values())
        if location.sensors and location.error is None and not known:
            yield _error(
                "gate_stale",
                location.name,
                "no gate of it has told the store of its campaigns yet",
                "start the daemon and its sensors; a pause sensor tells of its campaigns with its "
                "first tick",
            )


def _policies(facts: Facts) -> Iterator[Finding]:
    first: dict[str, LocationCode] = {}
    for location in facts.locations:
        if location.policy_error is not None:
            yield _warning(
                "policies_unreadable",
                location.name,
                location.policy_error,
                "nothing, if its values come from the environment; pools that name services are "
                "then not checked for it",
            )
        if location.store_url is not None and not _same_store(location.store_url, facts.store.url):
            yield _error(
                "store_elsewhere",
                location.name,
                f"its BreakerResource names the store {shown_url(location.store_url)}, "
                f"and this command looks at {facts.store.url}",
                "say --url, or set TIDEGATE_STORE_URL, for the store that the deployment uses",
            )
        for name, policy in location.policies.items():
            other = first.setdefault(name, location)
            if other.policies[name] != policy:
                fields = sorted(
                    key
                    for key, value in policy.model_dump().items()
                    if value != other.policies[name].model_dump()[key]
                )
                yield _warning(
                    "policies_differ",
                    name,
                    f"{other.name} and {location.name} have different {', '.join(fields)}: who "
                    "sees the failure decides",
                    "give both the same policy",
                )


def _ops(facts: Facts) -> Iterator[Finding]:
    for location in facts.locations:
        for job, ops in location.jobs.items():
            for op in ops:
                yield from _op(facts, location, job, op)


def _op(facts: Facts, location: LocationCode, job: str, op: OpCode) -> Iterator[Finding]:
    about = f"{location.name}: {job}.{op.name}"
    named = needs(op.pool, facts.services).services
    reaches = op.resources & location.reaches_breakers
    clients = {key for key in reaches if key in facts.services}
    if reaches and not named and location.policy_error is None:
        has = f"its pool is {op.pool!r}" if op.pool else "it has no pool"
        meant = ", ".join(repr(name) for name in sorted(clients)) or '"<service>"'
        yield _error(
            "pool_missing",
            about,
            f"it reaches the breakers through {', '.join(sorted(reaches))}, and {has}: its runs "
            "are not held in the queue, and a hold on the service does not cover it",
            f"@dg.op(pool=pool({meant}))",
        )
    elif missing := sorted(clients - named):
        yield _warning(
            "pool_lacks_service",
            about,
            f"it uses {', '.join(missing)}, and its pool {op.pool!r} does not name it",
            f"@dg.op(pool=pool({', '.join(repr(name) for name in sorted(clients | named))})), if "
            "it calls it",
        )
    seen = facts.store.situation
    of_campaign = seen is not None and job in seen.campaigns
    services, _, _ = (op.pool or "").partition("@")
    for name in services.split("+"):
        if name and name not in facts.services:
            close = get_close_matches(name, facts.services, n=1, cutoff=0.7)
            if not (reaches or named or (of_campaign and close)):
                continue  # somebody else's pool
            hint = f"did you mean {close[0]!r}?" if close else f"known: {_listed(facts.services)}"
            yield _warning(
                "pool_unknown",
                about,
                f"its pool {op.pool!r} names {name!r}, which no policy is for; {hint}",
                f"correct the pool, or add ServiceConfig(name={name!r}) to the BreakerResource",
            )


def _jobs(facts: Facts) -> Iterator[Finding]:
    seen = facts.store.situation
    for location in facts.locations:
        told = seen is not None and any(
            c.spec.location == location.name for c in seen.campaigns.values()
        )
        for job, ops in location.jobs.items():
            reaches = any(op.resources & location.reaches_breakers for op in ops)
            if seen is not None and told and reaches and job not in seen.campaigns:
                yield _warning(
                    "not_a_campaign",
                    f"{location.name}: {job}",
                    "its ops reach the breakers, and it is no campaign: a run that pauses does "
                    "not resume",
                    f"add Campaign(job={job}) to the campaigns of the three sensors",
                )
            if seen is None or job not in seen.campaigns:
                continue
            pools = {needs(op.pool, facts.services).campaign for op in ops} - {None}
            wrong = sorted(name for name in pools if name and name != job)
            if job not in pools:
                is_called = f"; one has that of {', '.join(wrong)}" if wrong else ""
                yield _warning(
                    "campaign_pool",
                    f"{location.name}: {job}",
                    f"no op of it has its pool{is_called}: a hold on the campaign lets its queued "
                    "runs start, and they pause at their first record",
                    f"@dg.op(pool=pool(..., campaign={job!r})) on one op of it",
                )


def _calls(facts: Facts) -> Iterator[Finding]:
    seen = facts.store.situation
    if seen is None:
        return
    needed = {name for campaign in seen.campaigns.values() for name in campaign.services}
    for name in sorted(facts.store.called - needed):
        yield _warning(
            "calls_without_pool",
            name,
            "it was called lately, and no op of a campaign has it in its pool: nothing waits "
            "while it is down",
            f"find who calls it; if it is an op: @dg.op(pool=pool({name!r}))",
        )


def _same_store(one: str, other: str) -> bool:
    """Whether two URLs mean one database, as far as one can tell without a password."""
    return shown_url(one).split("://")[-1] == shown_url(other).split("://")[-1]


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it does not say why"


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "none"
