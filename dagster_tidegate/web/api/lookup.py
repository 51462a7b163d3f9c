"""Finds what a path names, or says what would be right."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from dagster_tidegate.control import situation
from dagster_tidegate.control.operations import (
    ChangedMeanwhileError,
    NotPausableError,
    UnderWayError,
)
from dagster_tidegate.control.situation import CampaignSituation, Situation
from dagster_tidegate.control.why import UnknownNameError, find
from dagster_tidegate.holds import Hold, Target, TargetKind, run_name
from dagster_tidegate.store import breakers, campaigns, holds, runs
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.holds import NotYourHoldError
from dagster_tidegate.store.runs import CampaignRun, MoveNotAllowedError
from dagster_tidegate.text import did_you_mean
from dagster_tidegate.web.api.context import Context
from dagster_tidegate.web.api.problems import Code, Problem, later

_REFUSALS: Mapping[type[Exception], Code] = {
    NotPausableError: Code.NOT_PAUSABLE,
    MoveNotAllowedError: Code.TRANSITION_NOT_ALLOWED,
    ChangedMeanwhileError: Code.CHANGED_MEANWHILE,
    UnderWayError: Code.UNDER_WAY,
    NotYourHoldError: Code.HELD_BY_BREAKER,
}


def service(here: Context, conn: Connection, name: str) -> Target:
    """Return a service that has a breaker or a hold.

    Raises:
        Problem: `service_not_found`.
    """
    target = Target(TargetKind.SERVICE, name)
    if name in breakers.read(conn) or holds.live_on(conn, here.store.now(conn), target):
        return target
    return service_in(situation.read(conn, here.store.now(conn)), name)


def service_in(seen: Situation, name: str) -> Target:
    """Return a service of a situation that has been read anyway.

    Raises:
        Problem: `service_not_found`.
    """
    return _found(seen, TargetKind.SERVICE, name, Code.SERVICE_NOT_FOUND)


def campaign(here: Context, conn: Connection, name: str) -> CampaignSpec:
    """Return a campaign; perhaps without its ops and triggers.

    Raises:
        Problem: `campaign_not_found`.
    """
    found = campaigns.find(conn, name)
    if found is not None:
        return found
    return campaign_in(situation.read(conn, here.store.now(conn)), name).spec


def campaign_in(seen: Situation, name: str) -> CampaignSituation:
    """Return a campaign of a situation that has been read anyway.

    Raises:
        Problem: `campaign_not_found`.
    """
    return seen.campaigns[_found(seen, TargetKind.CAMPAIGN, name, Code.CAMPAIGN_NOT_FOUND).name]


def run(
    here: Context, conn: Connection, campaign_name: str, partition: str
) -> tuple[CampaignSpec, CampaignRun]:
    """Return a campaign run and its campaign.

    Raises:
        Problem: `campaign_not_found` or `campaign_run_not_found`.
    """
    spec = campaign(here, conn, campaign_name)
    found = runs.find(conn, campaign_name, partition)
    if found is not None:
        return spec, found
    there = runs.newest_partitions(conn, campaign_name)
    hint = did_you_mean(partition, there, "create it, or see the list of runs")
    name = run_name(campaign_name, partition)
    raise Problem(
        Code.CAMPAIGN_RUN_NOT_FOUND, f"no campaign run is named {name!r}; {hint}", name=name
    )


def hold(conn: Connection, number: int) -> Hold:
    """Return a hold, live or not.

    Raises:
        Problem: `hold_not_found`.
    """
    found = holds.get(conn, number)
    if found is None:
        raise Problem(Code.HOLD_NOT_FOUND, f"there is no hold {number}: see the list of holds")
    return found


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what steering refuses into problems.

    Raises:
        Problem: What was refused.
    """
    try:
        yield
    except tuple(_REFUSALS) as error:
        raise Problem(_REFUSALS[type(error)], str(error)) from error


@contextmanager
def launching() -> Iterator[None]:
    """Turn what Dagster refuses into problems.

    Raises:
        Problem: What was refused.
    """
    from dagster_tidegate.dagster_api.workspace import LaunchError, UnreachableError

    try:
        yield
    except UnreachableError as error:
        raise Problem(Code.DAGSTER_UNAVAILABLE, str(error), headers=later()) from error
    except LaunchError as error:
        raise Problem(Code.NOT_LAUNCHABLE, str(error)) from error


def _found(seen: Situation, kind: TargetKind, name: str, unknown: Code) -> Target:
    try:
        return find(seen, name, {}, kind)
    except UnknownNameError as error:
        raise Problem(unknown, str(error), name=name) from error
