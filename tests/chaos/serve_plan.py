"""What is asked of `tidegate serve` in a round of chaos, when it is killed, and the verdict on it.

All of a plan follows from the seed of the round; the verdict is a pure function of what was found.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

SUCCESSFUL = range(200, 300)
CONFLICT, NOT_FOUND = 409, 404
MAX_LOCKED_S = 5.0


class Kind(StrEnum):
    """What a request asks for."""

    HOLD = "hold"
    """A hold on a campaign run that is not there yet."""
    RELEASE = "release"
    """The end of a hold."""
    CREATE = "create"
    """A campaign run that waits to be started."""
    START = "start"
    """A start of a partition, once or by two people at once."""
    START_PLAIN = "start_plain"
    """A start of a job without partitions."""
    RETRY = "retry"
    """Failed records are to be done again."""
    SKIP = "skip"
    """Failed records need no result."""
    CANCEL = "cancel"
    """A campaign run in the queue is to end."""
    KEEP_CLOSED = "keep_closed"
    """A breaker is to stay closed."""


LAUNCHES = {Kind.START, Kind.START_PLAIN, Kind.RETRY}
"""Those that launch a Dagster run."""


class After(StrEnum):
    """After what the server is killed."""

    SENDING = "the first request"
    CHANGE = "the first change of the store"
    LAUNCH = "the first Dagster run"


DELAYS_S = {After.SENDING: (0.0, 1.6), After.CHANGE: (0.0, 0.4), After.LAUNCH: (0.0, 0.5)}
"""How long the server lives on: about as long as what follows takes."""
IN_STEPS = {Kind.START, Kind.START_PLAIN, Kind.RETRY, Kind.CANCEL}
"""Those that change the store and Dagster, one after the other."""
KEYED = {Kind.HOLD, Kind.CREATE, Kind.START, Kind.START_PLAIN, Kind.RETRY}
"""Those that take an `Idempotency-Key`."""


@dataclass(frozen=True)
class Request:
    """A request of a round.

    Attributes:
        subject: What it is about; requests with the same one compete.
        key: Its `Idempotency-Key`.
        after_s: How long after the beginning of the round it is sent, seconds.
    """

    kind: Kind
    subject: str
    key: str
    after_s: float


@dataclass(frozen=True)
class Plan:
    """A round.

    Attributes:
        database: Where the store is, `sqlite` or `postgres`.
        requests: What is asked, at about the same time.
        after: After what the server is killed.
        kill_after_s: How long after it, seconds.
        gate_first: Whether the gate cleans up before the requests are repeated.
        released: Whether somebody releases the holds before the requests are repeated.
    """

    seed: int
    database: str
    requests: Sequence[Request]
    after: After
    kill_after_s: float
    gate_first: bool
    released: bool

    def __str__(self) -> str:
        asked = ", ".join(request.kind for request in self.requests)
        then = " then the gate cleans up;" if self.gate_first else ""
        killed = f"killed {self.kill_after_s:.2f} s after {self.after}"
        return f"{self.database}, {killed};{then} {asked}"


def plan(seed: int) -> Plan:
    """Return the plan of a round."""
    draw = random.Random(seed)
    kinds = draw.sample(tuple(Kind), draw.randint(3, 6))
    requests = []
    for kind in kinds:
        subject = f"{kind.value}-{seed}"
        at_once = draw.choice((1, 2)) if kind is Kind.START else 1
        for number in range(at_once):
            requests.append(Request(kind, subject, f"{subject}-{number}", draw.uniform(0, 0.1)))
    draw.shuffle(requests)
    moments = tuple(After) if LAUNCHES & set(kinds) else (After.SENDING, After.CHANGE)
    after = draw.choice(moments)
    return Plan(
        seed=seed,
        database=("sqlite", "postgres")[seed % 2],
        requests=tuple(requests),
        after=after,
        kill_after_s=draw.uniform(*DELAYS_S[after]),
        gate_first=draw.random() < 0.4,
        released=draw.random() < 0.5,
    )


@dataclass(frozen=True)
class Look:
    """How far the requests about a subject have taken effect.

    Attributes:
        effects: How often what they ask for was done.
        events: How often the audit log says so.
        begun: Whether the first step was done and the last one was not.
        half: What is there of a change that is not there as a whole.
    """

    effects: int
    events: int
    begun: bool = False
    half: str = ""


@dataclass(frozen=True)
class Evidence:
    """What was found about a subject.

    Attributes:
        kind: What its requests ask for.
        answers: The first answer to each; None if the server died before.
        at_restart: How far they had taken effect when the server was started again.
        at_once: The answer to each when it was repeated right then.
        again: The answer to each when it was repeated after its key had become usable.
        replayed: Whether each that had been successful got the same answer once more.
        at_end: How far they had taken effect then.
        gate_first: Whether the gate had cleaned up before.
    """

    kind: Kind
    subject: str
    answers: Sequence[int | None]
    at_restart: Look
    at_once: Sequence[int]
    again: Sequence[int]
    replayed: bool
    at_end: Look
    gate_first: bool = False


def findings(found: Evidence) -> list[str]:
    """Return what is wrong with a subject; nothing, if all is well."""
    wrong = [
        *_wrong(found, found.at_restart, "at the restart", max_events=1),
        *_wrong(found, found.at_end, "at the end", max_events=_max_events(found)),
    ]
    if any(answer in SUCCESSFUL for answer in found.answers) and not found.at_restart.effects:
        wrong.append(f"it was answered with {list(found.answers)}, and had no effect")
    for answer in found.answers:
        if answer is not None and answer not in SUCCESSFUL and not _lost(found, answer):
            wrong.append(f"it was answered with {answer}")
    for answer in found.at_once:
        in_use = answer == CONFLICT and found.kind in IN_STEPS
        if answer not in SUCCESSFUL and not in_use and not _is_done(found, answer):
            wrong.append(f"repeated at once, it was answered with {answer}")
    for answer in found.again:
        lost = _lost(found, answer) and any(other in SUCCESSFUL for other in found.again)
        if answer not in SUCCESSFUL and not lost and not _is_done(found, answer):
            wrong.append(f"repeated later, it was answered with {answer}")
    if not found.replayed:
        wrong.append("repeated after it had been successful, it got another answer")
    if not found.at_end.effects:
        wrong.append("repeated, it had no effect")
    return [f"{found.subject}: {each}" for each in wrong]


def _wrong(found: Evidence, look: Look, when: str, *, max_events: int) -> list[str]:
    wrong = []
    if look.half:
        wrong.append(f"{when} there is a part of it: {look.half}")
    if look.effects > 1:
        wrong.append(f"{when} it is in effect {look.effects} times")
    if look.effects and not look.events:
        wrong.append(f"{when} it is in effect, and the audit log has no event of it")
    if look.events > max_events:
        wrong.append(f"{when} the audit log has {look.events} events of it")
    may_be_begun = look.begun and found.kind in IN_STEPS
    if look.events and not look.effects and not may_be_begun:
        wrong.append(f"{when} the audit log has an event of it, and it is not in effect")
    return wrong


def _max_events(found: Evidence) -> int:
    """How many events are right at the end: one, and one more if it was really made again."""
    if found.kind is Kind.KEEP_CLOSED:  # without a key, each repetition is an act of its own
        return found.at_restart.events + 3
    made_again = found.gate_first or found.kind is Kind.CANCEL
    return 2 if found.at_restart.begun and made_again else 1


def _lost(found: Evidence, answer: int) -> bool:
    """Whether another request was faster, and this one was told so."""
    return answer == CONFLICT and len(found.answers) > 1


def _is_done(found: Evidence, answer: int) -> bool:
    """Whether an answer says that there is nothing left to do, which is so."""
    done = {Kind.SKIP: NOT_FOUND}.get(found.kind)
    made_at_once = any(other in SUCCESSFUL for other in found.at_once)
    return answer == done and (found.at_restart.effects == 1 or made_at_once)
