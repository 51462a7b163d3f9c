"""Transactions in which routes place and release holds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated

from fastapi import Depends

from dagster_tidegate.control import operations, situation
from dagster_tidegate.control.effects import effects
from dagster_tidegate.control.models import (
    EffectOut,
    Held,
    HoldOut,
    Released,
    ServiceChanged,
    ServiceOut,
)
from dagster_tidegate.control.why import why
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.store import runs
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.web.api.authentication import Operator
from dagster_tidegate.web.api.context import Context
from dagster_tidegate.web.api.models import DryRun, Ending


class HoldChange:
    """What a route does in one transaction, which a dry run rolls back.

    Only a dry run reads the situation before and after: a pause has to be fast, however many
    campaigns there are.
    """

    conn: Connection
    now: datetime

    def __init__(self, context: Context, identity: Operator, dry_run: DryRun = False) -> None:
        self.identity = identity
        self.dry_run = dry_run
        self._store = context.store
        self._before: situation.Situation | None = None
        self._after: situation.Situation | None = None

    @contextmanager
    def begin(self) -> Iterator[tuple[Connection, datetime]]:
        """Open the transaction."""
        with operations.writing(self._store, dry_run=self.dry_run) as conn:
            self.conn, self.now = conn, self._store.now(conn)
            if self.dry_run:
                self._before = situation.read(conn, self.now)
            yield conn, self.now

    def hold(self, target: Target, body: Ending) -> Held:
        """Hold a target, and return the answer."""
        hold = self.place(target, body)
        return Held(dry_run=self.dry_run, hold=hold, campaigns=self._effects(target))

    def place(self, target: Target, body: Ending) -> HoldOut:
        """Hold a target, and return the hold."""
        hold = operations.hold(
            self.conn,
            self.now,
            target,
            reason=body.reason,
            actor=self.identity.name,
            expires_at=body.ends_at(self.now),
        )
        return HoldOut.model_validate(hold)

    def pause(self, run: CampaignRun, body: Ending) -> Held:
        """Hold a campaign run, and return the answer.

        Raises:
            NotPausableError: If it has ended.
        """
        operations.require_pausable(self.conn, run)
        return self.hold(Target(TargetKind.CAMPAIGN_RUN, run.name), body)

    def release(self, target: Target, *, force: bool = False) -> Released:
        """Release the holds of people on a target; `completed` completes the answer.

        Raises:
            NotYourHoldError: If only a breaker holds it, and not `force`.
        """
        released = self.let_go(target, force=force)
        campaigns = self._effects(target)
        return Released(
            dry_run=self.dry_run, released=released, still_held_by=(), campaigns=campaigns
        )

    def let_go(self, target: Target, *, force: bool = False) -> Sequence[HoldOut]:
        """Release the holds of people on a target, and return them."""
        released = operations.release(
            self.conn, self.now, target, actor=self.identity.name, force=force
        )
        return [HoldOut.model_validate(hold) for hold in released]

    def completed(self, answer: Released, target: Target) -> Released:
        """Return the answer with `still_held_by`; to be called after the end of the transaction."""
        with self._store.read() as conn:
            after = self._after or situation.read(conn, self._store.now(conn))
            run = runs.of_target(conn, target)
        reasons = why(after, target, run).reasons
        still_held_by = [HoldOut.model_validate(reason.hold) for reason in reasons]
        return answer.model_copy(update={"still_held_by": still_held_by})

    def service(self, name: str) -> ServiceChanged:
        """Return the answer to a change of a service's breaker."""
        campaigns = self._effects(Target(TargetKind.SERVICE, name))
        after = self._after or situation.read(self.conn, self.now)
        service = ServiceOut.of(after, name)
        return ServiceChanged(dry_run=self.dry_run, service=service, campaigns=campaigns)

    def _effects(self, target: Target) -> Sequence[EffectOut] | None:
        if self._before is None:
            return None
        self._after = situation.read(self.conn, self.now)
        run = runs.of_target(self.conn, target)
        return [
            EffectOut.model_validate(effect)
            for effect in effects(self._before, self._after, target, run)
        ]


Change = Annotated[HoldChange, Depends()]
