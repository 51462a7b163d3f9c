"""What went wrong in a round of chaos, by what the service itself counted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dagster_tidegate.statuses import RecordStatus, RunStatus


@dataclass(frozen=True)
class Listed:
    """A record that the ledger had as started when an attempt began: it was in doubt."""

    run: str
    key: str


@dataclass(frozen=True)
class Sent:
    """A call that a worker was about to make."""

    run: str
    key: str
    idempotency_key: str


@dataclass(frozen=True)
class Evidence:
    """What is known of a round after its end.

    Attributes:
        wanted: The keys of its records, in order.
        left_in_doubt: How many of them an attempt may leave in doubt.
        grouped: How many records a crash may repeat that are not listed: those whose ends are
            written together; 0 where each is written for itself.
        crashes: How many attempts may have been cut off.
        sent: Every call that a worker was about to make, attempt after attempt.
        listed: The records in doubt that each attempt found in the ledger, before its first call.
        arrivals: By idempotency key, how many calls the service saw.
        effects: By idempotency key, how many of them took effect.
        repeats: By idempotency key, how many more would have, had the service not known the key.
        subjects: By record, how often the service did what it is there for.
        ledger: What the ledger has, by key.
        status: What became of the campaign run; None if it is not known.
        results: What the op gave to the op behind it; None if it gave nothing.
    """

    wanted: Sequence[str]
    left_in_doubt: int
    grouped: int
    crashes: int
    sent: Sequence[Sent]
    listed: Sequence[Listed]
    arrivals: Mapping[str, int]
    effects: Mapping[str, int]
    repeats: Mapping[str, int]
    subjects: Mapping[str, int]
    ledger: Mapping[str, RecordStatus]
    status: RunStatus | None
    results: Sequence[str] | None


def findings(found: Evidence) -> list[str]:
    """Return what was lost, repeated or not listed; nothing, if all is well."""
    wrong = []
    if found.status is not RunStatus.COMPLETED:
        wrong.append(f"the campaign run is {found.status}")
    keys: dict[str, set[str]] = {}
    for sent in found.sent:
        keys.setdefault(sent.key, set()).add(sent.idempotency_key)
    listed = Counter(each.key for each in found.listed)
    lost, undone, unlisted = [], [], []
    for key in found.wanted:
        its = keys.get(key, set())
        if not any(found.effects.get(each) for each in its):
            lost.append(key)
        if found.ledger.get(key) is not RecordStatus.DONE:
            undone.append(key)
        if found.subjects.get(key, 0) > 1:
            wrong.append(f"{key} took effect {found.subjects[key]} times")
        if len(its) > 1:
            wrong.append(f"{key} was sent under {len(its)} idempotency keys")
        repeats = sum(found.repeats.get(each, 0) for each in its)
        unlisted += [key] * (repeats - listed[key])
    if len(unlisted) > found.grouped * found.crashes:
        wrong.append(
            f"{len(unlisted)} times a record was sent again after it had taken effect, and was "
            f"not listed as in doubt: {_some(unlisted)}"
        )
    if lost:
        wrong.append(f"{len(lost)} were lost, they never took effect: {_some(lost)}")
    if undone:
        wrong.append(f"{len(undone)} are not done in the ledger: {_some(undone)}")
    if strangers := set(found.ledger) - set(found.wanted):
        wrong.append(f"the ledger has records that nobody gave: {sorted(strangers)}")
    for run, count in Counter(each.run for each in found.listed).items():
        if count > found.left_in_doubt * max(1, found.crashes):
            wrong.append(f"{count} records were in doubt when Dagster run {run} began")
    if found.status is RunStatus.COMPLETED and found.results != list(found.wanted):
        wrong.append(f"the op's results are not those of an unbroken run: {found.results}")
    return wrong


def _some(keys: Sequence[str]) -> str:
    return ", ".join([*keys[:3], "..."] if len(keys) > 3 else keys)
