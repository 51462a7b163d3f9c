"""Finds what a path names, or says what would be right."""

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches

import sqlalchemy as sa

from dagster_tidegate.api.context import Context
from dagster_tidegate.api.problems import RETRY_AFTER_S, Code, Problem
from dagster_tidegate.holds import Hold, Target, TargetKind, run_name
from dagster_tidegate.steering import ChangedMeanwhileError, NotPausableError, UnderWayError
from dagster_tidegate.store import breakers, campaigns, holds, runs
from dagster_tidegate.store.campaigns import CampaignShape
from dagster_tidegate.store.holds import NotYourHoldError
from dagster_tidegate.store.runs import CampaignRun, MoveNotAllowedError
from dagster_tidegate.views import situation
from dagster_tidegate.views.why import UnknownNameError, find

MOST_SUGGESTED_FROM = 1000


def service(here: Context, conn: sa.Connection, name: str) -> Target:
    """Return a service that has a breaker or a hold.

    Raises:
        Problem: `service_not_found`.
    """
    target = Target(TargetKind.SERVICE, name)
    if name in breakers.read(conn):
        return target
    if holds.live_on(conn, here.store.now(conn), target):
        return target
    raise _unknown(here, conn, name, TargetKind.SERVICE, Code.SERVICE_NOT_FOUND)


def campaign(here: Context, conn: sa.Connection, name: str) -> CampaignShape:
    """Return a campaign, without its ops and triggers.

    Raises:
        Problem: `campaign_not_found`.
    """
    found = campaigns.find(conn, name)
    if found is not None:
        return found
    raise _unknown(here, conn, name, TargetKind.CAMPAIGN, Code.CAMPAIGN_NOT_FOUND)


def run(
    here: Context, conn: sa.Connection, campaign_name: str, partition: str
) -> tuple[CampaignShape, CampaignRun]:
    """Return a campaign run and its campaign.

    Raises:
        Problem: `campaign_not_found` or `campaign_run_not_found`.
    """
    shape = campaign(here, conn, campaign_name)
    found = runs.find(conn, campaign_name, partition)
    if found is not None:
        return shape, found
    some = runs.newest(conn, campaign=campaign_name, limit=MOST_SUGGESTED_FROM)
    close = get_close_matches(partition, [each.partition for each in some], n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "create it, or see the list of runs"
    name = run_name(campaign_name, partition)
    raise Problem(
        Code.CAMPAIGN_RUN_NOT_FOUND, f"no campaign run is named {name!r}; {hint}", name=name
    )


def hold(conn: sa.Connection, number: int) -> Hold:
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
    except NotPausableError as error:
        raise Problem(Code.NOT_PAUSABLE, str(error)) from error
    except MoveNotAllowedError as error:
        raise Problem(Code.TRANSITION_NOT_ALLOWED, str(error)) from error
    except ChangedMeanwhileError as error:
        raise Problem(Code.CHANGED_MEANWHILE, str(error)) from error
    except UnderWayError as error:
        raise Problem(Code.UNDER_WAY, str(error)) from error
    except NotYourHoldError as error:
        raise Problem(Code.HELD_BY_BREAKER, str(error)) from error


@contextmanager
def launching() -> Iterator[None]:
    """Turn what Dagster refuses into problems.

    Raises:
        Problem: What was refused.
    """
    from dagster_tidegate.workspace import LaunchError, UnreachableError

    try:
        yield
    except UnreachableError as error:
        headers = {"Retry-After": str(RETRY_AFTER_S)}
        raise Problem(Code.DAGSTER_UNAVAILABLE, str(error), headers=headers) from error
    except LaunchError as error:
        raise Problem(Code.NOT_LAUNCHABLE, str(error)) from error


def _unknown(
    here: Context, conn: sa.Connection, name: str, kind: TargetKind, code: Code
) -> Problem:
    seen = situation.read(conn, here.store.now(conn))
    try:
        find(seen, name, {}, kind)
    except UnknownNameError as error:
        return Problem(code, str(error), name=name)
    return Problem(code, f"{name!r} has just appeared: try again", name=name)
