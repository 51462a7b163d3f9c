"""What an error of a record's block says about the service and the record."""

from collections.abc import Sequence

from dagster_tidegate.breaker.answers import Answer, causes
from dagster_tidegate.breaker.breaker import Breaker
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.judge import judge_for
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind, label

_CLEAR = frozenset(
    {VerdictKind.THROTTLED, VerdictKind.DENIED, VerdictKind.PENDING, VerdictKind.REJECTED}
)


def judge(error: BaseException | None, fleet: Fleet, services: Sequence[str]) -> Verdict:
    """Return the verdict on the error of a block, by the policies of the op's services.

    The first error of the chain of causes that says anything about a service or a record decides.
    """
    breakers = [fleet.breaker(name) for name in services]
    for cause in causes(error):
        if not isinstance(cause, Exception):
            continue
        for breaker in breakers:
            verdict = _judge(cause, breaker, fleet)
            if verdict.kind is not VerdictKind.IGNORED:
                return verdict
    return Verdict(VerdictKind.IGNORED)


def _judge(error: Exception, breaker: Breaker, fleet: Fleet) -> Verdict:
    """The verdict of one service; its breaker has the last word on failures."""
    answer = Answer.of(error, fleet.now())
    verdict = None if answer is None else judge_for(breaker.policy)(answer)
    if verdict is not None and verdict.kind in _CLEAR:
        return verdict
    if not breaker.is_system_error(error):
        return Verdict(VerdictKind.IGNORED)
    if verdict is not None and verdict.kind is VerdictKind.FAILURE:
        return verdict
    return Verdict(VerdictKind.FAILURE, reason=label(error))
