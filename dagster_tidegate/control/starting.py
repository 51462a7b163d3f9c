"""Whether a campaign run may be started now. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from dagster_tidegate.control.why import Answer, ObstacleKind
from dagster_tidegate.statuses import RunStatus


class Refusal(StrEnum):
    """Why a campaign run is not started."""

    HELD = "held"
    UNDER_WAY = "under_way"


@dataclass(frozen=True)
class Verdict:
    """Whether a campaign run may be started.

    Attributes:
        refusal: Why not; None if it may.
        text: The same for people.
        answer: Why it is paused, if it is, and what else holds it back.
    """

    refusal: Refusal | None
    text: str
    answer: Answer

    def refuses(self, *, queue: bool) -> bool:
        """Return whether it is not started.

        Args:
            queue: Whether it may wait in the queue for as long as it is held.
        """
        return self.refusal is not None and not (queue and self.refusal is Refusal.HELD)


def verdict(answer: Answer) -> Verdict:
    """Return whether a campaign run may be started.

    Args:
        answer: What `why` says of the campaign run; of the campaign, where the job has no
            partitions and so each start makes a campaign run of its own.
    """
    name = answer.target.name
    waits = any(each.kind is ObstacleKind.NOT_STARTED for each in answer.obstacles)
    at_work = answer.status in (RunStatus.PENDING, RunStatus.PROCESSING) and not waits
    if at_work and "/" in name:
        text = f"{name} is {answer.status} already: see 'tidegate runs show {name}'"
        return Verdict(Refusal.UNDER_WAY, text, answer)
    if answer.paused:
        return Verdict(Refusal.HELD, f"{name} can't start, it is {answer.summary}", answer)
    if answer.status == RunStatus.PAUSED and "/" in name:
        text = f"{name} is paused and resumes by itself: nothing holds it any more"
        return Verdict(Refusal.UNDER_WAY, text, answer)
    return Verdict(None, f"{name} can start", answer)
