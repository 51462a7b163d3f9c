"""Logs what happens to breakers."""

import logging

from dagster_tidegate.breaker.events import (
    CallFailed,
    CallJudged,
    ChangeLearned,
    Event,
    StateChanged,
)
from dagster_tidegate.statuses import BreakerState


class LogHook:
    """Logs changes of state as warnings or info, and failed calls as debug messages.

    A change is logged as a warning or info only by the process that made it. The fleet itself logs
    when the store can't be reached, with or without this hook.

    Args:
        logger: The default is the logger `dagster_tidegate`.

    Example:
        >>> from dagster_tidegate.breaker.fleet import Fleet
        >>> fleet = Fleet(hooks=[LogHook()])
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._log = logger or logging.getLogger("dagster_tidegate")

    def __call__(self, event: Event, /) -> None:
        """Log an event."""
        match event:
            case StateChanged(service=service, before=before, after=after, actor=actor):
                closed = after.state == BreakerState.CLOSED
                self._log.log(
                    logging.INFO if closed else logging.WARNING,
                    "%s: %s -> %s by %s%s",
                    service,
                    before.state,
                    after.state,
                    actor,
                    "" if after.reason is None else f" ({after.reason})",
                )
                if after.answer is not None and not closed:
                    self._log.warning("%s answered: %s", service, after.answer)
            case ChangeLearned(service=service, before=before, after=after):
                self._log.debug(
                    "%s: %s -> %s by another process", service, before.state, after.state
                )
            case CallFailed(service=service, error=error, label=label):
                self._log.debug("%s: call failed (%s)", service, label, exc_info=error)
            case CallJudged(service=service, verdict=verdict):
                said = "" if verdict.answer is None else f": {verdict.answer}"
                self._log.debug("%s: %s (%s)%s", service, verdict.kind, verdict.reason, said)
            case _:
                pass
