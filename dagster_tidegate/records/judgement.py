"""What an error of a record's block says about the service and the record."""

from collections.abc import Sequence

from dagster_tidegate.breaker.answers import causes
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.verdicts import IGNORED, Verdict, VerdictKind


def judge(error: BaseException | None, fleet: Fleet, services: Sequence[str]) -> Verdict:
    """Return the verdict on the error of a block, by the policies of the op's services.

    The first error of the chain of causes that says anything about a service or a record decides.
    """
    breakers = [fleet.breaker(name) for name in services]
    for cause in causes(error):
        if not isinstance(cause, Exception):
            continue
        for breaker in breakers:
            verdict = breaker.verdict(cause)
            if verdict.kind is not VerdictKind.IGNORED:
                return verdict
    return IGNORED
