"""Validates tokens and sessions without a query to the store for each request.

An answer of the store is cached for a few seconds, so a token that is revoked is refused after that
time at the latest.
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
"""After this time one request asks the store again; the others use the cached answer meanwhile."""
MAX_AGE_S = 5.0
"""No answer of the store is used for longer, even if the store is slow."""
USED_AT_PRECISION = timedelta(minutes=1)
MAX_VALID = 4096
MAX_REFUSED = 4096
MAX_LOOKUPS = 4
MAX_LOGGED = 60

T = TypeVar("T")
log = logging.getLogger(__name__)


class Kind(StrEnum):
    """What a request is authenticated with."""

    TOKEN = "token"
    SESSION = "session"


@dataclass(frozen=True)
class Key:
    """A token or session, by its digest."""

    kind: Kind
    digest: str


@dataclass
class _Cached(Generic[T]):
    """An answer of the store: as of when, and when somebody last asked for a newer one."""

    value: T
    at: float
    asked_at: float


class Authenticator:
    """Validates tokens and sessions. Belongs to one event loop; queries run in threads.

    Args:
        refusals: How many different wrong tokens or sessions of an address are refused one by one
            and logged in a minute, before it is limited. One that is sent again and again, for
            example by a page left open, counts once. Tokens can't be guessed, so each is looked up.
        clock: Monotonic seconds.
    """

    def __init__(
        self, store: Store, *, refusals: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._clock = clock
        self._refusals = Limit("wrong tokens of this address", refusals)
        self._logged = Limit("refusals in the log", MAX_LOGGED)
        self._valid: OrderedDict[Key, _Cached[Holder]] = OrderedDict()
        self._refused: OrderedDict[Key, None] = OrderedDict()
        self._needed: _Cached[bool] | None = None
        self._lookups = CapacityLimiter(MAX_LOOKUPS)

    async def needed(self) -> bool:
        """Return whether a token is required.

        It is from the moment the first was created, even after the last has expired.
        """
        cached = self._needed
        if cached is not None and (cached.value or self._fresh(cached)):
            return cached.value
        needed = await to_thread.run_sync(self._any_created, limiter=self._lookups)
        now = self._clock()
        self._needed = _Cached(needed, now, now)
        return needed

    async def holder(self, kind: Kind, secret: str, address: str | None) -> Holder | None:
        """Return the holder of a token or session; None if it is not valid.

        Args:
            secret: The token, or the value of the session cookie.

        Raises:
            TooManyError: If it is wrong, and the address has sent too many other wrong ones. A
                right one is accepted whatever others at the same address send.
        """
        key = Key(kind, tokens.digest(secret))
        if key in self._refused:
            self._refused.move_to_end(key)
            return None
        cached = self._valid.get(key)
        if cached is not None and self._fresh(cached):
            self._valid.move_to_end(key)
            return cached.value
        holder = await self._look_up(key)
        if holder is None:
            self._refuse(key, address)
        return holder

    async def still(self, kind: Kind, secret: str) -> bool:
        """Return whether a token or session that was valid still is."""
        key = Key(kind, tokens.digest(secret))
        cached = self._valid.get(key)
        if cached is not None and self._fresh(cached):
            return True
        return await self._look_up(key) is not None

    def forget(self, kind: Kind, secret: str) -> None:
        """Drop a token or session that this process has just ended from the cache."""
        self._valid.pop(Key(kind, tokens.digest(secret)), None)

    def _fresh(self, cached: _Cached) -> bool:
        now = self._clock()
        if now - cached.at >= MAX_AGE_S:
            return False
        if now - cached.asked_at < REFRESH_S:
            return True
        cached.asked_at = now  # this request asks the store, so that the others need not
        return False

    async def _look_up(self, key: Key) -> Holder | None:
        began = self._clock()
        holder = await to_thread.run_sync(self._read, key, limiter=self._lookups)
        if holder is None:
            self._valid.pop(key, None)
        else:
            self._valid[key] = _Cached(holder, began, began)
            while len(self._valid) > MAX_VALID:
                self._valid.popitem(last=False)
        return holder

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

    def _any_created(self) -> bool:
        with self._store.read() as conn:
            return tokens.any_created(conn)

    def _read(self, key: Key) -> Holder | None:
        look_up = tokens.holder if key.kind is Kind.TOKEN else tokens.holder_of_session
        with self._store.read() as conn:
            now = self._store.now(conn)
            holder = look_up(conn, now, key.digest)
        if holder and (holder.used_at is None or now - holder.used_at >= USED_AT_PRECISION):
            self._mark_used(holder.token, now)
        return holder

    def _mark_used(self, token: int, now: datetime) -> None:
        try:
            with self._store.evidence().begin() as conn:
                tokens.mark_used(conn, now, token)
        except UNREACHABLE as error:  # a store that can only be read still lets people in
            log.warning("can't record that token %d was used: %s", token, error)
