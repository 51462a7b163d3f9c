"""Requests with an `Idempotency-Key` take effect once."""

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from fastapi import Depends, Request
from fastapi.encoders import jsonable_encoder
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from dagster_tidegate.store import idempotency
from dagster_tidegate.store.database import Connection, DataError
from dagster_tidegate.store.idempotency import Claim, RequestKey, StoredAnswer
from dagster_tidegate.web.api.authentication import Operator
from dagster_tidegate.web.api.context import Context
from dagster_tidegate.web.api.models import IdempotencyKey
from dagster_tidegate.web.api.problems import REFUSALS, Code, Problem

REPLAYED = "Idempotency-Replayed"
"""This header is `true` in the answer to a repeated request."""


class IdempotentRequest:
    """A request that may have an `Idempotency-Key`; a dependency of its route."""

    def __init__(
        self,
        context: Context,
        request: Request,
        identity: Operator,
        idempotency_key: IdempotencyKey = None,
    ) -> None:
        self._store = context.store
        self._request = request
        self._actor = identity.name
        self._key = idempotency_key

    def __call__(
        self, body: BaseModel, status: int, make: Callable[[str | None], BaseModel]
    ) -> Response:
        """Answer with what `make` returns, or with the first answer to this key.

        A refused request has no effect and may be repeated with its key. One whose process died is
        made again once its claim has expired.

        Args:
            make: Makes the change, given an id for what it creates: the same whenever it is made
                again; None without a key.

        Raises:
            Problem: `idempotency_key_reused` or `idempotency_key_in_use`.
            Exception: Any that `make` raises.
        """
        if self._key is None:
            return JSONResponse(jsonable_encoder(make(None)), status)
        with self._store.begin() as conn:
            claim = self._claim(conn, self._store.now(conn), body, self._key)
        if isinstance(claim, StoredAnswer):
            return _replayed(claim)
        content = jsonable_encoder(self._made(claim, make))
        with self._store.begin() as conn:
            idempotency.answer(conn, claim, StoredAnswer(status, content))
        return JSONResponse(content, status)

    def within(
        self,
        conn: Connection,
        now: datetime,
        body: BaseModel,
        status: int,
        make: Callable[[], BaseModel],
    ) -> Response:
        """Do the same for a change that is made in one transaction, together with it.

        If the process dies, neither the change nor the key is there.
        """
        if self._key is None:
            return JSONResponse(jsonable_encoder(make()), status)
        claim = self._claim(conn, now, body, self._key)
        if isinstance(claim, StoredAnswer):
            return _replayed(claim)
        content = jsonable_encoder(make())
        idempotency.answer(conn, claim, StoredAnswer(status, content))
        return JSONResponse(content, status)

    def _claim(
        self, conn: Connection, now: datetime, body: BaseModel, key: str
    ) -> Claim | StoredAnswer:
        request = self._request
        parts = [request.method, request.url.path, request.url.query, body.model_dump_json()]
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        try:
            return idempotency.claim(conn, now, RequestKey(self._actor, key, digest))
        except idempotency.KeyReusedError as error:
            raise Problem(Code.IDEMPOTENCY_KEY_REUSED, str(error)) from error
        except idempotency.KeyInUseError as error:
            headers = {"Retry-After": "1"}
            raise Problem(Code.IDEMPOTENCY_KEY_IN_USE, str(error), headers=headers) from error

    def _made(self, claim: Claim, make: Callable[[str | None], BaseModel]) -> BaseModel:
        try:
            return make(claim.id)
        except (Problem, DataError, *REFUSALS):
            with self._store.begin() as conn:
                idempotency.forget(conn, claim)
            raise


def _replayed(stored: StoredAnswer) -> Response:
    return JSONResponse(stored.body, stored.status, headers={REPLAYED: "true"})


Once = Annotated[IdempotentRequest, Depends()]
