"""What an error of a record's block says about the service and the record."""

from collections.abc import Sequence

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind, label


def judge(error: BaseException | None, fleet: Fleet, services: Sequence[str]) -> Verdict:
    """Return the verdict on the error of a block, by the policies of the op's services.

    The first error of the chain of causes that says anything about a service or a record decides.
    """
    breakers = [fleet.breaker(name) for name in services]
    while error is not None:
        for breaker in breakers:
            if breaker.is_system_error(error):
                return Verdict(VerdictKind.FAILURE, reason=label(error))
        error = error.__cause__
    return Verdict(VerdictKind.IGNORED)
