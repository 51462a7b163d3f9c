"""Which record a guarded call is made for, so that one record alone can't trip a breaker."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import blake2s

NO_EVIDENCE = ""
DIGEST_BYTES = 4

evidence: ContextVar[str | None] = ContextVar("tidegate_evidence", default=None)
"""What a failed call in this context counts as.

- None: it belongs to no record, and each failure counts as one of a record of its own.
- The digest of a record: all of its failures count as those of one record.
- `NO_EVIDENCE`: it says nothing about the service. The record failed before, and others have
  succeeded since.
"""


def digest(record: str) -> str:
    """Return eight hexadecimal digits that stand for a record.

    Args:
        record: Identifies it in the fleet: its campaign run, op and key.

    Example:
        >>> digest("outreach/leads-1/send/ada@example.org")
        '3c385374'
    """
    return blake2s(record.encode(errors="backslashreplace"), digest_size=DIGEST_BYTES).hexdigest()


served_by: ContextVar[list[str] | None] = ContextVar("tidegate_served_by", default=None)
"""The services that were chosen for the record of this context, one of each chain."""


def note_service(chain: Sequence[str], chosen: str) -> None:
    """Note which service of a chain serves the record of this context, if there is one."""
    if (services := served_by.get()) is not None:
        services[:] = [*(name for name in services if name not in chain), chosen]


@contextmanager
def of_record(record: str | None, services: list[str] | None = None) -> Iterator[None]:
    """Make calls in this context count as those of a record; see `evidence`, `served_by`."""
    token, token_of_services = evidence.set(record), served_by.set(services)
    try:
        yield
    finally:
        evidence.reset(token)
        served_by.reset(token_of_services)
