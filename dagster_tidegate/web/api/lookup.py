"""Finds what a path names, or suggests similar names."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from dagster_tidegate.control import situation
from dagster_tidegate.control.situation import CampaignSituation, Situation
from dagster_tidegate.control.why import UnknownNameError, find
from dagster_tidegate.holds import Hold, Target, TargetKind, run_name
from dagster_tidegate.store import breakers, campaigns, holds, runs
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.text import did_you_mean
from dagster_tidegate.web.access.identity import Identity
from dagster_tidegate.web.api.authentication import require_owner
from dagster_tidegate.web.api.problems import Code, Problem


def service(conn: Connection, now: datetime, name: str) -> Target:
    """Return a service that has a breaker or a hold.

    Raises:
        Problem: `service_not_found`.
    """
    target = Target(TargetKind.SERVICE, name)
    if name in breakers.read(conn) or holds.live(conn, now, target):
        return target
    return service_in(situation.read(conn, now), name)


def service_in(current: Situation, name: str) -> Target:
    """Return a service of a situation.

    Raises:
        Problem: `service_not_found`.
    """
    return _target(current, TargetKind.SERVICE, name, Code.SERVICE_NOT_FOUND)


def campaign(conn: Connection, now: datetime, name: str) -> CampaignSpec:
    """Return a campaign; its ops and triggers may be missing.

    Raises:
        Problem: `campaign_not_found`.
    """
    spec = campaigns.find(conn, name)
    return campaign_in(situation.read(conn, now), name).spec if spec is None else spec


def campaign_in(current: Situation, name: str) -> CampaignSituation:
    """Return a campaign of a situation.

    Raises:
        Problem: `campaign_not_found`.
    """
    target = _target(current, TargetKind.CAMPAIGN, name, Code.CAMPAIGN_NOT_FOUND)
    return current.campaigns[target.name]


def own_campaign(conn: Connection, now: datetime, name: str, identity: Identity) -> CampaignSpec:
    """Return a campaign that an identity may control.

    Raises:
        Problem: `campaign_not_found` or `forbidden`.
    """
    spec = campaign(conn, now, name)
    require_owner(identity, spec)
    return spec


def run(conn: Connection, now: datetime, campaign_name: str, partition: str) -> CampaignRun:
    """Return a campaign run.

    Raises:
        Problem: `campaign_not_found` or `campaign_run_not_found`.
    """
    campaign(conn, now, campaign_name)
    return _run(conn, campaign_name, partition)


def run_by_id(conn: Connection, id_: int) -> CampaignRun:
    """Return a campaign run.

    Raises:
        Problem: `campaign_run_not_found`.
    """
    campaign_run = runs.get(conn, id_)
    if campaign_run is None:
        raise Problem(Code.CAMPAIGN_RUN_NOT_FOUND, f"there is no campaign run {id_}")
    return campaign_run


def own_run(
    conn: Connection, now: datetime, campaign_name: str, partition: str, identity: Identity
) -> CampaignRun:
    """Return a campaign run that an identity may control.

    Raises:
        Problem: `campaign_not_found`, `campaign_run_not_found` or `forbidden`.
    """
    spec = campaign(conn, now, campaign_name)
    campaign_run = _run(conn, campaign_name, partition)
    require_owner(identity, spec)
    return campaign_run


def own_campaigns_of(
    conn: Connection, now: datetime, service_name: str, identity: Identity
) -> list[CampaignSpec]:
    """Return the campaigns that need a service, if an identity may control all of them.

    Raises:
        Problem: `service_not_found` or `forbidden`.
    """
    service(conn, now, service_name)
    specs = [spec for spec in campaigns.read(conn) if spec.services({service_name})]
    for spec in specs:
        require_owner(identity, spec)
    return specs


def require_control(conn: Connection, identity: Identity, target: Target) -> None:
    """Refuse an identity that may not control the campaign of a target.

    Raises:
        Problem: `forbidden`.
    """
    if target.kind in (TargetKind.CAMPAIGN, TargetKind.CAMPAIGN_RUN):
        spec = campaigns.find(conn, target.name.partition("/")[0])
        if spec is not None:
            require_owner(identity, spec)


def hold(conn: Connection, id_: int) -> Hold:
    """Return a hold, live or released.

    Raises:
        Problem: `hold_not_found`.
    """
    stored = holds.get(conn, id_)
    if stored is None:
        raise Problem(Code.HOLD_NOT_FOUND, f"there is no hold {id_}: see the list of holds")
    return stored


@contextmanager
def unknown_is(code: Code, name: str) -> Iterator[None]:
    """Answer with a problem if a name is unknown.

    Raises:
        Problem: With `code`.
    """
    try:
        yield
    except UnknownNameError as error:
        raise Problem(code, str(error), name=name) from error


def _target(current: Situation, kind: TargetKind, name: str, unknown: Code) -> Target:
    with unknown_is(unknown, name):
        return find(current, name, {}, kind)


def _run(conn: Connection, campaign_name: str, partition: str) -> CampaignRun:
    campaign_run = runs.find(conn, campaign_name, partition)
    if campaign_run is not None:
        return campaign_run
    partitions = runs.newest_partitions(conn, campaign_name)
    hint = did_you_mean(partition, partitions, "create it, or see the list of runs")
    name = run_name(campaign_name, partition)
    raise Problem(
        Code.CAMPAIGN_RUN_NOT_FOUND, f"no campaign run is named {name!r}; {hint}", name=name
    )
