"""The op or asset that runs: the services that it calls, and how it ends."""

from typing import TYPE_CHECKING

import dagster as dg

from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.dagster_api.lineage import ancestors, campaign_of, is_resume
from dagster_tidegate.dagster_api.runs import Runs
from dagster_tidegate.dagster_api.steps import StepEnd, current_context
from dagster_tidegate.plugin.attempt import Attempt, CampaignCancelled
from dagster_tidegate.records.host import StopLoop, StopReason
from dagster_tidegate.text import MAX_OP, bounded

if TYPE_CHECKING:
    from dagster_tidegate.plugin.resource import BreakerResource


class BreakerOpenFailure(BreakerOpenError, dg.Failure):
    """What a breaker of a `BreakerResource` raises: a `BreakerOpenError` without Dagster's retries.

    A retry policy would use up its retries within the outage.
    """

    def __init__(self, *args) -> None:
        BreakerOpenError.__init__(self, *args)
        dg.Failure.__init__(self, str(self), allow_retries=False)
        self.args = args  # `Failure` keeps its description there


class Step(StepEnd):
    """The op or asset that runs, as one step of a Dagster run.

    If a breaker's refusal ends it, the run pauses, provided that its pool names a service: by that
    the gate knows that it is to be resumed.
    """

    def __init__(self, context: dg.OpExecutionContext, resource: "BreakerResource") -> None:
        super().__init__(context)
        self._context, self._resource = context, resource
        self._loops, self._called = set[str](), set[str]()
        self._entered = False

    @classmethod
    def of(cls, context: dg.OpExecutionContext, resource: "BreakerResource") -> "Step":
        """Return the step of a context; the same object each time."""
        known = (each for each in context.log.filters if isinstance(each, cls))
        return next(known, None) or cls(context, resource)

    @classmethod
    def current(cls, resource: "BreakerResource") -> "Step | None":
        """Return the step that runs here, or None outside of one."""
        context = current_context()
        return None if context is None else cls.of(context, resource)

    def calls(self, service: str) -> None:
        """Take note of a service that the op is about to call, or of a chain: `a|b`.

        The first call begins the attempt where the run follows another, or ends with the run.

        Raises:
            CampaignPaused, AttemptRefusedError: As `Attempt.begin` does.
            CampaignCancelled: As `Attempt.begin` does; also if Dagster has begun the op again by
                its retry policy after the run was terminated.
        """
        self._pays()
        self._enter()
        self._called.add(service)

    def _pays(self) -> None:
        """Let the campaign that the step works for pay for its calls."""
        self._resource.fleet.state.campaign = campaign_of(self._context.run)

    def _enter(self) -> None:
        if self._entered:
            return
        self._entered = True
        run = self._context.run
        ends = self._context.retry_number and Runs(self._context.instance).is_canceling(run.run_id)
        if self._is_campaign and (ends or is_resume(run) or ancestors(run)):
            self.begin()
        if ends:
            raise CampaignCancelled("Cancelled: the run was terminated in Dagster")

    def begin(self) -> Attempt:
        """Return the attempt of this run, which owns the campaign run."""
        self._pays()
        return Attempt.begin(
            self._context,
            self._resource.store,
            self._resource.fleet,
            called=self._called,
            drain_timeout_s=self._resource.drain_timeout_s,
        )

    def loop_name(self, name: str | None) -> str:
        """Return the name of a loop in the ledger: Dagster's name of the step, and its own.

        Raises:
            ValueError: If the op already has a loop of this name.
        """
        shard = self._context.get_mapping_key()
        step = str(self._context.op_handle) + ("" if shard is None else f"[{shard}]")
        loop = step if name is None else f"{step}:{name}"
        if loop in self._loops:
            called = "without a name" if name is None else repr(name)
            raise ValueError(
                f"op {step} already has a record loop {called}: give each of its loops a name, "
                "records(..., name=...)"
            )
        self._loops.add(loop)
        return bounded(loop, MAX_OP)

    def failed(self, error: BaseException) -> bool:
        """Pause the run if a breaker's refusal ends the step; return whether it is no failure."""
        if isinstance(error, StopLoop):
            return True
        if not isinstance(error, BreakerOpenError) or not self._is_campaign:
            return False
        try:
            attempt = self.begin()
            attempt.refused(error.service)
            attempt.stop(StopReason(holds=attempt.holds(), refusal=str(error)))
        except Exception as stopped:  # noqa: BLE001 -- else the step has no end at all
            if not isinstance(stopped, StopLoop):
                self._context.log.warning("The run can't be paused: %r", stopped)
            return isinstance(stopped, StopLoop)

    @property
    def _is_campaign(self) -> bool:
        return bool(self._resource.fleet.needs(self._context.op_def.pool).services)
