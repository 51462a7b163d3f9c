"""What the routes that hold and release have in common."""

from collections.abc import Callable, Sequence
from datetime import datetime

from dagster_tidegate.control import operations
from dagster_tidegate.control.models import EffectOut, Held, HoldOut, Released
from dagster_tidegate.control.why import why
from dagster_tidegate.holds import Hold, Target
from dagster_tidegate.store.database import Connection
from dagster_tidegate.text import utc
from dagster_tidegate.web.access.identity import Identity, Role
from dagster_tidegate.web.api.authentication import require_role
from dagster_tidegate.web.api.context import Context
from dagster_tidegate.web.api.lookup import refusals
from dagster_tidegate.web.api.models import NewHold, NewHoldOnTarget
from dagster_tidegate.web.api.models import Release as HowToRelease
from dagster_tidegate.web.api.problems import Code, Problem

Check = Callable[[Connection], Target]
"""Returns what is to be held or released, or refuses with a problem."""


def end_of(body: NewHold | NewHoldOnTarget, now: datetime) -> datetime | None:
    """Return when a hold is to end by itself (UTC), or None.

    Raises:
        Problem: `invalid`, if that is over.
    """
    ends_at = body.ends_at(now)
    if ends_at is not None and ends_at <= now:
        raise Problem(Code.INVALID, f"expires_at: {utc(ends_at)} is over: it is {utc(now)}")
    return ends_at


def hold(
    here: Context,
    identity: Identity,
    body: NewHold | NewHoldOnTarget,
    check: Check,
    *,
    dry_run: bool,
) -> Held:
    """Hold something.

    Args:
        here: What the routes work with.
        identity: Who holds it.
        body: Why, and until when.
        check: Returns what to hold, or refuses.
        dry_run: Only say what it would do.
    """

    def place(conn: Connection, now: datetime) -> Hold:
        return operations.hold(
            conn,
            now,
            check(conn),
            reason=body.reason,
            actor=identity.name,
            expires_at=end_of(body, now),
        )

    return placed(here, check, place, dry_run=dry_run)


def placed(
    here: Context, check: Check, place: Callable[[Connection, datetime], Hold], *, dry_run: bool
) -> Held:
    """Place a hold, or find out what it would do.

    A real one is one short transaction, whatever there is in the store: a pause must not wait.

    Args:
        here: What the routes work with.
        check: Returns what is held, or refuses.
        place: Places the hold.
        dry_run: Only say what it would do.
    """
    with refusals():
        if not dry_run:
            with here.store.begin() as conn:
                made = place(conn, here.store.now(conn))
            return Held(dry_run=False, hold=HoldOut.model_validate(made), campaigns=None)
        with here.store.read() as conn:
            target = check(conn)
        change = operations.change(here.store, target, place, dry_run=True)
    shown = [EffectOut.model_validate(effect) for effect in change.effects]
    return Held(dry_run=True, hold=HoldOut.model_validate(change.made), campaigns=shown)


def release(
    here: Context,
    identity: Identity,
    how: HowToRelease,
    check: Check,
    *,
    dry_run: bool,
) -> Released:
    """Release what people hold.

    Args:
        here: What the routes work with.
        identity: Who releases it.
        how: Whether by force.
        check: Returns what to release, or refuses.
        dry_run: Only say what it would do.
    """
    if how.force:
        require_role(identity, Role.ADMIN)

    def let_go(conn: Connection, now: datetime) -> tuple[Target, Sequence[Hold]]:
        target = check(conn)
        return target, operations.release(conn, now, target, actor=identity.name, force=how.force)

    with refusals():
        if dry_run:
            with here.store.read() as conn:
                target = check(conn)
            change = operations.change(here.store, target, let_go, dry_run=True)
            (_, released), seen = change.made, change.after
            shown = [EffectOut.model_validate(effect) for effect in change.effects]
        else:
            with here.store.begin() as conn:
                target, released = let_go(conn, here.store.now(conn))
            with here.reading() as (_, seen):
                pass
            shown = None
    return Released(
        dry_run=dry_run,
        released=[HoldOut.model_validate(hold) for hold in released],
        still_held_by=[HoldOut.model_validate(reason.hold) for reason in why(seen, target).reasons],
        campaigns=shown,
    )
