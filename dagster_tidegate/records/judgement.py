"""What an error of a record's block says about the service and the record."""

from collections.abc import Sequence

from dagster_tidegate.breaker.answers import Answer, causes
from dagster_tidegate.breaker.breaker import Breaker
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.judge import judge_for
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind, label


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
    """The verdict of one service; `is_system_error` has the last word on failures."""
    answer = Answer.of(error, fleet.now())
    verdict = Verdict(VerdictKind.IGNORED)
    if answer is not None:
        verdict = judge_for(breaker.policy)(answer)
    if breaker.is_system_error(error):
        failed = verdict.kind is VerdictKind.FAILURE
        return verdict if failed else Verdict(VerdictKind.FAILURE, reason=label(error))
    if verdict.kind in (VerdictKind.FAILURE, VerdictKind.SUCCESS, VerdictKind.SLOW):
        return Verdict(VerdictKind.IGNORED)
    return verdict
