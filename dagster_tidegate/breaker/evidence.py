"""Which record a guarded call is made for, so that one record alone can't trip a breaker."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import blake2s
from typing import Protocol

NO_EVIDENCE = ""
DIGEST_BYTES = 4


class Purpose(Protocol):
    """What guarded calls are made for: a record of a loop.

    Attributes:
        evidence: What a failed call counts as. None: each failure counts as one of a record of its
            own. The path of a record: all of its failures count as those of one record.
            `NO_EVIDENCE`: it says nothing about the service. The record failed before, and others
            have succeeded since.
        served_by: The services that were chosen for it, one of each chain.
    """

    evidence: str | None
    served_by: list[str]


purpose: ContextVar[Purpose | None] = ContextVar("tidegate_purpose", default=None)
"""What the calls in this context are made for; None: each for itself."""


def evidence() -> str | None:
    """Return what a failed call in this context counts as."""
    of_call = purpose.get()
    return None if of_call is None else of_call.evidence


def digest(record: str) -> str:
    """Return eight hexadecimal digits that stand for a record.

    Args:
        record: Identifies it in the fleet: its campaign run, op and key.

    Example:
        >>> digest("outreach/leads-1/send/ada@example.org")
        '3c385374'
    """
    return blake2s(record.encode(errors="backslashreplace"), digest_size=DIGEST_BYTES).hexdigest()


def note_service(chain: Sequence[str], chosen: str) -> None:
    """Note which service of a chain serves the record of this context, if there is one."""
    if (record := purpose.get()) is not None:
        others = (name for name in record.served_by if name not in chain)
        record.served_by[:] = [*others, chosen]


@contextmanager
def of_record(record: Purpose) -> Iterator[None]:
    """Make calls in this context count as those of a record."""
    token = purpose.set(record)
    try:
        yield
    finally:
        purpose.reset(token)
