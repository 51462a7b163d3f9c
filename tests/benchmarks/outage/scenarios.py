"""How the service fails, and for how long."""

from dataclasses import dataclass
from enum import StrEnum

from demo.sandbox.faults import Fault, Mode
from tests.benchmarks.outage.service import POISON

LONGER_THAN_PATIENCE_S = 240.0


class Says(StrEnum):
    """What the service's answers say about another call."""

    NOTHING = "nothing"
    """That it may help, now or later."""
    WHEN = "when"
    """That it will not help before a time."""
    REPAIR = "repair"
    """That it will not help before a person has repaired something."""
    ONE_RECORD = "one record"
    """That it is about this record alone."""


@dataclass(frozen=True)
class Change:
    """A fault that begins, or with None all faults end, at a time after the first fault (s)."""

    at_s: float
    fault: Fault | None


@dataclass(frozen=True)
class Scenario:
    """A way to fail.

    Attributes:
        dead_s: For how long the service does nothing; 0 if it goes on working, more or less.
    """

    name: str
    changes: tuple[Change, ...]
    dead_s: float
    says: Says = Says.NOTHING


def scenarios(scale: float) -> list[Scenario]:
    """Return all scenarios, with all their times multiplied by `scale`."""

    def lasting(
        name: str, fault: Fault, seconds: float, says: Says = Says.NOTHING, *, dead: bool = True
    ) -> Scenario:
        end_s = seconds * scale
        changes = (Change(0, fault), Change(end_s, None))
        return Scenario(name, changes, end_s if dead else 0, says)

    def told(case: str, seconds: float) -> Fault:
        return Fault(mode=Mode.ANSWER, case=case, retry_after_s=seconds * scale)

    outage = Fault(mode=Mode.OUTAGE)
    flapping = [
        Change(at * scale, fault)
        for n in range(3)
        for at, fault in ((20 * n, outage), (20 * n + 10, None))
    ]
    poison = Fault(mode=Mode.ANSWER, case="one-record", keys=[POISON])
    long = LONGER_THAN_PATIENCE_S
    return [
        lasting("outage-30s", outage, 30),
        lasting("outage-2min", outage, 120),
        Scenario("flapping", tuple(flapping), 30 * scale),
        lasting("slow", Fault(mode=Mode.SLOW, latency_s=5 * scale), 120, dead=False),
        lasting("half-failing", Fault(mode=Mode.SHARE, share=0.5), 60, dead=False),
        lasting("retry-after", told("rate-limited", 30), 30, Says.WHEN),
        lasting("revoked-key", Fault(mode=Mode.ANSWER, case="dead-key"), long, Says.REPAIR),
        lasting("no-credits", Fault(mode=Mode.ANSWER, case="no-credits"), long, Says.REPAIR),
        lasting("daily-quota", told("day-used", long), long, Says.WHEN),
        Scenario("poison", (Change(0, poison),), 0, Says.ONE_RECORD),
    ]
