"""Checks of a deployment. Pure: facts go in, findings come out. Each check finds one problem."""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from enum import StrEnum

from dagster_tidegate.control.leftovers import abandoned_services, undefined_campaigns
from dagster_tidegate.dagster_api.locations import LocationCode, OpCode
from dagster_tidegate.doctor.facts import Facts, Version
from dagster_tidegate.pools import needs
from dagster_tidegate.store.database import shown_url
from dagster_tidegate.store.heartbeats import PARTS
from dagster_tidegate.text import utc

SILENT_AFTER = timedelta(minutes=2)
"""A daemon sends a heartbeat twice a minute."""
_AN_ERROR = re.compile(r"[\w.]*(Error|Exception)\b")
"""The line of a stack trace with the error itself, such as `module.SomeError: message`."""


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"  # pausing or resuming fails, or is about to
    WARNING = "warning"  # it works, but perhaps not as intended


ERROR, WARNING = Severity.ERROR, Severity.WARNING


@dataclass(frozen=True)
class Finding:
    """A problem of a deployment.

    Attributes:
        code: Its stable name; `docs/cli.md` lists them.
        what: The problem, with the evidence.
        do: The fix: the exact setting or command.
    """

    code: str
    severity: Severity
    about: str
    what: str
    do: str


Problems = Iterator[tuple[str, str, str]]
"""What a check yields for each problem: `about`, `what` and `do` of the finding."""
_CHECKS: list[tuple[str, Severity, Callable[[Facts], Problems]]] = []
CODES: dict[str, str] = {}
"""The meaning of each finding's code."""
BLIND_SPOTS = (
    "If the pool of an op names one service and the op calls another, this is detected only if the "
    "op uses a client resource that is named after the other service.",
    "Calls that do not go through a breaker are not detected.",
    "TIDEGATE_ENABLED is read in this process; the daemon and the workers may have another value.",
)


def diagnose(facts: Facts) -> list[Finding]:
    """Return the problems of a deployment, errors first; what is unknown is not checked."""
    # An asset is in several jobs.
    findings = dict.fromkeys(
        Finding(code, severity, *problem)
        for code, severity, check in _CHECKS
        for problem in check(facts)
    )
    return sorted(findings, key=lambda finding: finding.severity is not ERROR)


def unchecked(facts: Facts) -> list[str]:
    """Return what could not be checked, and what never can."""
    lines = []
    if facts.instance_error is not None:
        lines.append("Dagster's settings and daemons were not checked: see instance_unreadable.")
    if facts.workspace_error is not None or facts.instance_error is not None:
        lines.append("Code locations, sensors, pools of ops and policies were not checked.")
    if facts.store.situation is None:
        lines.append(
            "The gate and its campaigns were not checked: see the findings about the store."
        )
    return [*lines, *BLIND_SPOTS]


def _check(
    code: str, severity: Severity, meaning: str
) -> Callable[[Callable[[Facts], Problems]], Callable[[Facts], Problems]]:
    """Register a check under the code of its findings."""

    def register(check: Callable[[Facts], Problems]) -> Callable[[Facts], Problems]:
        _CHECKS.append((code, severity, check))
        CODES[code] = meaning
        return check

    return register


@_check("python_version", ERROR, "This Python version is not supported.")
def _python_version(facts: Facts) -> Problems:
    if not facts.python.fits:
        yield (
            "python",
            f"Python is {facts.python.installed}; supported: {facts.python.supported}",
            f"recreate the environment with Python {facts.python.supported}",
        )


@_check(
    "dagster_version", ERROR, "Dagster, here or in a code location, has an unsupported version."
)
def _dagster_version(facts: Facts) -> Problems:
    versions = {"this environment": facts.dagster.installed}
    for location in facts.locations:
        if location.dagster_version is not None:
            versions[f"code location {location.name}"] = location.dagster_version
    supported = facts.dagster.supported
    for environment, version in versions.items():
        if not Version(version, supported).fits:
            yield (
                environment,
                f"Dagster is {version}; supported: {supported}",
                f"pip install 'dagster{supported}' in {environment}",
            )


@_check("kill_switch", WARNING, "`TIDEGATE_ENABLED` is false: holds are ignored.")
def _kill_switch(facts: Facts) -> Problems:
    if not facts.enabled:
        yield (
            "TIDEGATE_ENABLED",
            "it is false here: processes with this setting trip no breaker and ignore holds",
            "unset TIDEGATE_ENABLED, or set it to true, in the environment of the daemon, the "
            "code locations and the workers, and restart them",
        )


@_check("instance_unreadable", ERROR, "The Dagster instance can't be read.")
def _instance_unreadable(facts: Facts) -> Problems:
    if facts.instance_error is not None:
        yield (
            "Dagster instance",
            facts.instance_error,
            "start dg dev or tidegate dev in this project, or set DAGSTER_HOME to the directory "
            "with the instance's dagster.yaml, and check that its storage is reachable",
        )


@_check("run_coordinator", ERROR, "Runs start immediately instead of going through the queue.")
def _run_coordinator(facts: Facts) -> Problems:
    if facts.settings is not None and not facts.settings.queues:
        yield (
            "dagster.yaml",
            f"the run coordinator is {facts.settings.run_coordinator}: runs start immediately, so "
            "nothing can be held in the queue",
            _in_dagster_yaml(
                "run_coordinator: {module: dagster.core.run_coordinator, class: "
                "QueuedRunCoordinator}"
            ),
        )


@_check("pool_granularity", ERROR, "Pools hold back steps instead of whole runs.")
def _pool_granularity(facts: Facts) -> Problems:
    if facts.settings is not None and facts.settings.pool_granularity != "run":
        yield (
            "dagster.yaml",
            f"concurrency.pools.granularity is {facts.settings.pool_granularity or 'not set'}: "
            "runs of a held service start and occupy a worker",
            _in_dagster_yaml("concurrency: {pools: {granularity: run}}"),
        )


@_check("run_buffer", ERROR, "The queue lets more runs through than a pool's limit.")
def _run_buffer(facts: Facts) -> Problems:
    if facts.settings is not None and facts.settings.run_buffer:
        yield (
            "dagster.yaml",
            f"the queue lets {facts.settings.run_buffer} runs through beyond a pool's limit, even "
            "if the limit is 0",
            _in_dagster_yaml(
                "remove concurrency.pools.op_granularity_run_buffer and run_coordinator's "
                "op_concurrency_slot_buffer, or set them to 0"
            ),
        )


@_check("run_monitoring", ERROR, "Run monitoring is disabled.")
def _run_monitoring(facts: Facts) -> Problems:
    if facts.settings is not None and not facts.settings.run_monitoring:
        yield (
            "dagster.yaml",
            "run monitoring is disabled: a run whose worker died keeps its campaign run forever",
            _in_dagster_yaml(
                "run_monitoring: {enabled: true, free_slots_after_run_end_seconds: 10}"
            ),
        )


@_check("free_slots", ERROR, "Cancelled runs keep their pool slots.")
def _free_slots(facts: Facts) -> Problems:
    settings = facts.settings
    if settings and settings.run_monitoring and settings.free_slots_after_s is None:
        yield (
            "dagster.yaml",
            "run_monitoring.free_slots_after_run_end_seconds is not set: cancelled runs keep their "
            "pool slots",
            _in_dagster_yaml("run_monitoring: {free_slots_after_run_end_seconds: 10}"),
        )


@_check("daemon_dead", ERROR, "A daemon that the instance needs has no recent heartbeat.")
def _daemon_dead(facts: Facts) -> Problems:
    dead = [daemon for daemon in facts.daemons if not daemon.alive]
    if dead:
        last = max((daemon.last for daemon in dead if daemon.last), default=None)
        since = "never" if last is None else f"last at {utc(last)}"
        yield (
            ", ".join(daemon.name for daemon in dead),
            f"no recent heartbeat ({since}): nothing is paused in Dagster, and nothing resumes",
            f"start the daemon: {_command('dagster-daemon run', facts)}",
        )


@_check("daemon_silent", WARNING, "A daemon has had no heartbeat for two minutes: busy or dead.")
def _daemon_silent(facts: Facts) -> Problems:
    # Dagster itself calls a daemon dead only after half an hour. All of them are in one process, so
    # that they fall silent together.
    silent = [
        daemon
        for daemon in facts.daemons
        if daemon.alive and daemon.last is not None and facts.now - daemon.last > SILENT_AFTER
    ]
    last = max((daemon.last for daemon in silent if daemon.last), default=None)
    if last is not None:
        yield (
            ", ".join(daemon.name for daemon in silent),
            f"last heartbeat at {utc(last)}: busy or dead",
            "check that the dagster-daemon process is running, and start it if not: "
            + _command("dagster-daemon run", facts),
        )


@_check("daemon_failing", WARNING, "A daemon reports errors.")
def _daemon_failing(facts: Facts) -> Problems:
    for daemon in facts.daemons:
        if daemon.alive and daemon.error is not None:
            yield (
                daemon.name,
                daemon.error,
                "read the daemon's log; the page Deployment > Daemons has the whole error",
            )


@_check("store_unreachable", ERROR, "The store can't be read.")
def _store_unreachable(facts: Facts) -> Problems:
    if facts.store.error is not None:
        yield (
            facts.store.url,
            facts.store.error,
            "set TIDEGATE_STORE_URL (or DAGSTER_HOME) as for the daemon, and check that the "
            "database is running",
        )


@_check("store_revision", ERROR, "This version can't use the schema of the store.")
def _store_revision(facts: Facts) -> Problems:
    if facts.store.error is None and facts.store.refusal is not None:
        what, _, remedy = facts.store.refusal.rpartition(": ")
        yield facts.store.url, what, remedy


@_check("store_elsewhere", ERROR, "A code location uses another store than this command.")
def _store_elsewhere(facts: Facts) -> Problems:
    for location in facts.locations:
        url = location.store_url
        if url is not None and not _same_store(url, facts.store.url):
            yield (
                location.name,
                f"its BreakerResource uses the store {shown_url(url)}, and this command uses "
                f"{facts.store.url}",
                "use --url, or set TIDEGATE_STORE_URL, to name the store of the deployment",
            )


@_check("workspace_unreadable", ERROR, "The workspace can't be read.")
def _workspace_unreadable(facts: Facts) -> Problems:
    if facts.workspace_error is not None:
        yield (
            "workspace",
            facts.workspace_error,
            "name the code of the deployment: tidegate doctor --workspace FILE, --module-name "
            "MODULE or --python-file FILE",
        )


@_check("location_broken", ERROR, "A code location can't be loaded.")
def _location_broken(facts: Facts) -> Problems:
    for location in facts.locations:
        if location.error is not None:
            yield (
                location.name,
                f"it can't be loaded: {_last_line(location.error)}",
                "fix the code (dagster definitions validate shows the whole error), or start its "
                "code server; until then its schedules stay as the gate has set them",
            )


@_check("location_gone", WARNING, "The store knows a location that is not in the workspace.")
def _location_gone(facts: Facts) -> Problems:
    situation = facts.store.situation
    if situation is None or facts.workspace_error or facts.instance_error is not None:
        return
    campaigns: dict[str, list[str]] = {}
    for campaign in situation.campaigns.values():
        campaigns.setdefault(campaign.spec.location, []).append(campaign.spec.name)
    taken: dict[str, list[str]] = {}
    for takeover in situation.takeovers:
        taken.setdefault(takeover.location, []).append(str(takeover))
    loaded = {location.name for location in facts.locations}
    running = {beat.location for beat in situation.heartbeats if not situation.stale(beat.at)}
    for name in sorted({*campaigns, *taken} - loaded - {""}):
        has = ", ".join(sorted(campaigns.get(name, ()))) or "none"
        if name in running - situation.detached:
            yield (
                name,
                f"its gate is running (campaigns: {has}), and this command has loaded "
                f"{', '.join(sorted(loaded)) or 'nothing'} instead: other code than the daemon "
                "has, or the same under another name",
                "name the code as the daemon does, with --workspace FILE or --module-name MODULE, "
                f"and give it the name there too, location_name: {name}",
            )
            continue
        left = f"; as its gate left them: {', '.join(taken[name])}" if name in taken else ""
        quoted = shlex.quote(name)
        back = f"tidegate detach --location {quoted}, then " if name in taken else ""
        yield (
            name,
            f"the store has its campaigns ({has}), and the workspace does not contain it{left}",
            "if it was removed: "
            f"{back}tidegate store forget {quoted}. Otherwise name the code that contains it, or "
            "restore it",
        )


@_check("campaign_gone", WARNING, "A campaign that no code location defines has paused runs.")
def _campaign_gone(facts: Facts) -> Problems:
    if facts.store.situation is not None:
        for left in undefined_campaigns(facts.store.situation):
            yield left.name, f"it {left.what}", f"{left.do}, or define the campaign again"


@_check("service_gone", ERROR, "A breaker holds a service that nothing can try.")
def _service_gone(facts: Facts) -> Problems:
    if facts.store.situation is None:
        return
    unread = facts.instance_error or facts.workspace_error or not facts.locations
    is_known = not unread and all(
        location.error is None and location.policy_error is None for location in facts.locations
    )
    policies = {name for location in facts.locations for name in location.policies}
    for left in abandoned_services(facts.store.situation, policies if is_known else None):
        yield left.name, f"it {left.what}", f"{left.do}, or define the service again"


@_check("service_denied", ERROR, "A service refuses this client until something is repaired.")
def _service_denied(facts: Facts) -> Problems:
    situation = facts.store.situation
    for breaker in situation.breakers.values() if situation is not None else ():
        if breaker.remedy is not None:
            said = f"; it answered: {breaker.answer}" if breaker.answer else ""
            yield (
                breaker.name,
                f"it refuses this client ({breaker.reason}){said}",
                f"repair what it names (key, credits, plan or address), then: {breaker.remedy}",
            )


@_check("sensor_missing", ERROR, "A code location lacks a sensor of the gate.")
def _sensor_missing(facts: Facts) -> Problems:
    for location in _gated(facts):
        for part in PARTS:
            if part not in {sensor.part for sensor in location.sensors}:
                yield (
                    location.name,
                    f"it has no {part} sensor",
                    "build_definitions(defs, services=[...]) adds it",
                )


@_check("sensor_stopped", ERROR, "A sensor of the gate is stopped.")
def _sensor_stopped(facts: Facts) -> Problems:
    for location in _gated(facts):
        for sensor in location.sensors:
            if not sensor.runs:
                start = f"dagster sensor start {sensor.name} -l {location.name}"
                yield (
                    f"{location.name}: {sensor.name}",
                    f"the {sensor.part} sensor is stopped",
                    f"{_command(start, facts)} (or on the page Automation)",
                )


@_check("sensor_failing", ERROR, "The last tick of a sensor of the gate failed.")
def _sensor_failing(facts: Facts) -> Problems:
    for location in _gated(facts):
        for sensor in location.sensors:
            if sensor.runs and sensor.error is not None:
                yield (
                    f"{location.name}: {sensor.name}",
                    f"its last tick failed: {_last_line(sensor.error)}",
                    "see the whole error on the page Automation; Dagster sends no alert for it",
                )


@_check("gate_stale", ERROR, "A sensor of the gate has not completed a tick for a minute.")
def _gate_stale(facts: Facts) -> Problems:
    situation = facts.store.situation
    if situation is None:
        return
    loaded = {location.name for location in facts.locations}
    for gate in situation.stale_gates():
        if not loaded or gate.location in loaded:  # for others, there is location_gone
            yield (
                gate.location,
                str(gate),
                "see the findings about the daemon, the code location and the sensors; if there "
                "are none, check that the dagster-daemon process is running (a dead one has a "
                "finding after two minutes), its log (it may have lost its code server), then the "
                "ticks of the sensors on the page Automation",
            )
    for location in facts.locations:
        if facts.lacks_campaigns(location) and not situation.ticks(location.name):
            yield (
                location.name,
                "its gate has not registered its campaigns yet",
                "start the daemon and the sensors; a pause sensor registers the campaigns at its "
                "first tick",
            )


@_check("no_campaigns", WARNING, "No op or asset of a code location has the pool of a service.")
def _no_campaigns(facts: Facts) -> Problems:
    situation = facts.store.situation
    if situation is None:
        return
    for location in facts.locations:
        if facts.lacks_campaigns(location) and situation.ticks(location.name):
            example = min(location.policies, default="mailer")
            yield (
                location.name,
                "it has a gate and no campaign: none of its ops and assets has the pool of a "
                "service, so nothing pauses",
                f"give those that call a service its pool, such as pool={example!r}; if they have "
                "it, check that they are in the Definitions: dg list defs",
            )


@_check("policies_unreadable", WARNING, "The policies of a code location can't be read.")
def _policies_unreadable(facts: Facts) -> Problems:
    for location in facts.locations:
        if location.policy_error is not None:
            yield (
                location.name,
                location.policy_error,
                "none needed if its values come from the environment; pools that name its "
                "services are then not checked",
            )


@_check("policies_differ", WARNING, "Code locations have different policies for the same service.")
def _policies_differ(facts: Facts) -> Problems:
    first: dict[str, LocationCode] = {}
    for location in facts.locations:
        for name, policy in location.policies.items():
            other = first.setdefault(name, location)
            values, others = policy.model_dump(), other.policies[name].model_dump()
            fields = sorted(key for key in values if values[key] != others[key])
            if fields:
                yield (
                    name,
                    f"{other.name} and {location.name} have different {', '.join(fields)}: the "
                    "policy of the process that makes the call applies",
                    "use the same policy in both",
                )


@_check("pool_missing", ERROR, "An op or asset uses the breakers, but its pool names no service.")
def _pool_missing(facts: Facts) -> Problems:
    for location, job, op in facts.ops:
        reached, clients, named = _services_of(facts, location, op)
        if reached and not named and location.policy_error is None:
            has = f"its pool is {op.pool!r}" if op.pool else "it has no pool"
            services = [repr(name) for name in sorted(clients)] or [_SOME_SERVICE]
            fix = f"{_decorator(op)}(pool=pool({', '.join(services)}))"
            if op.pool:
                adopted = ", ".join(_adopting(each, op.pool) for each in services)
                fix += f", or keep the pool and let it stand for the service: {adopted}"
            yield (
                _place(location, job, op),
                f"it uses the breakers through {', '.join(sorted(reached))}, and {has}: its runs "
                "are not held in the queue, and a hold on the service does not cover it",
                fix,
            )


@_check("pool_unknown", WARNING, "A pool names a service without a policy.")
def _pool_unknown(facts: Facts) -> Problems:
    for location, job, op in facts.ops:
        reached, _, named = _services_of(facts, location, op)
        for name in (op.pool or "").partition("@")[0].split("+"):
            if not name or name in facts.services or op.pool in facts.adopted:
                continue
            close = get_close_matches(name, facts.services, n=1, cutoff=0.7)
            if not (reached or named or (location.sensors and close)):
                continue  # a pool unrelated to Tidegate
            names = ", ".join(sorted(facts.services)) or "none"
            hint = f"did you mean {close[0]!r}?" if close else f"known: {names}"
            yield (
                _place(location, job, op),
                f"its pool {op.pool!r} names {name!r}, which has no policy; {hint}",
                f"correct the pool, add {name!r} to the services, or let the pool stand for a "
                f"service: {_adopting(_SOME_SERVICE, str(op.pool))}",
            )


@_check(
    "pool_lacks_service", WARNING, "An op uses the client of a service that its pool does not name."
)
def _pool_lacks_service(facts: Facts) -> Problems:
    for location, job, op in facts.ops:
        _, clients, named = _services_of(facts, location, op)
        missing = sorted(clients - named)
        if missing and (named or location.policy_error is not None):
            services = ", ".join(repr(name) for name in sorted(clients | named))
            yield (
                _place(location, job, op),
                f"it uses {', '.join(missing)}, and its pool {op.pool!r} does not name it",
                f"if it calls the service: {_decorator(op)}(pool=pool({services}))",
            )


@_check("campaign_pool", WARNING, "An op of a campaign has the pool of another campaign.")
def _campaign_pool(facts: Facts) -> Problems:
    for location in facts.locations:
        for job, ops in location.jobs.items():
            pools = {needs(op.pool, facts.services, facts.adopted).campaign for op in ops} - {None}
            # Without such a pool, runs of a held campaign start, and pause at their first record.
            if not pools or job in pools or not facts.is_campaign(job):
                continue
            others = ", ".join(sorted(name for name in pools if name))
            yield (
                f"{location.name}: {job}",
                f"an op has the pool of {others}, and none has that of {job}: a hold on {others} "
                "holds its runs, too, and a hold on it holds them only once they run",
                f"on one of its ops: @dg.op(pool=pool(..., campaign={job!r}))",
            )


@_check("not_a_campaign", WARNING, "A job uses the breakers but is not a campaign.")
def _not_a_campaign(facts: Facts) -> Problems:
    for location in facts.locations:
        for job, ops in location.jobs.items():
            reaches = any(op.resources & location.reaches_breakers for op in ops)
            if all(op.assets for op in ops):
                continue  # without a pool of a service, it is `pool_missing`
            if reaches and facts.registered(location) and not facts.is_campaign(job):
                yield (
                    f"{location.name}: {job}",
                    "its ops use the breakers, but it is not a campaign: a run that pauses does "
                    "not resume",
                    "give one of its ops the pool of a service, or build_definitions(..., "
                    f"campaigns=[Campaign(job={job!r})])",
                )


@_check("calls_without_pool", WARNING, "A service is called, but no campaign names it in a pool.")
def _calls_without_pool(facts: Facts) -> Problems:
    situation = facts.store.situation
    if situation is None:
        return
    needed = {name for campaign in situation.campaigns.values() for name in campaign.services}
    for name in sorted(facts.store.called - needed):
        yield (
            name,
            "it was called recently, but no op of a campaign names it in its pool: nothing is "
            "held while it is down",
            f"find the caller; if it is an op or asset, give it pool=pool({name!r})",
        )


def _place(location: LocationCode, job: str, op: OpCode) -> str:
    """Name an op for people: by its assets, if it makes any."""
    if not op.assets:
        return f"{location.name}: {job}.{op.name}"
    return f"{location.name}: asset{'' if len(op.assets) == 1 else 's'} {', '.join(op.assets)}"


def _decorator(op: OpCode) -> str:
    return "@dg.asset" if len(op.assets) == 1 else "@dg.multi_asset" if op.assets else "@dg.op"


_SOME_SERVICE = '"<service>"'


def _adopting(service: str, pool: str) -> str:
    return f"ServiceConfig(name={service}, pools=[{pool!r}])"


def _in_dagster_yaml(setting: str) -> str:
    return f"tidegate init, or in dagster.yaml: {setting}; then restart the daemon and webserver"


def _command(command: str, facts: Facts) -> str:
    """Return a command of Dagster's, with the options that find the same code."""
    return f"{command} {facts.code_options}".strip()


def _gated(facts: Facts) -> Iterator[LocationCode]:
    """Yield the code locations that have, or should have, a gate."""
    for location in facts.locations:
        if location.error is None and (location.sensors or location.reaches_breakers):
            yield location


def _services_of(
    facts: Facts, location: LocationCode, op: OpCode
) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Return an op's resources that use breakers, those named like services, and its pool's."""
    reached = op.resources & location.reaches_breakers
    named = needs(op.pool, facts.services, facts.adopted).services
    return reached, reached & facts.services, named


def _same_store(one: str, other: str) -> bool:
    """Return whether two URLs mean one database, passwords and drivers aside."""
    return shown_url(one).split("://")[-1] == shown_url(other).split("://")[-1]


def _last_line(text: str) -> str:
    """The last line that names an error, or else the last: a stack trace may follow."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" ^~")]
    errors = [line for line in lines if _AN_ERROR.match(line)]
    return [*lines, *errors][-1] if lines else "no message"
