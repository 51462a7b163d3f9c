"""What is to happen in a round of chaos; all of it follows from the seed of the round."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from demo.sandbox.cases import PlayedAnswer
from demo.sandbox.faults import Fault, Mode

SERVICES = ("apollo", "millionverifier", "instantly")
"""Who is called: two that are probed, and one that is tried by a canary."""
CONCURRENCY = 4
GROUPED = 10
CONSECUTIVE_FAILURES = 3


class Kind(StrEnum):
    """What strikes."""

    WORKER = "worker"
    """SIGKILL of the process that works on the round's campaign run."""
    YOUNGEST = "youngest"
    """SIGKILL of the youngest of all workers, which may only be starting."""
    TERMINATION = "termination"
    """SIGTERM of the process that works on the round's campaign run."""
    FREEZE = "freeze"
    """SIGSTOP of that process, and after a while SIGCONT: it was given up, and lives on."""
    DAEMON = "daemon"
    """SIGKILL of Dagster's daemon; it is started again."""
    POSTGRES = "postgres"
    """SIGKILL of the database server; it is started again."""
    OUTAGE = "outage"
    """A fault of the service."""
    DENIAL = "denial"
    """The service refuses the key, until a person repairs that."""
    REJECTION = "rejection"
    """The service refuses some records; a person has them tried again."""


class Form(StrEnum):
    """How the op goes through its records."""

    LOOP = "loop"
    THREADS = "threads"
    """`map` with a function."""
    TASKS = "tasks"
    """`map` with an `async` function."""
    GROUPED = "grouped"
    """A loop whose ends are written together; the input only grows at its end."""


@dataclass(frozen=True)
class Blow:
    """Something that strikes.

    Attributes:
        kind: What.
        attempt: After the beginning of which attempt; 0 is the beginning of the round.
        after_s: How long after it, seconds.
        for_s: How long what was struck stays away, seconds; 0 for a worker that is gone.
        fault: What is wrong with the service.
    """

    kind: Kind
    attempt: int
    after_s: float
    for_s: float = 0.0
    fault: Fault | None = None

    def __str__(self) -> str:
        what = self.kind.value
        if self.kind is Kind.OUTAGE and self.fault is not None:
            what = f"{self.fault.mode} of the service"
        lasts = f" for {self.for_s:.1f} s" if self.for_s else ""
        return f"{what} {self.after_s:.2f} s after attempt {self.attempt}{lasts}"


@dataclass(frozen=True)
class Plan:
    """A round: one campaign run, and what strikes meanwhile.

    Attributes:
        seed: Where all of it comes from.
        database: Where the store is, `sqlite` or `postgres`.
        service: The service that each record calls.
        form: How the op goes through them.
        records: How many records there are.
        blows: What strikes, at least one.
    """

    seed: int
    database: str
    service: str
    form: Form
    records: int
    blows: Sequence[Blow]

    @property
    def partition(self) -> str:
        """Name of the campaign run's partition; `of` reads the plan back from it."""
        return f"{self.service}-{self.seed}"

    @property
    def at_once(self) -> int:
        """How many records are in flight at a time."""
        return CONCURRENCY if self.form in (Form.THREADS, Form.TASKS) else 1

    @property
    def left_in_doubt(self) -> int:
        """How many records an attempt may leave in doubt.

        Those in flight, and those before whose failure did not say whether they took effect.
        """
        return self.at_once + CONSECUTIVE_FAILURES - 1

    @property
    def grouped(self) -> int:
        """How many records a crash may repeat that are not listed as in doubt."""
        return GROUPED if self.form is Form.GROUPED else 0

    @property
    def keys(self) -> list[str]:
        """The keys of the records."""
        return [f"{n}@{self.partition}.example" for n in range(self.records)]

    def __str__(self) -> str:
        blows = "; ".join(map(str, self.blows))
        return f"{self.partition} ({self.database}, {self.form}, {self.records} records): {blows}"


def plan(seed: int) -> Plan:
    """Return the plan of a round."""
    draw = random.Random(seed)
    database = ("sqlite", "postgres")[seed % 2]
    form = draw.choice(tuple(Form))
    service = draw.choice(SERVICES)
    records = draw.randint(20, 80) * (CONCURRENCY if form in (Form.THREADS, Form.TASKS) else 1)
    # About as long as the records take, so that most of the blows fall among them.
    longest_s = 0.035 * records / (CONCURRENCY if form in (Form.THREADS, Form.TASKS) else 1)
    kinds = [kind for kind, share in _SHARES[database].items() if draw.random() < share]
    blows = []
    for kind in kinds or [Kind.WORKER]:
        if kind in (Kind.WORKER, Kind.TERMINATION):
            for attempt in range(1, draw.choice((1, 1, 2, 3)) + 1):
                blows.append(Blow(kind, attempt, draw.uniform(0, longest_s)))
        elif kind is Kind.FREEZE:
            blows.append(Blow(kind, 1, draw.uniform(0, longest_s), draw.uniform(2, 8)))
        elif kind in (Kind.OUTAGE, Kind.DENIAL):
            fault = _DENIAL if kind is Kind.DENIAL else draw.choice(_FAULTS)
            attempt, after_s = draw.choice((1, 1, 2)), draw.uniform(0, longest_s)
            blows.append(Blow(kind, attempt, after_s, draw.uniform(0.5, 4), fault))
        elif kind is Kind.REJECTION:
            rejected = [f"{n}@{service}-{seed}." for n in draw.sample(range(records), 3)]
            fault = Fault(mode=Mode.ANSWER, answer=_INVALID, keys=rejected)
            blows.append(Blow(kind, 1, 0.0, draw.uniform(2, 10), fault))
        else:
            away_s = 0.0 if kind is Kind.YOUNGEST else draw.uniform(0, 4)
            blows.append(Blow(kind, 0, draw.uniform(0, 12), away_s))
    return Plan(seed, database, service, form, records, tuple(blows))


def of(partition: str) -> Plan:
    """Return the plan of the round that has a partition."""
    return plan(int(partition.rpartition("-")[2]))


_SHARES = {
    "sqlite": {
        Kind.WORKER: 0.6,
        Kind.TERMINATION: 0.15,
        Kind.FREEZE: 0.1,
        Kind.YOUNGEST: 0.1,
        Kind.DAEMON: 0.2,
        Kind.OUTAGE: 0.35,
        Kind.DENIAL: 0.1,
        Kind.REJECTION: 0.1,
    },
    "postgres": {
        Kind.WORKER: 0.6,
        Kind.TERMINATION: 0.15,
        Kind.FREEZE: 0.1,
        Kind.YOUNGEST: 0.1,
        Kind.DAEMON: 0.15,
        Kind.OUTAGE: 0.3,
        Kind.DENIAL: 0.1,
        Kind.REJECTION: 0.1,
        Kind.POSTGRES: 0.3,
    },
}
_FAULTS = (
    Fault(mode=Mode.OUTAGE),
    Fault(mode=Mode.OUTAGE, status=500),
    Fault(mode=Mode.RATE_LIMIT, retry_after_s=1),
    Fault(mode=Mode.LIMIT, calls=20, per_s=1),
    Fault(mode=Mode.SHARE, share=0.5),
    # Calls take effect at once and are answered late: who dies meanwhile leaves them in doubt.
    Fault(mode=Mode.SLOW, latency_s=0.3),
)
_DENIAL = Fault(mode=Mode.ANSWER, answer=PlayedAnswer(status=401, body={"error": "Unauthorized"}))
_INVALID = PlayedAnswer(status=422, body={"error": "invalid record"})
