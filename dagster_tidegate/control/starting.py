"""Whether a campaign run may start. Pure."""

from dataclasses import dataclass, replace
from enum import StrEnum

from dagster_tidegate.control.why import Explanation, ObstacleKind
from dagster_tidegate.statuses import RunStatus


class Refusal(StrEnum):
    """Why a campaign run may not start."""

    HELD = "held"
    UNDER_WAY = "under_way"


@dataclass(frozen=True)
class StartVerdict:
    """Whether a campaign run may start.

    Attributes:
        refusal: Why not; None if it may.
        text: The verdict for people.
        answer: The answer of `why` that it was derived from.
    """

    refusal: Refusal | None
    text: str
    answer: Explanation

    def refuses(self, *, queue: bool) -> bool:
        """Return whether it must not start; with `queue`, a held run may wait in the queue."""
        return self.refusal is not None and not (queue and self.refusal is Refusal.HELD)


def verdict(answer: Explanation) -> StartVerdict:
    """Return whether a campaign run may start.

    Args:
        answer: The answer of `why` for the campaign run; for a job without partitions, where each
            start creates a campaign run, for the campaign.
    """
    # That it has ended keeps nobody from starting it.
    others = (each for each in answer.obstacles if each.kind is not ObstacleKind.ENDED)
    answer = replace(answer, obstacles=tuple(others))
    name = answer.target.name
    not_started = any(each.kind is ObstacleKind.NOT_STARTED for each in answer.obstacles)
    running = answer.status in (RunStatus.PENDING, RunStatus.PROCESSING) and not not_started
    if running and "/" in name:
        text = f"{name} is already {answer.status}: see 'tidegate runs show {name}'"
        return StartVerdict(Refusal.UNDER_WAY, text, answer)
    if answer.paused:
        return StartVerdict(Refusal.HELD, f"{name} can't start, it is {answer.summary}", answer)
    if answer.status == RunStatus.PAUSED and "/" in name:
        text = f"{name} is paused and no longer held: it resumes automatically"
        return StartVerdict(Refusal.UNDER_WAY, text, answer)
    return StartVerdict(None, f"{name} can start", answer)
