"""Tokens and sessions that come and go in any order: who is let in, and for how long after."""

import asyncio
from datetime import UTC, datetime, timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from dagster_tidegate.store import sessions, tokens
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.tables import metadata
from dagster_tidegate.store.tokens import Role, TokenError
from dagster_tidegate.web.access.authenticator import MAX_AGE_S, Authenticator, Kind
from tests.support.examples import share_of_examples

START = datetime(2026, 3, 1, tzinfo=UTC)
NAMES = st.sampled_from(["ana", "bo"])
SECONDS = st.sampled_from([0.5, 1.9, 2.0, 5.0, 30.0])


class Access(RuleBasedStateMachine):
    """A store and a server, beside what is known of them: when each secret ends."""

    secrets = Bundle("secrets")

    @initialize()
    def start(self) -> None:
        self.passed = 0.0
        self.store = Store("sqlite://", clock=self.time)
        metadata.create_all(self.store.engine)
        self.authenticator = Authenticator(self.store, refusals=10**6, clock=lambda: self.passed)
        self.ends: dict[tuple[Kind, str], float] = {}  # in seconds since the start
        self.token_of: dict[str, str] = {}  # of a session
        self.live: dict[str, str] = {}  # the secret of a name
        self.first_made: float | None = None

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.dispose()

    def time(self) -> datetime:
        return START + timedelta(seconds=self.passed)

    def end(self, kind: Kind, secret: str) -> None:
        key = (kind, secret)
        self.ends[key] = min(self.ends[key], self.passed)

    @rule(target=secrets, name=NAMES, lifetime=st.sampled_from([None, 3.0, 60.0]))
    def create(self, name: str, lifetime: float | None) -> tuple[Kind, str]:
        taken = name in self.live and self.ends[Kind.TOKEN, self.live[name]] > self.passed
        expires_at = None if lifetime is None else self.time() + timedelta(seconds=lifetime)
        try:
            with self.store.begin() as conn:
                _, secret = tokens.create(
                    conn, self.time(), name, Role.VIEWER, actor="tests", expires_at=expires_at
                )
        except TokenError:
            assert taken
            return Kind.TOKEN, "tdg_never"
        assert not taken
        self.live[name] = secret
        self.ends[Kind.TOKEN, secret] = float("inf") if lifetime is None else self.passed + lifetime
        if self.first_made is None:
            self.first_made = self.passed
        return Kind.TOKEN, secret

    @rule(name=NAMES)
    def revoke(self, name: str) -> None:
        try:
            with self.store.begin() as conn:
                tokens.revoke(conn, self.time(), name, actor="tests")
        except TokenError:
            assert name not in self.live
            return
        secret = self.live.pop(name)
        self.end(Kind.TOKEN, secret)
        for session, token in self.token_of.items():
            if token == secret:
                self.end(Kind.SESSION, session)

    @rule(target=secrets, shown=secrets, length=st.sampled_from([4.0, 40.0]))
    def log_in(self, shown: tuple[Kind, str], length: float) -> tuple[Kind, str]:
        token = shown[1]
        with self.store.begin() as conn:
            begun = sessions.begin(conn, self.time(), token, timedelta(seconds=length))
        ends = self.ends.get((Kind.TOKEN, token), 0.0)
        assert (begun is not None) == (shown[0] is Kind.TOKEN and ends > self.passed)
        if begun is None:
            return Kind.SESSION, "never"
        self.ends[Kind.SESSION, begun[0]] = min(ends, self.passed + length)
        self.token_of[begun[0]] = token
        return Kind.SESSION, begun[0]

    @rule(shown=secrets)
    def log_out(self, shown: tuple[Kind, str]) -> None:
        with self.store.begin() as conn:
            sessions.end(conn, self.time(), shown[1], actor="tests")
        if (Kind.SESSION, shown[1]) in self.ends:
            self.end(Kind.SESSION, shown[1])

    @rule(seconds=SECONDS)
    def wait(self, seconds: float) -> None:
        self.passed += seconds

    @rule(shown=secrets)
    def ask(self, shown: tuple[Kind, str]) -> None:
        ends = self.ends.get(shown, 0.0)
        holder = asyncio.run(self.authenticator.holder(*shown, "192.0.2.7"))
        if ends > self.passed:
            assert holder is not None
        elif self.passed - ends >= MAX_AGE_S:
            assert holder is None

    @rule(shown=secrets)
    def ask_with_the_wrong_kind(self, shown: tuple[Kind, str]) -> None:
        other = Kind.SESSION if shown[0] is Kind.TOKEN else Kind.TOKEN
        assert asyncio.run(self.authenticator.holder(other, shown[1], None)) is None

    @invariant()
    def asks_for_a_token_for_ever_once_there_was_one(self) -> None:
        if not hasattr(self, "store"):
            return
        needed = asyncio.run(self.authenticator.needed())
        if self.first_made is None:
            assert not needed
        elif self.passed - self.first_made >= MAX_AGE_S:
            assert needed


TestAccess = Access.TestCase
TestAccess.settings = settings(
    max_examples=share_of_examples(3),
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
