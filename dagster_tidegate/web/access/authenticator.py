"""Finds out whose a token or a session is, without asking the store each time.

What the store said is believed for a moment, so that a request mostly costs no query, and a token
that is revoked lets nobody in a few seconds later.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Generic, TypeVar

from anyio import CapacityLimiter, to_thread

from dagster_tidegate.store import tokens
from dagster_tidegate.store.database import UNREACHABLE, Store
from dagster_tidegate.store.tokens import Holder
from dagster_tidegate.text import shown
from dagster_tidegate.web.access.limits import Limit, TooManyError, network

REFRESH_S = 2.0
"""After so long the store is asked again, by one request; others go on with what it said."""
MAX_S = 5.0
"""For no longer than this is anything believed that the store said, whatever the store does."""
USED_EVERY = timedelta(minutes=1)
"""How exactly it is known when a token was last used."""
MAX_KNOWN = 4096
MAX_REFUSED = 4096
MAX_LOOKUPS = 4
MAX_LOGGED = 60

T = TypeVar("T")
log = logging.getLogger(__name__)


class Kind(StrEnum):
    """What somebody shows to be let in."""

    TOKEN = "token"
    SESSION = "session"


@dataclass(frozen=True)
class Key:
    """A token or session, by its digest."""

    kind: Kind
    digest: str


@dataclass
class _Said(Generic[T]):
    """What the store said at a moment, and when it was last asked."""

    value: T
    at: float
    asked_at: float


class Authenticator:
    """Knows the tokens and sessions of a store.

    It belongs to one event loop; the store is asked in threads.

    Args:
        store: The store.
        refusals: How many wrong tokens or sessions of a network address are told to be wrong and
            logged in a minute. One that is tried again and again, as by a page that was left open,
            counts once. Nobody can guess a token, so each is looked up, as often as an address may
            ask at all.
        clock: Seconds that pass evenly.
    """

    def __init__(
        self, store: Store, *, refusals: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._clock = clock
        self._refusals = Limit("wrong tokens of this address", refusals)
        self._logged = Limit("refusals in the log", MAX_LOGGED)
        self._known: OrderedDict[Key, _Said[Holder]] = OrderedDict()
        self._refused: OrderedDict[Key, None] = OrderedDict()
        self._needed: _Said[bool] | None = None
        self._lookups = CapacityLimiter(MAX_LOOKUPS)

    async def needed(self) -> bool:
        """Return whether a token is needed.

        It is as soon as one was ever made, and stays so when the last has expired or is revoked.
        """
        said = self._needed
        if said is not None and (said.value or self._believed(said)):
            return said.value
        found = await to_thread.run_sync(self._any_made, limiter=self._lookups)
        now = self._clock()
        self._needed = _Said(found, now, now)
        return found

    async def holder(self, kind: Kind, secret: str, address: str | None) -> Holder | None:
        """Return whose a token or session is.

        Args:
            kind: Which of them it is.
            secret: The token, or what the cookie of the session holds.
            address: The network address that it comes from.

        Returns:
            Whose it is; None where it lets nobody in.

        Raises:
            TooManyError: If this is a wrong one, and the address has tried too many others. A right
                one lets in whoever has it, whatever others try at the same address.
        """
        key = Key(kind, tokens.digest(secret))
        if key in self._refused:
            self._refused.move_to_end(key)
            return None
        said = self._known.get(key)
        if said is not None and self._believed(said):
            self._known.move_to_end(key)
            return said.value
        found = await self._look_up(key)
        if found is None:
            self._refuse(key, address)
        return found

    async def still(self, kind: Kind, secret: str) -> bool:
        """Return whether a token or session that let somebody in still does."""
        key = Key(kind, tokens.digest(secret))
        said = self._known.get(key)
        if said is not None and self._believed(said):
            return True
        return await self._look_up(key) is not None

    def forget(self, kind: Kind, secret: str) -> None:
        """Believe nothing of a token or session that this process has ended."""
        self._known.pop(Key(kind, tokens.digest(secret)), None)

    def _believed(self, said: _Said) -> bool:
        now = self._clock()
        if now - said.at >= MAX_S:
            return False
        if now - said.asked_at < REFRESH_S:
            return True
        said.asked_at = now  # this request asks the store, and the others need not
        return False

    async def _look_up(self, key: Key) -> Holder | None:
        began = self._clock()
        found = await to_thread.run_sync(self._read, key, limiter=self._lookups)
        if found is None:
            self._known.pop(key, None)
        else:
            self._known[key] = _Said(found, began, began)
            while len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        return found

    def _refuse(self, key: Key, address: str | None) -> None:
        self._refused[key] = None
        while len(self._refused) > MAX_REFUSED:
            self._refused.popitem(last=False)
        self._refusals.count(network(address))
        try:
            self._logged.count("all")
        except TooManyError:
            return
        refused = "refused an unknown, expired or revoked %s from %s"
        log.warning(refused, key.kind, shown(str(address)))

    def _any_made(self) -> bool:
        with self._store.read() as conn:
            return tokens.any_created(conn)

    def _read(self, key: Key) -> Holder | None:
        by_digest = tokens.holder if key.kind is Kind.TOKEN else tokens.holder_of_session
        with self._store.read() as conn:
            now = self._store.now(conn)
            holder = by_digest(conn, now, key.digest)
        if holder and (holder.used_at is None or now - holder.used_at >= USED_EVERY):
            self._mark_used(holder.token, now)
        return holder

    def _mark_used(self, token: int, now: datetime) -> None:
        try:
            with self._store.evidence().begin() as conn:
                tokens.mark_used(conn, now, token)
        except UNREACHABLE as error:  # a store that can be read and not written lets people in
            log.warning("can't write down that token %d was used: %s", token, error)
